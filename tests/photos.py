"""Small folders of photos: 8×8 PNGs, all different."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from PIL import Image

_numbers = itertools.count()


def photo(file: Path, number: int | None = None, size: tuple[int, int] = (8, 8)) -> Path:
    """Writes an image; two of one number and size have the same pixels, whatever their format."""
    rng = np.random.default_rng(next(_numbers) + 10_000 if number is None else number)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(file)
    return file


def photos(folder: Path, **classes: int) -> Path:
    """So many different images of each class."""
    for name, count in classes.items():
        for i in range(count):
            photo(folder / name / f"{i}.png")
    return folder
