"""Weights as they are stored: float32, bfloat16, or int8 with a scale for each output channel.

Arithmetic is float32 whatever is stored: a file shrinks, and only the rounding of its weights changes its results.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

KINDS = ("float32", "bfloat16", "int8")
_PROJECTIONS = ("query", "key", "value")  # (C, heads, head_dim): each head's channels are outputs of their own


class Int8(NamedTuple):
    """An array as `values` times `scale`, which broadcasts.

    Attributes:
      values: int8, -127..127.
      scale: float32, one for each output channel.
    """

    values: Any
    scale: Any


def store(params: Any, kind: str) -> Any:
    """Parameters as they are to be stored.

    Args:
      params: tree of float32 arrays.
      kind: 'float32'; 'bfloat16' = all of them, rounded to nearest; 'int8' = arrays of two axes or more that are named
        `kernel`, symmetric, the largest of an output channel being 127. The others stay.

    Returns:
      The tree, with `Int8` for the arrays that became such.
    """
    if kind == "bfloat16":
        return jax.tree.map(lambda x: np.asarray(jnp.asarray(x).astype(jnp.bfloat16)), params)
    if kind == "int8":
        return jax.tree_util.tree_map_with_path(_to_int8, params)
    return jax.tree.map(np.asarray, params)


def _to_int8(path: tuple[Any, ...], array: Any) -> Any:
    names = [getattr(part, "key", "") for part in path]
    array = np.asarray(array)
    if names[-1] != "kernel" or array.ndim < 2:
        return array
    inputs = 0 if len(names) > 1 and names[-2] in _PROJECTIONS and array.ndim == 3 else tuple(range(array.ndim - 1))
    scale = np.abs(array).max(axis=inputs, keepdims=True) / np.float32(127)
    scale = np.where(scale == 0, np.float32(1), scale)  # a channel of zeros
    return Int8(np.rint(array / scale).astype(np.int8), scale)


def restore(stored: Any) -> Any:
    """The float32 parameters that `store` stands for; traced, the stored ones become a program's constants."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, Int8):
            return jnp.asarray(leaf.values).astype(jnp.float32) * jnp.asarray(leaf.scale)
        leaf = jnp.asarray(leaf)
        return leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf

    return jax.tree.map(one, stored, is_leaf=lambda leaf: isinstance(leaf, Int8))
