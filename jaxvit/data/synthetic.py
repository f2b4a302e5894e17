"""Random images in memory, for benchmarks that need no real data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxvit.data.dataset import Dataset
from jaxvit.data.own import OwnStore

NAME = "synthetic"


def synthetic_dataset(
    shape: tuple[int, int, int], classes: int, count: int, seed: int = 0, *, blank: bool = False
) -> Dataset:
    """Returns a data set of uint8 noise and random labels with a single split, 'train'.

    Args:
      shape: (H, W, C) of an image.
      classes: K, number of classes.
      count: number of images.
      seed: seed of images and labels.
      blank: all images are black and share the memory of one: for programs that are compiled and not run.
    """
    rng = np.random.default_rng(seed)
    if blank:
        images = np.broadcast_to(np.zeros((1, *shape), np.uint8), (count, *shape))
    else:
        images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    split = (images, rng.integers(0, classes, count, dtype=np.int32))
    return Dataset(OwnStore(NAME, Path(), {"train": split, "class_names": tuple(map(str, range(classes)))}))
