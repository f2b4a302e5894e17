"""Multi-head dot-product attention (Vaswani et al. 2017, arXiv:1706.03762), in two implementations of one function.

`attend` takes projected queries, keys and values. `attend_absorbed` takes tokens and the four kernels, and multiplies
the kernels first: cheaper where heads are at least as wide as the tokens, as in the Keras tutorials.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvit.ops.stochastic import dropout


def attend(
    q_BNMD: jax.Array,
    k_BNMD: jax.Array,
    v_BNMD: jax.Array,
    *,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Softmax attention of N queries on K keys, each of M heads of D channels.

    Not `jax.nn.dot_product_attention`: it has no dropout, shows no weights, and refuses bfloat16 where implicit
    promotion of dtypes is off.

    Args:
      q_BNMD: queries; they are scaled by D ** -0.5 here.
      k_BNMD, v_BNMD: keys and values (B, K, M, D).
      dropout_rate: share of the weights that is dropped, if there is a key.
      key: for the dropout; None = none.

    Returns:
      (sums of values (B, N, M, D), weights float32 (B, M, N, K) before dropout).

    Example:
      >>> q = k = v = jnp.ones((2, 5, 3, 4))
      >>> x, weights = attend(q, k, v)
      >>> x.shape, weights.shape
      ((2, 5, 3, 4), (2, 3, 5, 5))
    """
    q_BNMD = q_BNMD * jnp.asarray(q_BNMD.shape[-1] ** -0.5, q_BNMD.dtype)
    logits_BMNK = jnp.einsum("bqmd,bkmd->bmqk", q_BNMD, k_BNMD, preferred_element_type=jnp.float32)
    weights_BMNK = jax.nn.softmax(logits_BMNK, axis=-1)
    kept_BMNK = weights_BMNK
    if key is not None and dropout_rate > 0:
        kept_BMNK = dropout(weights_BMNK, dropout_rate, key)
    return jnp.einsum("bmqk,bkmd->bqmd", kept_BMNK.astype(v_BNMD.dtype), v_BNMD), weights_BMNK


class AttentionKernels(NamedTuple):
    """The parameters of an attention, in Flax's layout.

    Attributes:
      query, key, value: (C, M, D).
      out: (M, D, C).
      out_bias: (C,).
      query_bias, value_bias: (M, D); None = no biases. The key's bias adds the same to all logits of a query, and drops
        out of the softmax.
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
    dtype: str = "float32",
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Projection, `attend` and output projection, with two projections for four.

    Of the logits (x Wq)(y Wk)ᵀ = x (Wq Wkᵀ) yᵀ, and of the output (P y Wv) Wo = P y (Wv Wo), the kernels are multiplied
    first. All heads then share their keys and values, the tokens themselves, so no array is transposed.

    Args:
      q_BNC: tokens that ask (B, N, C).
      kv_BNC: tokens that are asked (B, K, E).
      kernels: the parameters.
      dtype: of the computation; logits and softmax are float32.
      dropout_rate, key: as `attend`; the same key gives other noise than there, since the weights lie otherwise.

    Returns:
      (tokens (B, N, C), weights float32 (B, N * M, K) before dropout: row n * M + m is head m of query n).
    """
    p = kernels
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
        if noisy:  # the weights of a query do not add up to 1
            total_BNM = jnp.sum(kept_BNK, axis=-1).reshape(batch, queries, heads)
            x_BNC = x_BNC + (total_BNM @ bias_MC).astype(kind)
        else:
            out_bias_C = out_bias_C + jnp.sum(bias_MC, axis=0)
    return x_BNC + out_bias_C.reshape(1, 1, channels).astype(kind), weights_BNK


def absorbing_pays(queries: tuple[int, ...], context: tuple[int, ...], head_dim: int) -> bool:
    """Whether `attend_absorbed` has fewer multiply-adds a head than `attend` with its projections.

    Its products of kernels cost as much for one image as for many, and do not pay for a few tokens.

    Args:
      queries: shape (B, N, C); a batch that is symbolic counts as large.
      context: shape (B, K, E).
      head_dim: D.
    """
    (batch, tokens, channels), (_, keys, width) = queries, context
    if head_dim < width or not isinstance(batch, int):
        return head_dim >= width
    products = 2 * batch * tokens * keys
    plain = 2 * batch * (tokens * channels + keys * width) * head_dim + products * head_dim
    return 2 * (batch * tokens + head_dim) * channels * width + products * width < plain
