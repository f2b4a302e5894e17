"""Rows of decoded splits, named but not copied: what a class subset or several splits joined are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_CHUNK = 1024


class Gathered:
    """Looks like an array, and copies images only when they are asked for.

    Args:
      parts: arrays [N_i, …] of one shape and type, and of each the rows that are taken, in order.
    """

    def __init__(self, parts: Sequence[tuple[np.ndarray, np.ndarray]]):
        self._arrays = [array for array, _ in parts]
        self._rows = np.concatenate([rows for _, rows in parts])
        self._part = np.repeat(np.arange(len(parts)), [len(rows) for _, rows in parts])
        self.dtype = self._arrays[0].dtype
        self.shape = (len(self._rows), *self._arrays[0].shape[1:])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, which: slice | np.ndarray) -> np.ndarray:
        rows, part = self._rows[which], self._part[which]
        if len(self._arrays) == 1:
            return self._arrays[0][rows]
        images = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for number, array in enumerate(self._arrays):
            own = part == number
            images[own] = array[rows[own]]
        return images

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of it, in memory."""
        images = np.empty(self.shape, self.dtype)
        for start in range(0, len(self), _CHUNK):
            images[start : start + _CHUNK] = self[start : start + _CHUNK]
        return images if dtype is None else images.astype(dtype, copy=False)
