"""How a project prepares images for its models, which files of weights do not say: mean, deviation, crop, filter.

A `preprocessor_config.json` or `config.json` beside the weights says it for its file; see `jaxvit.weights.beside`.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxvit.data.settings import Preprocessing
from jaxvit.weights.origin import Guess

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_CIFAR100 = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
_SMALL = 64  # images up to this side are taken whole


class ImageSettings(NamedTuple):
    """How images are prepared.

    Attributes:
      mean, std: mean and standard deviation of each channel, in the pixel range 0..1.
      crop: the side of the model's input as a share of the shorter side that images are resized to.
      interpolation: 'bilinear' or 'bicubic'.
      source: where these values come from, for the user.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float
    interpolation: str
    source: str

    def stored_shape(self, input: tuple[int, int, int]) -> tuple[int, int, int]:
        """(height, width, channels) of the uint8 images that are cut to the model's input."""
        height, width, channels = input
        if height != width:
            return height, width, channels
        return int(height / self.crop), int(height / self.crop), channels

    def preprocessing(self, input: tuple[int, int, int]) -> Preprocessing:
        """The evaluation of a model with this input, (height, width, channels)."""
        height, width, channels = input
        mean, std = (values if len(values) in (1, channels) else (0.5,) for values in (self.mean, self.std))
        if height != width or self.crop == 1:
            return Preprocessing(mean, std, interpolation=self.interpolation)
        how = {"evaluation": "crop_fraction", "size": height, "crop_fraction": self.crop}
        return Preprocessing(mean, std, interpolation=self.interpolation, **how)


def usual_settings(origin: str, guess: Guess) -> ImageSettings:
    """The settings that most models of an origin were published with.

    Args:
      origin: a name of `jaxvit.weights.pretrained.ORIGINS`.
      guess: the model of the file.
    """
    side = guess.input[0]
    scaled = bool(guess.attributes.get("layer_scale"))
    if origin == "spach":
        return ImageSettings(*_IMAGENET, 224 / 256, "bicubic", "the authors' datasets.py")
    if origin == "compact_transformers":
        if side > _SMALL:
            return ImageSettings(*_IMAGENET, 0.9, "bicubic", "the authors' configs for ImageNet")
        hundred = guess.attributes.get("num_classes") == 100
        name = "CIFAR-100" if hundred else "CIFAR-10"
        return ImageSettings(*(_CIFAR100 if hundred else _CIFAR10), 1.0, "bicubic", f"the authors' configs for {name}")
    if origin == "timm":
        if scaled:
            return ImageSettings(*_IMAGENET, 1.0, "bicubic", "a guess: as DeiT III in timm")
        return ImageSettings(*_HALF, 0.9, "bicubic", "a guess: as most ViTs of timm; DeiT takes ImageNet's")
    if origin == "transformers":
        if scaled:
            return ImageSettings(*_IMAGENET, 224 / 256, "bicubic", "a guess: as DINOv2 in transformers")
        if guess.attributes.get("registers"):
            return ImageSettings(*_IMAGENET, 224 / 256, "bicubic", "a guess: as DeiT in transformers")
        return ImageSettings(*_HALF, 1.0, "bilinear", "a guess: as ViT in transformers")
    if origin == "big_vision":
        return ImageSettings(*_HALF, 224 / 256, "bilinear", "a guess: as most configs of big_vision")
    if origin == "vision_transformer":
        return ImageSettings(*_HALF, 1.0, "bilinear", "the authors' input_pipeline.py")
    return ImageSettings(*_HALF, 1.0, "bilinear", "a guess: values from -1 to 1")
