"""Max-pooling of maps."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxvit.ops.arguments import check, check_array, whole
from jaxvit.ops.implementations import implementation

Padding = tuple[int, int]


def max_pool(
    x_BHWC: jax.Array, *, window: int = 3, stride: int = 2, padding: str | tuple[Padding, Padding] = ((1, 1), (1, 1))
) -> jax.Array:
    """The largest value of each window.

    The gradient goes to the largest element of the window; among equal ones to the first in row order. Forward and
    reverse mode work, at any order.

    `jaxvit.ops.implementations` chooses the implementation. 'window' is XLA's reduce-window. 'slices' pools along the
    rows, then along the columns. For a derivative it takes the maximum of strided slices and keeps the position of each
    maximum as one byte; XLA's own gradient takes several times as long on CPU.

    Args:
      x_BHWC: maps (B, H, W, C).
      window: side of the window, 1 or more.
      stride: step between windows, 1 or more.
      padding: ((top, bottom), (left, right)) in pixels, each below `window`, or 'SAME' as in TensorFlow. A padded pixel
        is never the maximum.

    Returns:
      (B, H', W', C), where H' = (H + top + bottom - window) // stride + 1.

    Raises:
      ValueError: the array is not a batch of maps, an argument is out of range, or the window does not fit the map.

    Example:
      >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), window=2, stride=2, padding="SAME").reshape(2, 2)
      Array([[ 5.,  7.],
             [13., 15.]], dtype=float32)
    """
    check_array("max_pool", "x_BHWC", x_BHWC, "B H W C")
    check("max_pool", "window", window, whole(1))
    check("max_pool", "stride", stride, whole(1))
    rows, columns = _padding(x_BHWC.shape, window, stride, padding)
    for size, around in zip(x_BHWC.shape[1:3], (rows, columns), strict=True):
        if size + sum(around) < window or max(around) >= window:
            raise ValueError(f"max_pool: window={window} does not fit maps {x_BHWC.shape} with padding {padding}")
    if implementation("max_pool") == "slices":
        for axis, around in ((2, columns), (1, rows)):
            x_BHWC = _max_along(x_BHWC, axis, window, stride, around)
        return x_BHWC
    return jax.lax.reduce_window(
        x_BHWC,
        _lowest(x_BHWC.dtype),
        jax.lax.max,
        (1, window, window, 1),
        (1, stride, stride, 1),
        ((0, 0), rows, columns, (0, 0)),
    )


def _padding(
    shape: tuple[int, ...], window: int, stride: int, padding: str | tuple[Padding, Padding]
) -> tuple[Padding, Padding]:
    """The padding of rows and columns in pixels."""
    if padding == "SAME":
        return _same(shape[1], window, stride), _same(shape[2], window, stride)
    try:
        (top, bottom), (left, right) = padding
        return (int(top), int(bottom)), (int(left), int(right))
    except (TypeError, ValueError):
        raise ValueError(f"max_pool: padding={padding!r} must be 'SAME' or ((top, bottom), (left, right))") from None


def _same(size: int, window: int, stride: int) -> Padding:
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def _lowest(dtype: np.dtype) -> np.ndarray:
    return np.asarray(-np.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min, dtype)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3, 4))
def _max_along(x: jax.Array, axis: int, window: int, stride: int, around: Padding) -> jax.Array:
    windows, strides, padding = [1] * x.ndim, [1] * x.ndim, [(0, 0)] * x.ndim
    windows[axis], strides[axis], padding[axis] = window, stride, around
    return jax.lax.reduce_window(x, _lowest(x.dtype), jax.lax.max, windows, strides, padding)


@_max_along.defjvp
def _max_along_jvp(
    axis: int,
    window: int,
    stride: int,
    around: Padding,
    primals: tuple[jax.Array],
    tangents: tuple[jax.Array],
) -> tuple[jax.Array, jax.Array]:
    ((x,), (dx,)) = primals, tangents
    best, place = _max_and_place(x, axis, window, stride, around)
    size = x.shape[axis]
    return best, _gather_p.bind(dx, place, axis=axis, size=size, window=window, stride=stride, around=around)


def _max_and_place(x: jax.Array, axis: int, window: int, stride: int, around: Padding) -> tuple[jax.Array, jax.Array]:
    """The maximum of each window, and its position within the window as a byte."""
    outputs = (x.shape[axis] + sum(around) - window) // stride + 1
    widths = [(0, 0, 0)] * x.ndim
    widths[axis] = (*around, 0)
    padded = jax.lax.pad(x, jnp.asarray(_lowest(x.dtype)), widths)  # a padded element must not be the maximum

    def candidate(i: int) -> jax.Array:
        return jax.lax.slice_in_dim(padded, i, i + stride * (outputs - 1) + 1, stride, axis=axis)

    best = candidate(0)
    place = jnp.zeros(best.shape, jnp.uint8)
    for i in range(1, window):
        value = candidate(i)
        # Not `>`: as in XLA's reduce-window, NaN counts as larger than any number.
        larger = ~(value <= best) & (best == best)
        best, place = jnp.where(larger, value, best), jnp.where(larger, jnp.uint8(i), place)
    return best, place


# The derivative is a linear function of the tangent: it gathers the tangent at each window's maximum. Its transpose
# scatters each gradient to where the maximum was. Both are primitives, each the transpose of the other, because JAX's
# own transpose of strided slices is slow on CPU, and `jax.custom_vjp` has no forward mode.


def _gather(
    tangent: jax.Array, place: jax.Array, *, axis: int, size: int, window: int, stride: int, around: Padding
) -> jax.Array:
    """The tangent at the maximum of each window along an axis of `size` elements."""
    del size
    outputs = place.shape[axis]
    widths = [(0, 0)] * tangent.ndim
    widths[axis] = around
    padded = jnp.pad(tangent, widths)
    total = jnp.zeros(place.shape, tangent.dtype)
    for i in range(window):
        part = jax.lax.slice_in_dim(padded, i, i + stride * (outputs - 1) + 1, stride, axis=axis)
        total = total + jnp.where(place == i, part, jnp.zeros_like(part))
    return total


def _scatter(
    gradient: jax.Array, place: jax.Array, *, axis: int, size: int, window: int, stride: int, around: Padding
) -> jax.Array:
    """Each gradient at the place of its window's maximum along an axis of `size` elements.

    Input positions are computed by their remainder modulo the stride, because a window then covers consecutive ones.
    """
    outputs = gradient.shape[axis]
    rows = outputs + (window - 1) // stride  # input positions with one remainder
    zeros = jnp.zeros_like(gradient)
    by_remainder = []
    for remainder in range(stride):
        total = None
        for i in range(remainder, window, stride):
            widths = [(0, 0)] * gradient.ndim
            widths[axis] = (i // stride, rows - outputs - i // stride)
            part = jnp.pad(jnp.where(place == i, gradient, zeros), widths)
            total = part if total is None else total + part
        if total is None:  # the stride is larger than the window: no window covers these positions
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
    return jax.lax.slice_in_dim(whole, around[0], around[0] + size, axis=axis)


_gather_p, _scatter_p = Primitive("max_pool_gather"), Primitive("max_pool_scatter")


def _define(primitive: Primitive, function, transpose: Primitive) -> None:
    """Gives a primitive its computation, and its rules for vmap, jvp and transposition."""

    def shape(x, place, **along):
        return x.update(shape=jax.eval_shape(partial(function, **along), x, place).shape)

    def batch(arrays, axes, **along):
        size = next(x.shape[axis] for x, axis in zip(arrays, axes, strict=True) if axis is not None)
        front = [
            jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
            for x, axis in zip(arrays, axes, strict=True)
        ]
        return primitive.bind(*front, **{**along, "axis": along["axis"] + 1}), 0

    def jvp(primals, tangents, **along):
        value = primitive.bind(*primals, **along)
        tangent = tangents[0]
        if isinstance(tangent, ad.Zero):
            return value, ad.zeros_like_aval(jax.typeof(value))
        return value, primitive.bind(tangent, primals[1], **along)

    def transposed(gradient, _, place, **along):
        return (gradient if isinstance(gradient, ad.Zero) else transpose.bind(gradient, place, **along)), None

    primitive.def_impl(jax.jit(function, static_argnames=("axis", "size", "window", "stride", "around")))
    primitive.def_abstract_eval(shape)
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
    batching.primitive_batchers[primitive] = batch
    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transposed


_define(_gather_p, _gather, _scatter_p)
_define(_scatter_p, _scatter, _gather_p)
