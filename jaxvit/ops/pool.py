"""Max-pooling of maps."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxvit.ops.implementations import implementation

Padding = tuple[int, int]


def max_pool(
    x_BHWC: jax.Array, *, window: int = 3, stride: int = 2, padding: str | tuple[Padding, Padding] = ((1, 1), (1, 1))
) -> jax.Array:
    """The largest value of each window; the gradient goes to the first one of equal values, in row order.

    `jaxvit.ops.implementations` chooses: 'window' is XLA's reduce-window; 'slices' pools along the rows, then along the
    columns, and for gradients takes the maximum of strided slices and keeps its index in a byte, several times faster
    on XLA's CPU backend. No forward-mode derivative with 'slices'.

    Args:
      x_BHWC: maps.
      window, stride: of both sides.
      padding: pixels (before, after) of both sides, never chosen; or 'SAME', as TensorFlow means it.

    Raises:
      ValueError: the input is no map, or a window does not fit into it.
    """
    if x_BHWC.ndim != 4:
        raise ValueError(f"max-pooling takes maps (B, H, W, C), not shape {x_BHWC.shape}")
    if padding == "SAME":
        padding = tuple(_same(size, window, stride) for size in x_BHWC.shape[1:3])
    for size, around in zip(x_BHWC.shape[1:3], padding, strict=True):
        if size + sum(around) < window or max(around) >= window:
            raise ValueError(f"a window of {window} does not fit {x_BHWC.shape} padded by {padding}")
    if implementation("max_pool") == "slices":
        for axis, around in ((2, padding[1]), (1, padding[0])):
            x_BHWC = _max_along(x_BHWC, axis, window, stride, around)
        return x_BHWC
    return jax.lax.reduce_window(
        x_BHWC,
        _lowest(x_BHWC.dtype),
        jax.lax.max,
        (1, window, window, 1),
        (1, stride, stride, 1),
        ((0, 0), *padding, (0, 0)),
    )


def _same(size: int, window: int, stride: int) -> Padding:
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def _lowest(dtype: jnp.dtype) -> np.ndarray:
    return np.asarray(-np.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min, dtype)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _max_along(x: jax.Array, axis: int, window: int, stride: int, around: Padding) -> jax.Array:
    ones = [1] * x.ndim
    windows, strides, padding = ones.copy(), ones.copy(), [(0, 0)] * x.ndim
    windows[axis], strides[axis], padding[axis] = window, stride, around
    return jax.lax.reduce_window(x, _lowest(x.dtype), jax.lax.max, windows, strides, padding)


def _max_and_place(x: jax.Array, axis: int, window: int, stride: int, around: Padding) -> tuple[jax.Array, jax.Array]:
    """The maxima, and which element of its window each one is, as bytes."""
    outputs = (x.shape[axis] + sum(around) - window) // stride + 1
    widths = [(0, 0, 0)] * x.ndim
    widths[axis] = (*around, 0)
    padded = jax.lax.pad(x, jnp.asarray(_lowest(x.dtype)), widths)  # what is padded must not be the place
    best = place = None
    for i in range(window):
        candidate = jax.lax.slice_in_dim(padded, i, i + stride * (outputs - 1) + 1, stride, axis=axis)
        if best is None:
            best, place = candidate, jnp.zeros(candidate.shape, jnp.uint8)
        else:
            # Not `>`: what is not a number wins, as it does with XLA, and stays.
            larger = ~(candidate <= best) & (best == best)
            best, place = jnp.where(larger, candidate, best), jnp.where(larger, jnp.uint8(i), place)
    return best, place


def _forward(x: jax.Array, axis: int, window: int, stride: int, around: Padding):
    best, place = _max_and_place(x, axis, window, stride, around)
    return best, (place, x.shape[axis])


def _backward(axis: int, window: int, stride: int, around: Padding, kept: tuple[jax.Array, int], gradient: jax.Array):
    """Sends each gradient to where its maximum was: input positions by their remainder modulo the stride."""
    place, size = kept
    outputs = gradient.shape[axis]
    rows = outputs + (window - 1) // stride  # of input positions with one remainder
    zeros = jnp.zeros_like(gradient)
    by_remainder = []
    for remainder in range(stride):
        total = None
        for i in range(remainder, window, stride):
            widths = [(0, 0)] * gradient.ndim
            widths[axis] = (i // stride, rows - outputs - i // stride)
            part = jnp.pad(jnp.where(place == i, gradient, zeros), widths)
            total = part if total is None else total + part
        if total is None:  # a stride beyond the window: nothing looks at these
            shape = list(gradient.shape)
            shape[axis] = rows
            total = jnp.zeros(shape, gradient.dtype)
        by_remainder.append(total)
    shape = list(gradient.shape)
    shape[axis] = rows * stride
    whole = jnp.stack(by_remainder, axis + 1).reshape(shape)
    missing = max(around[0] + size - whole.shape[axis], 0)
    if missing:
        widths = [(0, 0)] * gradient.ndim
        widths[axis] = (0, missing)
        whole = jnp.pad(whole, widths)
    return (jax.lax.slice_in_dim(whole, around[0], around[0] + size, axis=axis),)


_max_along.defvjp(_forward, _backward)
