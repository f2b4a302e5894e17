"""Derives preprocessing and augmentation from a config's `augment` section, and checks that the values fit together."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Required, TypedDict

from jaxvit.config.reader import ConfigReader, parse_duration
from jaxvit.data.dataset import Dataset
from jaxvit.data.geometry import FILLS, INTERPOLATIONS
from jaxvit.data.mixing import ERASE_MODES
from jaxvit.data.own import check_augmentation
from jaxvit.data.policies import make_policy
from jaxvit.data.settings import EVALUATION_SIZES, FLIP_MODES, TRAIN_SIZES, Augmentation
from jaxvit.errors import UsageError

if TYPE_CHECKING:
    from jaxvit.config.plan_types import DataPlan, TrainPlan


class _Sizes(TypedDict, total=False):
    """The fields of `Augmentation` that set the sizes of training and evaluation images."""

    train: Required[str]
    evaluation: Required[str]
    size: Required[int]
    resize: int
    crop_position: str
    crop_fraction: float
    scale: tuple[float, float]
    ratio: tuple[float, float]
    interpolation: str


class _Mixing(TypedDict, total=False):
    """The fields of `Augmentation` that mixup and CutMix share."""

    switch: float
    mix_probability: float
    mix_until: int


def resolve_augment(get: ConfigReader, data: DataPlan, train: TrainPlan, dataset: Dataset) -> Augmentation:
    """Derives preprocessing and augmentation.

    Raises:
      UsageError: a value is out of range, or values do not fit together.
    """
    sizing = _resolve_sizes(get, data)
    height, width, channels = data.image_shape
    if sizing["size"]:
        height = width = sizing["size"]
    side = min(height, width)
    pad = get.at_least("augment.pad_crop", 0)
    if pad >= side:
        raise UsageError(f"config.augment.pad_crop={pad}: must be below the image's side of {side} pixels")
    rotation, zoom = get.at_least("augment.rotation", 0.0), get.between("augment.zoom", 0.0, 1.0)
    policy = get("augment.policy", str)
    if policy:
        make_policy(policy, height, width)
        if channels not in (1, 3):
            raise UsageError(f"config.augment.policy='{policy}': needs images of 1 or 3 channels, not {channels}")
    jitter = get("augment.jitter", tuple)
    if jitter and (len(jitter) != 4 or min(jitter) < 0 or jitter[3] > 0.5):
        raise UsageError(
            f"config.augment.jitter={jitter}: must be four numbers of 0 or more for brightness, contrast, saturation "
            "and hue (at most 0.5)"
        )
    resized = sizing["train"] != "whole" or sizing["size"] not in (0, min(data.image_shape[:2]))
    geometry = (resized, pad, rotation, zoom)
    if get("augment.where", str) == "host" and not (any(geometry) or get("augment.flip", bool)):
        raise UsageError(
            "config.augment.where='host': no resizing, crop, flip, rotation or zoom is on that could run on the host; "
            "set it to 'device'"
        )
    own = get("augment.own", str)
    if own:
        check_augmentation(own, (height, width, channels))
    erase = get.share("augment.erase")
    mixup, cutmix = get.at_least("augment.mixup", 0.0), get.at_least("augment.cutmix", 0.0)
    mixing = _Mixing()
    if mixup or cutmix:
        until, per_epoch = get("augment.mix_until", str), train.steps_per_epoch
        steps = until and parse_duration(until, key="augment.mix_until", steps_per_epoch=per_epoch, whole=train.steps)
        if until and not steps:
            raise UsageError(
                f"config.augment.mix_until='{until}': must be one step or more; to mix nothing, set augment.mixup=0 "
                "and augment.cutmix=0"
            )
        mixing = _Mixing(
            switch=get.share("augment.switch") if mixup and cutmix else 0.5,
            mix_probability=get.share("augment.mix_probability"),
            mix_until=steps or 0,
        )
    repeats = get.at_least("augment.repeats", 1)
    if train.batch_size % repeats:
        raise UsageError(f"config.augment.repeats={repeats}: must divide config.train.batch_size={train.batch_size}")
    flip = get("augment.flip", bool)
    flip_mode = get.one_of("augment.flip_mode", FLIP_MODES) if flip else "random"
    if flip_mode == "alternate" and repeats > 1:
        raise UsageError(
            "config.augment.flip_mode='alternate': needs each image once per epoch, but "
            f"config.augment.repeats={repeats} repeats images; change one of the two"
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


def _resolve_sizes(get: ConfigReader, data: DataPlan) -> _Sizes:
    """Derives the sizes of training and evaluation images."""
    height, width, _ = data.image_shape
    train = get.one_of("augment.train", TRAIN_SIZES)
    evaluation = get.one_of("augment.evaluation", EVALUATION_SIZES)
    sizes = _Sizes(train=train, evaluation=evaluation, size=get.at_least("augment.size", 0))
    target = (sizes["size"], sizes["size"]) if sizes["size"] else (height, width)
    if train == "resize_crop" or evaluation == "centre_crop":
        resize = sizes["resize"] = get.at_least("augment.resize", 0)
        before = (resize, resize) if resize else (height, width)
        if target[0] > before[0] or target[1] > before[1]:
            many, few = (x[0] if x[0] == x[1] else f"{x[0]}×{x[1]}" for x in (target, before))
            remedy = "set augment.resize to at least that" if sizes["size"] else "set augment.size to the crop's side"
            raise UsageError(
                f"config.augment.size={sizes['size']}: a crop of {many} pixels does not fit into {few}; {remedy}"
            )
    if train == "resize_crop":
        sizes["crop_position"] = get.one_of("augment.crop_position", ("image", "batch"))
    if evaluation == "crop_fraction":
        sizes["crop_fraction"] = get.factor("augment.crop_fraction")
    if train == "random_resized_crop":
        if target[0] != target[1]:
            raise UsageError(
                f"config.augment.size=0: augment.train='random_resized_crop' makes squares, but the images are "
                f"{height}×{width}; set augment.size to the side of the squares"
            )
        sizes["scale"], sizes["ratio"] = _range(get, "augment.scale", 1.0), _range(get, "augment.ratio", math.inf)
    resize = sizes.get("resize", 0)
    resized = target != (height, width) or (resize and (resize, resize) != (height, width))
    if resized or train == "random_resized_crop" or evaluation == "crop_fraction":
        sizes["interpolation"] = get.one_of("augment.interpolation", tuple(INTERPOLATIONS))
    return sizes


def _range(get: ConfigReader, key: str, top: float) -> tuple[float, float]:
    """Reads a range (low, high) of numbers above 0 and up to `top`."""
    value = get(key, tuple)
    if len(value) != 2 or not 0 < value[0] <= value[1] <= top:
        limit = f" <= {top:g}" if top < math.inf else ""
        raise UsageError(f"config.{key}={value}: must be (low, high) with 0 < low <= high{limit}")
    return value


def _constants(get: ConfigReader, name: str, data: DataPlan, dataset: Dataset) -> tuple[float, ...]:
    """Reads the mean or standard deviation of the normalisation, or measures it on the training split."""
    value = get(f"augment.{name}", tuple)
    if not value:
        return tuple(dataset.read(data.train).fingerprint[name])
    channels = data.image_shape[-1]
    if get("init.from", str) and channels == 1 and len(value) == 3:  # the weights are for colour images
        value = (sum(value) / 3,)
    if len(value) not in (1, channels) or not all(isinstance(v, int | float) for v in value):
        many = f"{channels} numbers, one for each channel, or one number for all" if channels != 1 else "one number"
        raise UsageError(f"config.augment.{name}={value}: must be {many}, or () to measure it")
    if name == "std" and min(value) <= 0:
        raise UsageError(f"config.augment.std={value}: must be above 0")
    return value
