"""Random images in memory, for measuring where the data set does not matter or is not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxvit.data.own import OwnStore
from jaxvit.data.sources import Dataset

NAME = "synthetic"


def synthetic_dataset(shape: tuple[int, int, int], classes: int, count: int, seed: int = 0) -> Dataset:
    """A data set of noise with the one split 'train'.

    Args:
      shape: (H, W, C) of an image, uint8.
      classes: K; labels are random.
      count: images.
      seed: of both.
    """
    rng = np.random.default_rng(seed)
    split = (rng.integers(0, 256, (count, *shape), dtype=np.uint8), rng.integers(0, classes, count, dtype=np.int32))
    return Dataset(OwnStore(NAME, Path(), {"train": split, "class_names": tuple(map(str, range(classes)))}))
