"""Multi-head dot-product attention (Vaswani et al. 2017, arXiv:1706.03762) in three implementations.

`attend` takes projected queries, keys and values. So does `attend_fused`, as one kernel.
`attend_absorbed` takes tokens and the four kernels and multiplies the kernels with each other first. That is cheaper if
the heads are at least as wide as the tokens, as in the Keras tutorials.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxvit.ops.arguments import RATE, check, check_array, dtype_name
from jaxvit.ops.implementations import can_call_kernels, on_own_rows, platform_traced_for
from jaxvit.ops.short_attention import attend_short, short_fits
from jaxvit.ops.stochastic import dropout


def attend(
    q_BNMD: jax.Array,
    k_BNMD: jax.Array,
    v_BNMD: jax.Array,
    *,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
    bias_BK: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Softmax attention with M heads of D channels, from N queries to K keys.

    `jax.nn.dot_product_attention` is no substitute: it has no dropout, does not return the weights, and refuses
    bfloat16 under strict dtype promotion.

    Args:
      q_BNMD: queries, not yet scaled; this function multiplies them by D ** -0.5.
      k_BNMD: keys (B, K, M, D).
      v_BNMD: values (B, K, M, D).
      dropout_rate: probability of dropping an attention weight, 0 to 1. Without a `key` nothing is dropped.
      key: JAX random key for the dropout; None turns dropout off.
      bias_BK: added to the logits of each key (B, K), such as `jaxvit.ops.size_bias`; None = nothing.

    Returns:
      A pair: the weighted sums of the values (B, N, M, D), and the attention weights before dropout (B, M, N, K) in
      float32.

    Raises:
      ValueError: the shapes do not match, or the rate is out of range.

    Example:
      >>> q = k = v = jnp.ones((2, 5, 3, 4))
      >>> x, weights = attend(q, k, v)
      >>> x.shape, weights.shape
      ((2, 5, 3, 4), (2, 3, 5, 5))
    """
    check("attend", "dropout_rate", dropout_rate, RATE)
    for name, x in (("q_BNMD", q_BNMD), ("k_BNMD", k_BNMD), ("v_BNMD", v_BNMD)):
        check_array("attend", name, x, "B N M D")
    (batch, _, heads, head_dim), keys = q_BNMD.shape, k_BNMD.shape
    if keys != v_BNMD.shape or (keys[0], *keys[2:]) != (batch, heads, head_dim):
        raise ValueError(
            f"attend: queries {q_BNMD.shape}, keys {keys} and values {v_BNMD.shape} must be (B, N, M, D), (B, K, M, D) "
            "and (B, K, M, D)"
        )
    q_BNMD = q_BNMD * jnp.asarray(q_BNMD.shape[-1] ** -0.5, q_BNMD.dtype)
    logits_BMNK = jnp.einsum("bqmd,bkmd->bmqk", q_BNMD, k_BNMD, preferred_element_type=jnp.float32)
    if bias_BK is not None:
        logits_BMNK = logits_BMNK + bias_BK.astype(jnp.float32)[:, None, None]
    weights_BMNK = jax.nn.softmax(logits_BMNK, axis=-1)
    kept_BMNK = weights_BMNK
    if key is not None and dropout_rate > 0:
        kept_BMNK = dropout(weights_BMNK, dropout_rate, key)
    return jnp.einsum("bmqk,bkmd->bqmd", kept_BMNK.astype(v_BNMD.dtype), v_BNMD), weights_BMNK


def attend_fused(q_BNMD: jax.Array, k_BNMD: jax.Array, v_BNMD: jax.Array) -> jax.Array:
    """Softmax attention as one kernel, forward and backward, which stores no attention weights.

    On a GPU the kernel is cuDNN's, on a TPU that of `jaxvit.ops.short_attention`. Call it where `fusing_fits`. The
    softmax is float32. There is no forward-mode derivative.

    Args:
      q_BNMD: queries (B, N, M, D), not yet scaled; this function multiplies them by D ** -0.5.
      k_BNMD: keys (B, K, M, D).
      v_BNMD: values (B, K, M, D).

    Returns:
      The weighted sums of the values (B, N, M, D), of the dtype of the queries.

    Raises:
      NotImplementedError: there is no kernel for these shapes or this dtype.
      RuntimeError: the program does not run on such a device.
    """
    if platform_traced_for() == "tpu":
        return on_own_rows(attend_short)(q_BNMD, k_BNMD, v_BNMD)
    return jax.nn.dot_product_attention(q_BNMD, k_BNMD, v_BNMD, implementation="cudnn")


def fusing_fits(queries: int, keys: int, head_dim: int, dtype: DTypeLike) -> bool:
    """Whether `attend_fused` can compute attention on the platform that is traced for.

    cuDNN has such kernels for bfloat16 and float16, for heads of at most 128 channels in steps of eight, and for GPUs
    since Ampere (compute capability 8.0). `jaxvit.ops.short_attention.short_fits` says it for TPUs.

    Args:
      queries: N.
      keys: K.
      head_dim: D, channels per head.
      dtype: dtype of queries, keys and values.
    """
    platform = platform_traced_for()
    if platform == "tpu":
        return can_call_kernels() and short_fits(queries, keys, dtype, platform)
    if platform != "gpu" or jnp.dtype(dtype).itemsize != 2 or head_dim > 128 or head_dim % 8:
        return False
    if jax.default_backend() != "gpu":  # compiled ahead, for a device that is not here
        return True
    capability = getattr(jax.local_devices()[0], "compute_capability", "")  # AMD's GPUs have no such number
    return capability.replace(".", "").isdigit() and float(capability) >= 8.0


class AttentionKernels(NamedTuple):
    """The parameters of an attention layer, in Flax's layout.

    There is no key bias: it would add the same number to all logits of a query, and the softmax cancels that.

    Attributes:
      query: kernel (C, M, D).
      key: kernel (E, M, D), with E channels of the tokens attended to.
      value: kernel (E, M, D).
      out: kernel (M, D, C).
      out_bias: (C,).
      query_bias: (M, D), or None for no bias.
      value_bias: (M, D), or None for no bias.
    """

    query: jax.Array
    key: jax.Array
    value: jax.Array
    out: jax.Array
    out_bias: jax.Array
    query_bias: jax.Array | None = None
    value_bias: jax.Array | None = None


def attend_absorbed(
    q_BNC: jax.Array,
    kv_BNC: jax.Array,
    kernels: AttentionKernels,
    *,
    dtype: DTypeLike = "float32",
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
    bias_BK: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """A whole attention layer, from tokens to tokens, with two projections instead of four.

    The logits are (x Wq)(y Wk)ᵀ = x (Wq Wkᵀ) yᵀ and the output is (P y Wv) Wo = P y (Wv Wo), so Wq Wkᵀ and Wv Wo are
    computed first. The tokens themselves then serve as keys and values of all heads, and no array is transposed.

    Args:
      q_BNC: tokens that become queries (B, N, C).
      kv_BNC: tokens that are attended to (B, K, E).
      kernels: the parameters.
      dtype: dtype of the computation, 'float32', 'bfloat16' or 'float16', as a name or a type. Logits and softmax are
        float32.
      dropout_rate: probability of dropping an attention weight, 0 to 1. Without a `key` nothing is dropped.
      key: JAX random key for the dropout. The noise differs from that of `attend` with the same key, because the
        weights have another layout.
      bias_BK: added to the logits of each key (B, K), such as `jaxvit.ops.size_bias`; None = nothing.

    Returns:
      A pair: tokens (B, N, C), and the attention weights before dropout (B, N * M, K) in float32. Row n * M + m holds
      head m of query n.

    Raises:
      ValueError: the shapes do not match, or the dtype or rate is not allowed.

    Example:
      >>> kernels = AttentionKernels(*[jnp.ones((8, 2, 4))] * 3, jnp.ones((2, 4, 8)), jnp.zeros(8))
      >>> x, weights = attend_absorbed(jnp.ones((1, 5, 8)), jnp.ones((1, 5, 8)), kernels)
      >>> x.shape, weights.shape
      ((1, 5, 8), (1, 10, 5))
    """
    dtype = dtype_name("attend_absorbed", dtype)
    check("attend_absorbed", "dropout_rate", dropout_rate, RATE)
    check_array("attend_absorbed", "q_BNC", q_BNC, "B N C")
    check_array("attend_absorbed", "kv_BNC", kv_BNC, "B K E")
    p = kernels
    if q_BNC.shape[2] != p.query.shape[0] or kv_BNC.shape[2] != p.key.shape[0]:
        raise ValueError(
            f"attend_absorbed: kernels for {p.query.shape[0]} and {p.key.shape[0]} channels do not fit tokens of shape "
            f"{q_BNC.shape} and {kv_BNC.shape}"
        )
    batch, queries, channels = q_BNC.shape
    kind, keys = jnp.dtype(dtype), kv_BNC.shape[-1]
    q_BNC, kv_BNC = q_BNC.astype(kind), kv_BNC.astype(kind)
    heads, head_dim = p.query.shape[1:]

    scale = np.asarray(head_dim**-0.5, p.query.dtype)
    logit_CME = jnp.einsum("cmd,emd->cme", p.query * scale, p.key).astype(kind)
    q_BNE = q_BNC @ logit_CME.reshape(channels, heads * keys)
    if p.query_bias is not None:
        bias_ME = jnp.einsum("md,emd->me", p.query_bias * scale, p.key).astype(kind)
        q_BNE = q_BNE + bias_ME.reshape(1, 1, heads * keys)
    q_BNE = q_BNE.reshape(batch, queries * heads, keys)
    logits_BNK = jnp.einsum("bqe,bke->bqk", q_BNE, kv_BNC, preferred_element_type=jnp.float32)
    if bias_BK is not None:
        logits_BNK = logits_BNK + bias_BK.astype(jnp.float32)[:, None]
    weights_BNK = kept_BNK = jax.nn.softmax(logits_BNK, axis=-1)
    noisy = key is not None and dropout_rate > 0
    if noisy:
        kept_BNK = dropout(weights_BNK, dropout_rate, key)

    x_BNE = jnp.einsum("bqk,bke->bqe", kept_BNK.astype(kind), kv_BNC)
    output_MEC = jnp.einsum("emd,mdc->mec", p.value, p.out).astype(kind)
    x_BNC = x_BNE.reshape(batch, queries, heads * keys) @ output_MEC.reshape(heads * keys, channels)
    out_bias_C = p.out_bias
    if p.value_bias is not None:
        bias_MC = jnp.einsum("md,mdc->mc", p.value_bias, p.out)
        if noisy:  # after dropout the weights of a query no longer sum to 1
            total_BNM = jnp.sum(kept_BNK, axis=-1).reshape(batch, queries, heads)
            x_BNC = x_BNC + (total_BNM @ bias_MC).astype(kind)
        else:
            out_bias_C = out_bias_C + jnp.sum(bias_MC, axis=0)
    return x_BNC + out_bias_C.reshape(1, 1, channels).astype(kind), weights_BNK


def absorbing_pays(queries: tuple[int, ...], context: tuple[int, ...], head_dim: int) -> bool:
    """Whether `attend_absorbed` needs fewer multiply-adds per head than `attend` with its projections.

    The products of kernels cost the same for any number of tokens, so a few tokens do not repay them.

    Args:
      queries: shape (B, N, C) of the tokens that become queries. A symbolic B counts as large.
      context: shape (B, K, E) of the tokens that are attended to.
      head_dim: channels per head.
    """
    (batch, tokens, channels), (_, keys, width) = queries, context
    if head_dim < width or not isinstance(batch, int):
        return head_dim >= width
    products = 2 * batch * tokens * keys
    plain = 2 * batch * (tokens * channels + keys * width) * head_dim + products * head_dim
    return 2 * (batch * tokens + head_dim) * channels * width + products * width < plain
