"""Lazy selections of rows from decoded splits, for class subsets and joined splits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_CHUNK = 1024


class Gathered:
    """An array-like of selected rows; indexing copies only the rows that it returns.

    Args:
      parts: pairs of an array [N_i, …] and the rows selected from it, in order. All arrays share one dtype and shape
        after the first axis.
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
        """Copies all selected rows into an array."""
        images = np.empty(self.shape, self.dtype)
        for start in range(0, len(self), _CHUNK):
            images[start : start + _CHUNK] = self[start : start + _CHUNK]
        return images if dtype is None else images.astype(dtype, copy=False)
