"""How one array of another project becomes one or several of ours, and back.

PyTorch keeps a dense kernel as (outputs, inputs) and a convolution's as (outputs, inputs, height, width); Flax has the
inputs before the outputs. Attention is split into heads here: query, key and value kernels are (inputs, heads,
head_dim), the output's is (heads, head_dim, outputs).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Layout(NamedTuple):
    """A pair of functions that undo each other.

    Attributes:
      read: (their array, shapes of ours) to our arrays.
      write: our arrays to theirs.
    """

    read: Callable[[np.ndarray, Sequence[Shape]], list[np.ndarray]]
    write: Callable[[Sequence[np.ndarray]], np.ndarray]


def _one(read: Callable[[np.ndarray, Shape], np.ndarray], write: Callable[[np.ndarray], np.ndarray]) -> Layout:
    return Layout(lambda array, shapes: [read(array, shapes[0])], lambda arrays: write(arrays[0]))


def _split(array: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
    parts = np.split(array, len(shapes), axis=0)
    return [part.T.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _join_kernels(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([array.reshape(array.shape[0], -1).T for array in arrays])


def _join_biases(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([array.reshape(-1) for array in arrays])


# The array as it is.
SAME = _one(lambda array, shape: array, lambda array: array)
# (outputs, inputs) <-> (inputs, outputs).
DENSE = _one(lambda array, shape: array.T, lambda array: array.T)
# (outputs, inputs, height, width) <-> (height, width, inputs, outputs).
CONV = _one(lambda array, shape: array.transpose(2, 3, 1, 0), lambda array: array.transpose(3, 2, 0, 1))
# A 1x1 convolution that stands for a dense layer: (outputs, inputs, 1, 1) <-> (inputs, outputs).
POINTWISE = _one(lambda array, shape: array.reshape(array.shape[:2]).T, lambda array: array.T[:, :, None, None])
# Axes of length 1 in front of a table: (1, tokens, channels) <-> (tokens, channels).
TABLE = _one(lambda array, shape: array.reshape(array.shape[-2:]), lambda array: array[None])
# (heads * head_dim, inputs) <-> (inputs, heads, head_dim).
HEADS_IN = _one(
    lambda array, shape: array.T.reshape(shape),
    lambda array: array.reshape(array.shape[0], math.prod(array.shape[1:])).T,
)
# (heads * head_dim,) <-> (heads, head_dim).
HEADS_BIAS = _one(lambda array, shape: array.reshape(shape), lambda array: array.reshape(-1))
# (outputs, heads * head_dim) <-> (heads, head_dim, outputs).
HEADS_OUT = _one(lambda array, shape: array.T.reshape(shape), lambda array: array.reshape(-1, array.shape[-1]).T)
# One array for query, key and value: (3 * heads * head_dim, inputs) <-> three of (inputs, heads, head_dim).
QKV = Layout(_split, _join_kernels)
# (3 * heads * head_dim,) <-> three of (heads, head_dim).
QKV_BIAS = Layout(_split, _join_biases)
