"""The augmentation's part of a Plan: sizes, constants, and what does not fit together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxvit.config_reader import ConfigReader, parse_duration
from jaxvit.data.augment import EVALUATION_SIZES, TRAIN_SIZES, Augmentation
from jaxvit.data.geometry import FILLS, INTERPOLATIONS
from jaxvit.data.mixing import ERASE_MODES
from jaxvit.data.policies import make_policy
from jaxvit.data.sources import Dataset
from jaxvit.errors import UsageError

if TYPE_CHECKING:
    from jaxvit.plan import DataPlan, TrainPlan


def resolve_augment(get: ConfigReader, data: DataPlan, train: TrainPlan, dataset: Dataset) -> Augmentation:
    channels = data.image_shape[-1]
    sizing = _resolve_sizes(get, data)
    side = sizing["size"] or _side(data)
    pad = get.at_least("augment.pad_crop", 0)
    if side and pad >= side:
        raise UsageError(f"config.augment.pad_crop={pad}: must be smaller than the image's side of {side} pixels")
    rotation, zoom = get.at_least("augment.rotation", 0.0), get.between("augment.zoom", 0.0, 1.0)
    policy = get("augment.policy")
    if policy:
        make_policy(policy, side or 1)
        if channels not in (1, 3):
            raise UsageError(f"config.augment.policy='{policy}': needs images of 1 or 3 channels, not {channels}")
    jitter = tuple(get("augment.jitter"))
    if jitter and (len(jitter) != 4 or min(jitter) < 0 or jitter[3] > 0.5):
        raise UsageError(
            f"config.augment.jitter={jitter}: must be four numbers of 0 or more for brightness, contrast, saturation "
            "and hue (at most 0.5)"
        )
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
    return Augmentation(
        mean=_constants(get, "mean", data, dataset),
        std=_constants(get, "std", data, dataset),
        **sizing,
        pad_crop=pad,
        flip=get("augment.flip"),
        rotation=rotation,
        zoom=zoom,
        fill=get.one_of("augment.fill", FILLS) if rotation or zoom else "reflect",
        policy=policy,
        jitter=jitter,
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
    own = _side(data)
    train = get.one_of("augment.train", TRAIN_SIZES)
    evaluation = get.one_of("augment.evaluation", EVALUATION_SIZES)
    sizes: dict[str, Any] = {"train": train, "evaluation": evaluation, "size": get.at_least("augment.size", 0)}
    size = sizes["size"] or own
    if train == "resize_crop" or evaluation == "centre_crop":
        sizes["resize"] = resize = get.at_least("augment.resize", 0)
        if (resize or own) < size:
            raise UsageError(
                f"config.augment.size={size}: a crop of {size} pixels cannot come out of {resize or own}; "
                "set augment.resize to at least that"
            )
    if train == "resize_crop":
        sizes["crop_position"] = get.one_of("augment.crop_position", ("image", "batch"))
    if evaluation == "crop_fraction":
        fraction = get("augment.crop_fraction")
        if not 0 < fraction <= 1:
            raise UsageError(f"config.augment.crop_fraction={fraction}: must be above 0 and at most 1")
        sizes["crop_fraction"] = fraction
    if train == "random_resized_crop":
        for name in ("scale", "ratio"):
            low_high = sizes[name] = tuple(get(f"augment.{name}"))
            if len(low_high) != 2 or not 0 < low_high[0] <= low_high[1] or (name == "scale" and low_high[1] > 1):
                raise UsageError(f"config.augment.{name}={low_high}: must be (low, high) with 0 < low <= high")
    resized = sizes["size"] not in (0, own) or sizes.get("resize", 0) not in (0, own)
    if resized or train == "random_resized_crop" or evaluation == "crop_fraction":
        sizes["interpolation"] = get.one_of("augment.interpolation", tuple(INTERPOLATIONS))
    return sizes


def _side(data: DataPlan) -> int:
    """The shorter side of the images, 0 where they vary in size."""
    return min(side or 0 for side in data.image_shape[:2])


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
