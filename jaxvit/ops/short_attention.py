"""Attention over short sequences as one kernel of a TPU, in Pallas: the attention weights never leave its fast memory.

Images have a few hundred tokens. So the logits of one head fit beside the compute units, and neither blocks nor running
maxima are needed, unlike in FlashAttention (Dao et al. 2022, arXiv:2205.14135), whose TPU kernel in JAX pads a sequence
to a multiple of 128 tokens and stores two numbers of each query 128 times. The backward pass computes the weights
again. A kernel handles all heads of an image, so that queries, keys and values stay as the dense layers write them:
[B, N, M · D], without a transpose and without heads of 64 channels that fill half of a lane.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

if TYPE_CHECKING:
    from jax.experimental.pallas import CostEstimate

MOST_WEIGHTS = 2**18  # limit for one head; a kernel needs a few such arrays of a megabyte in float32


class Ref(Protocol):
    """A block of an array in a kernel's memory."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, place: tuple[int | slice, ...]) -> jax.Array: ...

    def __setitem__(self, place: tuple[int | slice, ...], values: jax.Array) -> None: ...


def attend_short(q_BNMD: jax.Array, k_BNMD: jax.Array, v_BNMD: jax.Array, *, interpret: bool = False) -> jax.Array:
    """Softmax attention as one kernel, forward and backward; equals `jaxvit.ops.attention.attend` up to rounding.

    It has no forward-mode derivative. The softmax is float32.

    Args:
      q_BNMD: queries (B, N, M, D), not yet scaled; this function multiplies them by D ** -0.5.
      k_BNMD: keys (B, K, M, D).
      v_BNMD: values (B, K, M, D).
      interpret: compute on any device, slowly, what the kernel would.

    Returns:
      The weighted sums of the values (B, N, M, D), of the dtype of the values.

    Example:
      >>> q = k = v = jnp.ones((2, 5, 3, 4))
      >>> attend_short(q, k, v, interpret=True).shape
      (2, 5, 3, 4)
    """
    batch, queries, heads, head_dim = q_BNMD.shape

    def flat(x_BNMD: jax.Array) -> jax.Array:
        return x_BNMD.reshape(*x_BNMD.shape[:2], heads * head_dim)

    found_BNC: jax.Array = _attend(heads, interpret, flat(q_BNMD), flat(k_BNMD), flat(v_BNMD))
    return found_BNC.reshape(batch, queries, heads, head_dim)


def short_fits(queries: int, keys: int, dtype: DTypeLike, platform: str) -> bool:
    """Whether `attend_short` is the way on a platform, for so many queries and keys in a dtype.

    In float32, XLA multiplies on a TPU in bfloat16 by default, and the kernel would not: it stays with XLA.
    """
    return platform == "tpu" and jnp.dtype(dtype).itemsize == 2 and queries * keys <= MOST_WEIGHTS


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(heads: int, interpret: bool, q_BNC: jax.Array, k_BNC: jax.Array, v_BNC: jax.Array) -> jax.Array:
    return _call(_forward_kernel, heads, interpret, (q_BNC, k_BNC, v_BNC), (q_BNC,))[0]


def _attend_forward(
    heads: int, interpret: bool, q_BNC: jax.Array, k_BNC: jax.Array, v_BNC: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    return _attend(heads, interpret, q_BNC, k_BNC, v_BNC), (q_BNC, k_BNC, v_BNC)


def _attend_backward(
    heads: int, interpret: bool, saved: tuple[jax.Array, jax.Array, jax.Array], gradient_BNC: jax.Array
) -> tuple[jax.Array, ...]:
    return _call(_backward_kernel, heads, interpret, (*saved, gradient_BNC), saved)


_attend.defvjp(_attend_forward, _attend_backward)


def _call(
    kernel: Callable[..., None],
    heads: int,
    interpret: bool,
    inputs: tuple[jax.Array, ...],
    like: tuple[jax.Array, ...],
) -> tuple[jax.Array, ...]:
    """Runs a kernel for each image; its outputs are shaped as `like`."""
    from jax.experimental import pallas as pl

    def one(x: jax.Array) -> pl.BlockSpec:
        return pl.BlockSpec((1, *x.shape[1:]), lambda b: (b, 0, 0))

    call = pl.pallas_call(
        partial(kernel, heads=heads),
        grid=(inputs[0].shape[0],),
        in_specs=[one(x) for x in inputs],
        out_specs=[one(x) for x in like],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in like],
        interpret=interpret,
        cost_estimate=_cost(inputs, like, heads),
        name=kernel.__name__.strip("_"),
    )
    return tuple(call(*inputs))


def _cost(inputs: tuple[jax.Array, ...], like: tuple[jax.Array, ...], heads: int) -> CostEstimate:
    """The cost of a kernel, for XLA's scheduler: two products forward, five backward."""
    from jax.experimental import pallas as pl

    batch, queries, channels = inputs[0].shape
    weights, products = batch * heads * queries * inputs[1].shape[1], 2 if len(like) == 1 else 5
    return pl.CostEstimate(
        flops=2 * products * weights * (channels // heads),
        transcendentals=weights,
        bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*inputs, *like)),
    )


def _product(a: jax.Array, b: jax.Array, over: tuple[int, int]) -> jax.Array:
    return jax.lax.dot_general(a, b, (((over[0],), (over[1],)), ((), ())), preferred_element_type=jnp.float32)


def _weights(q_ND: jax.Array, k_KD: jax.Array) -> jax.Array:
    logits_NK = _product(q_ND, k_KD, (1, 1))
    weights_NK = jnp.exp(logits_NK - jnp.max(logits_NK, axis=1, keepdims=True))
    return weights_NK / jnp.sum(weights_NK, axis=1, keepdims=True)


def _forward_kernel(q_ref: Ref, k_ref: Ref, v_ref: Ref, out_ref: Ref, *, heads: int) -> None:
    width = q_ref.shape[2] // heads
    for head in range(heads):
        own = _channels_of(head, width)
        q_ND = q_ref[0, :, own] * jnp.asarray(width**-0.5, q_ref.dtype)
        weights_NK = _weights(q_ND, k_ref[0, :, own])
        x_ND = _product(weights_NK.astype(v_ref.dtype), v_ref[0, :, own], (1, 0))
        out_ref[0, :, own] = x_ND.astype(out_ref.dtype)


def _backward_kernel(
    q_ref: Ref, k_ref: Ref, v_ref: Ref, gradient_ref: Ref, dq_ref: Ref, dk_ref: Ref, dv_ref: Ref, *, heads: int
) -> None:
    width, kind = q_ref.shape[2] // heads, q_ref.dtype
    scale = jnp.asarray(width**-0.5, kind)
    for head in range(heads):
        own = _channels_of(head, width)
        q_ND, k_KD, v_KD, g_ND = q_ref[0, :, own] * scale, k_ref[0, :, own], v_ref[0, :, own], gradient_ref[0, :, own]
        weights_NK = _weights(q_ND, k_KD)
        dv_ref[0, :, own] = _product(weights_NK.astype(kind), g_ND, (0, 0)).astype(kind)
        dweights_NK = _product(g_ND, v_KD, (1, 1))
        slope_N1 = jnp.sum(dweights_NK * weights_NK, axis=1, keepdims=True)
        dlogits_NK = (weights_NK * (dweights_NK - slope_N1)).astype(kind)
        dq_ref[0, :, own] = (_product(dlogits_NK, k_KD, (1, 0)).astype(kind) * scale).astype(kind)
        dk_ref[0, :, own] = _product(dlogits_NK, q_ND, (0, 0)).astype(kind)


def _channels_of(head: int, width: int) -> slice:
    """The channels of a head."""
    return slice(head * width, (head + 1) * width)
