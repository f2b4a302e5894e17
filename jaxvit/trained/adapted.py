"""Adapts a split of another data set to a model: its class indices, and grey or RGB images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from jaxvit.data.parts import Source, StreamedSource
from jaxvit.errors import UsageError


@dataclass(frozen=True)
class AdaptedSource:
    """A split with the labels and channels of a model.

    Attributes:
      source: the split.
      class_names: K names of the model's classes.
      numbers: int [number of the split's classes], the index of each in `class_names`; -1 = absent.
      channels: 1 or 3, of the images.
    """

    source: Source | StreamedSource
    class_names: tuple[str, ...]
    numbers: np.ndarray
    channels: int

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def image_shape(self) -> tuple[int, ...]:
        return (*self.source.image_shape[:2], self.channels)

    @property
    def files(self) -> list[str]:
        """See `jaxvit.data.parts.Source.files`."""
        return self.source.files

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Fingerprint of the stored split, before any conversion."""
        return self.source.fingerprint

    @cached_property
    def labels(self) -> np.ndarray:
        """int32 [N], indices of the model's classes."""
        return self._renumbered(np.asarray(self.source.labels))

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `jaxvit.data.parts.Source.batch`."""
        images, labels, good = self.source.batch(rows)
        return convert(images, self.channels), self._renumbered(labels, good), good

    def _renumbered(self, labels: np.ndarray, good: np.ndarray | None = None) -> np.ndarray:
        found = self.numbers[labels]
        unknown = np.unique(labels[(found < 0) if good is None else (found < 0) & good])
        if len(unknown):
            raise UsageError(unknown_classes(self.source.name, [self.source.class_names[i] for i in unknown]))
        return np.maximum(found, 0)  # an image that cannot be decoded has the label 0


def unknown_classes(name: str, classes: Sequence[str]) -> str:
    """Returns the error message about images of classes that a model does not know."""
    few = ", ".join(classes[:4]) + ", …" * (len(classes) > 4)
    return f"{name}: has images of classes that the model does not know ({few}); take them out, or rename their folders"


def convert(images_BHWC: np.ndarray, channels: int) -> np.ndarray:
    """Converts uint8 images [B, H, W, 1 or 3] to `channels` channels; grey is ITU-R BT.601 luma, rounded as in Pillow.

    Example:
      >>> convert(np.full((1, 2, 2, 3), 7, np.uint8), 1).shape
      (1, 2, 2, 1)
    """
    if images_BHWC.shape[-1] == channels:
        return images_BHWC
    if channels == 3:
        return np.repeat(images_BHWC, 3, axis=-1)
    if not len(images_BHWC):
        return images_BHWC[..., :1]
    grey = [np.asarray(Image.fromarray(image).convert("L")) for image in images_BHWC]
    return np.stack(grey)[..., None]
