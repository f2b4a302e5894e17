"""What is done to images between the data set and the model: plain values, without jax."""

from __future__ import annotations

from dataclasses import dataclass

TRAIN_SIZES = ("whole", "resize_crop", "random_resized_crop")
EVALUATION_SIZES = ("whole", "centre_crop", "crop_fraction")
FLIP_MODES = ("random", "alternate")


@dataclass(frozen=True)
class Augmentation:
    """What to do; the meaning of each field is that of the config key ``augment.FIELD``.

    `mix_until` is in steps, 0 for the whole training; `size` and `resize` are 0 for the image's own side. `epoch_steps`
    is no key: the steps of an epoch, for a `flip_mode` that goes by epochs.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    train: str = "whole"
    evaluation: str = "whole"
    size: int = 0
    resize: int = 0
    crop_position: str = "image"
    crop_fraction: float = 1.0
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"
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

    def output_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape [H, W, C] that the model sees."""
        return (self.size, self.size, image_shape[-1]) if self.size else tuple(image_shape)

    @property
    def alternates(self) -> bool:
        """Whether an image's mirroring depends on the image and the epoch alone."""
        return self.flip and self.flip_mode == "alternate"

    @property
    def mixes(self) -> bool:
        return bool(self.mixup or self.cutmix)
