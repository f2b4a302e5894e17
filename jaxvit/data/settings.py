"""Settings for images between the data set and the model: plain values, without jax."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

TRAIN_SIZES = ("whole", "resize_crop", "random_resized_crop")
EVALUATION_SIZES = ("whole", "centre_crop", "crop_fraction")
FLIP_MODES = ("random", "alternate")


@dataclass(frozen=True)
class Preprocessing:
    """Settings for evaluation: how a uint8 image becomes the model's input. A trained model keeps these.

    Each field means what the config key ``augment.FIELD`` means. `size` and `resize` are in pixels; 0 = the image's own
    side.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    evaluation: str = "whole"
    size: int = 0
    resize: int = 0
    crop_fraction: float = 1.0
    interpolation: str = "bilinear"

    def output_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape [H, W, C] of the model's input."""
        return (self.size, self.size, image_shape[-1]) if self.size else tuple(image_shape)


@dataclass(frozen=True)
class Augmentation(Preprocessing):
    """Settings for training: the preprocessing, and every random change of a training image.

    Each field means what the config key ``augment.FIELD`` means, except that `mix_until` is in steps (0 = the whole
    training) and that `epoch_steps`, the number of steps in an epoch (for ``flip_mode='alternate'``), is no config key.
    """

    train: str = "whole"
    crop_position: str = "image"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    pad_crop: int = 0
    flip: bool = False
    flip_mode: str = "random"
    epoch_steps: int = 0
    rotation: float = 0.0
    zoom: float = 0.0
    fill: str = "reflect"
    policy: str = ""
    jitter: tuple[float, ...] = ()
    own: str = ""
    erase: float = 0.0
    erase_mode: str = "noise"
    mixup: float = 0.0
    cutmix: float = 0.0
    switch: float = 0.5
    mix_probability: float = 1.0
    mix_until: int = 0
    repeats: int = 1
    where: str = "device"

    @property
    def preprocessing(self) -> Preprocessing:
        """The part that evaluation and prediction need."""
        return Preprocessing(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Preprocessing)})

    @property
    def alternates(self) -> bool:
        """Whether an image's mirroring depends on the image and the epoch alone."""
        return self.flip and self.flip_mode == "alternate"

    @property
    def mixes(self) -> bool:
        """Whether mixup or CutMix is on."""
        return bool(self.mixup or self.cutmix)
