"""Converts weights for storage: float32, bfloat16, float16, or int8 with a scale per output channel.

The arithmetic is always float32: storing smaller weights shrinks the file, and only their rounding changes the results.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvit.errors import UsageError

KINDS = ("float32", "bfloat16", "float16", "int8")
_LARGEST_FLOAT16 = 65504.0
_PROJECTIONS = ("query", "key", "value")  # kernels [C, heads, head_dim]: the last two axes are output channels


class Int8(NamedTuple):
    """An array stored as `values * scale`.

    Attributes:
      values: int8, -127..127.
      scale: float32, one per output channel; broadcasts to the shape of `values`.
    """

    values: Any
    scale: Any


def store(params: Any, kind: str) -> Any:
    """Converts parameters for storage.

    Args:
      params: tree of float32 arrays.
      kind: 'float32'; 'bfloat16' or 'float16', which round all arrays to nearest; or 'int8', which quantises arrays
        named `kernel` with two axes or more, symmetrically per output channel (the largest magnitude becomes 127), and
        no others.

    Returns:
      The tree of converted arrays; quantised arrays are `Int8`.

    Raises:
      UsageError: 'float16' for weights that are too large for it.
    """
    if kind == "float16":
        return jax.tree.map(_to_float16, params)
    if kind == "bfloat16":
        return jax.tree.map(lambda x: np.asarray(jnp.asarray(x).astype(jnp.bfloat16)), params)
    if kind == "int8":
        return jax.tree_util.tree_map_with_path(_to_int8, params)
    return jax.tree.map(np.asarray, params)


def _to_float16(array: Any) -> Any:
    array = np.asarray(array)
    largest = float(np.abs(array).max(initial=0.0))
    if largest > _LARGEST_FLOAT16:
        raise UsageError(f"--dtype=float16: a weight is {largest:.3g}, and float16 ends at 65,504; use bfloat16")
    return array.astype(np.float16)


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
    """Converts the result of `store` back to float32. If traced, the stored arrays become constants of the program."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, Int8):
            return jnp.asarray(leaf.values).astype(jnp.float32) * jnp.asarray(leaf.scale)
        leaf = jnp.asarray(leaf)
        return leaf.astype(jnp.float32) if leaf.dtype in (jnp.bfloat16, jnp.float16) else leaf

    return jax.tree.map(one, stored, is_leaf=lambda leaf: isinstance(leaf, Int8))
