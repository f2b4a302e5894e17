"""The augmentation's part of a Plan: sizes, constants, and what does not fit together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxvit.config.reader import ConfigReader, parse_duration
from jaxvit.data.geometry import FILLS, INTERPOLATIONS
from jaxvit.data.mixing import ERASE_MODES
from jaxvit.data.own import check_augmentation
from jaxvit.data.policies import make_policy
from jaxvit.data.settings import EVALUATION_SIZES, FLIP_MODES, TRAIN_SIZES, Augmentation
from jaxvit.data.sources import Dataset
from jaxvit.errors import UsageError

if TYPE_CHECKING:
    from jaxvit.config.plan_types import DataPlan, TrainPlan


def resolve_augment(get: ConfigReader, data: DataPlan, train: TrainPlan, dataset: Dataset) -> Augmentation:
    sizing = _resolve_sizes(get, data)
    height, width, channels = data.image_shape
    if sizing["size"]:
        height = width = sizing["size"]
    side = min(height, width)
    pad = get.at_least("augment.pad_crop", 0)
    if pad >= side:
        raise UsageError(f"config.augment.pad_crop={pad}: must be smaller than the image's side of {side} pixels")
    rotation, zoom = get.at_least("augment.rotation", 0.0), get.between("augment.zoom", 0.0, 1.0)
    policy = get("augment.policy")
    if policy:
        make_policy(policy, height, width)
        if channels not in (1, 3):
            raise UsageError(f"config.augment.policy='{policy}': needs images of 1 or 3 channels, not {channels}")
    jitter = tuple(get("augment.jitter"))
    if jitter and (len(jitter) != 4 or min(jitter) < 0 or jitter[3] > 0.5):
        raise UsageError(
            f"config.augment.jitter={jitter}: must be four numbers of 0 or more for brightness, contrast, saturation "
            "and hue (at most 0.5)"
        )
    resized = sizing["train"] != "whole" or sizing["size"] not in (0, min(data.image_shape[:2]))
    geometry = (resized, pad, rotation, zoom)
    if get("augment.where") == "host" and not (any(geometry) or get("augment.flip")):
        raise UsageError(
            "config.augment.where='host': moves the geometry (size, crop, flip, rotation, zoom) to the host, and there "
            "is none; leave it at 'device'"
        )
    own = get("augment.own")
    if own:
        check_augmentation(own, (height, width, channels))
    erase = get.share("augment.erase")
    mixup, cutmix = get.at_least("augment.mixup", 0.0), get.at_least("augment.cutmix", 0.0)
    mixing = {}
    if mixup or cutmix:
        until = get("augment.mix_until")
        mixing = {
            "switch": get.share("augment.switch") if mixup and cutmix else 0.5,
            "mix_probability": get.share("augment.mix_probability"),
            "mix_until": until
            and parse_duration(
                until, key="augment.mix_until", steps_per_epoch=train.steps_per_epoch, whole=train.steps
            ),
        }
        if until and not mixing["mix_until"]:
            raise UsageError(f"config.augment.mix_until='{until}': less than one step; to mix nothing, set mixup=0")
        mixing["mix_until"] = mixing["mix_until"] or 0
    repeats = get.at_least("augment.repeats", 1)
    if train.batch_size % repeats:
        raise UsageError(
            f"config.augment.repeats={repeats}: does not divide config.train.batch_size={train.batch_size}"
        )
    flip = get("augment.flip")
    flip_mode = get.one_of("augment.flip_mode", FLIP_MODES) if flip else "random"
    if flip_mode == "alternate" and repeats > 1:
        raise UsageError(
            "config.augment.flip_mode='alternate': needs each image once an epoch, and "
            f"config.augment.repeats={repeats} shows copies of some; set one of the two otherwise"
        )
    return Augmentation(
        mean=_constants(get, "mean", data, dataset),
        std=_constants(get, "std", data, dataset),
        **sizing,
        pad_crop=pad,
        flip=flip,
        flip_mode=flip_mode,
        epoch_steps=train.steps_per_epoch if flip_mode == "alternate" else 0,
        rotation=rotation,
        zoom=zoom,
        fill=get.one_of("augment.fill", FILLS) if rotation or zoom else "reflect",
        policy=policy,
        jitter=jitter,
        own=own,
        erase=erase,
        erase_mode=get.one_of("augment.erase_mode", ERASE_MODES) if erase else "noise",
        mixup=mixup,
        cutmix=cutmix,
        **mixing,
        repeats=repeats,
        where=get.one_of("augment.where", ("device", "host")),
    )


def _resolve_sizes(get: ConfigReader, data: DataPlan) -> dict[str, Any]:
    """The fields of Augmentation that give training and evaluation images their size."""
    height, width, _ = data.image_shape
    train = get.one_of("augment.train", TRAIN_SIZES)
    evaluation = get.one_of("augment.evaluation", EVALUATION_SIZES)
    sizes: dict[str, Any] = {"train": train, "evaluation": evaluation, "size": get.at_least("augment.size", 0)}
    target = (sizes["size"],) * 2 if sizes["size"] else (height, width)
    if train == "resize_crop" or evaluation == "centre_crop":
        resize = sizes["resize"] = get.at_least("augment.resize", 0)
        before = (resize, resize) if resize else (height, width)
        if target[0] > before[0] or target[1] > before[1]:
            many, few = (x[0] if x[0] == x[1] else f"{x[0]}×{x[1]}" for x in (target, before))
            remedy = "set augment.resize to at least that" if sizes["size"] else "set augment.size to the crop's side"
            raise UsageError(
                f"config.augment.size={sizes['size']}: a crop of {many} pixels cannot come out of {few}; {remedy}"
            )
    if train == "resize_crop":
        sizes["crop_position"] = get.one_of("augment.crop_position", ("image", "batch"))
    if evaluation == "crop_fraction":
        fraction = get("augment.crop_fraction")
        if not 0 < fraction <= 1:
            raise UsageError(f"config.augment.crop_fraction={fraction}: must be above 0 and at most 1")
        sizes["crop_fraction"] = fraction
    if train == "random_resized_crop":
        if target[0] != target[1]:
            raise UsageError(
                f"config.augment.size=0: augment.train='random_resized_crop' gives squares, and the images are "
                f"{height}×{width}; set augment.size to the squares' side"
            )
        for name in ("scale", "ratio"):
            low_high = sizes[name] = tuple(get(f"augment.{name}"))
            if len(low_high) != 2 or not 0 < low_high[0] <= low_high[1] or (name == "scale" and low_high[1] > 1):
                raise UsageError(f"config.augment.{name}={low_high}: must be (low, high) with 0 < low <= high")
    resize = sizes.get("resize", 0)
    resized = target != (height, width) or (resize and (resize, resize) != (height, width))
    if resized or train == "random_resized_crop" or evaluation == "crop_fraction":
        sizes["interpolation"] = get.one_of("augment.interpolation", tuple(INTERPOLATIONS))
    return sizes


def _constants(get: ConfigReader, name: str, data: DataPlan, dataset: Dataset) -> tuple[float, ...]:
    """The normalisation's mean or std, as given or as measured on the training split."""
    value = tuple(get(f"augment.{name}"))
    if not value:
        return tuple(dataset.read(data.train).fingerprint[name])
    channels = data.image_shape[-1]
    if len(value) not in (1, channels) or not all(isinstance(v, int | float) for v in value):
        many = f"{channels} numbers, one for each channel, or one number for all" if channels != 1 else "one number"
        raise UsageError(f"config.augment.{name}={value}: must be {many}, or () to measure it")
    if name == "std" and min(value) <= 0:
        raise UsageError(f"config.augment.std={value}: must be above 0")
    return value
