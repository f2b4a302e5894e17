"""Weighted pooling of tokens, and its opposite, which spreads a few tokens over a map.

TokenLearner and TokenFuser are built on these (Ryoo et al. 2021, arXiv:2106.11297). Pooling to one token is CCT's
sequence pooling (Hassani et al. 2021, arXiv:2104.05704).
"""

import jax
import jax.numpy as jnp

from jaxvit.ops.arguments import check, check_array, one_of

WEIGHTINGS = ("softmax", "sigmoid")


def token_weights(logits_BSN: jax.Array, *, weighting: str, mask_BN: jax.Array | None = None) -> jax.Array:
    """Turns scores into pooling weights.

    Args:
      logits_BSN: scores (B, S, N) of N input tokens for each of S output tokens.
      weighting: 'softmax' (the weights of each output token sum to 1) or 'sigmoid' (each weight by itself).
      mask_BN: true for valid input tokens (B, N); None = all. Masked tokens get weight 0. If a sample has no valid
        token, all its weights are 0.

    Returns:
      (B, S, N) float32.

    Raises:
      ValueError: the weighting is unknown, or the shapes do not match.

    Example:
      >>> token_weights(jnp.zeros((1, 1, 4)), weighting="softmax", mask_BN=jnp.array([[True, True, False, False]]))
      Array([[[0.5, 0.5, 0. , 0. ]]], dtype=float32)
    """
    check("token_weights", "weighting", weighting, one_of(WEIGHTINGS))
    check_array("token_weights", "logits_BSN", logits_BSN, "B S N")
    logits_BSN = logits_BSN.astype(jnp.float32)
    if mask_BN is None:
        return jax.nn.softmax(logits_BSN, axis=-1) if weighting == "softmax" else jax.nn.sigmoid(logits_BSN)
    if mask_BN.shape != (logits_BSN.shape[0], logits_BSN.shape[2]):
        raise ValueError(f"token_weights: a mask of shape {mask_BN.shape} does not fit logits {logits_BSN.shape}")
    keep = jnp.broadcast_to(mask_BN.astype(bool)[:, None], logits_BSN.shape)
    if weighting == "softmax":
        logits_BSN = jnp.where(keep, logits_BSN, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(logits_BSN, axis=-1)
    else:
        weights = jax.nn.sigmoid(logits_BSN)
    return jnp.where(keep, weights, 0.0)


def pool_tokens(
    x_BNC: jax.Array,
    logits_BSN: jax.Array,
    *,
    weighting: str,
    reduce: str = "sum",
    mask_BN: jax.Array | None = None,
) -> jax.Array:
    """Pools N tokens to S weighted sums.

    One matrix product per sample; no (B, S, N, C) array is made.

    Args:
      x_BNC: tokens (B, N, C).
      logits_BSN: scores (B, S, N); see `token_weights`.
      weighting: 'softmax' or 'sigmoid'; see `token_weights`.
      reduce: 'sum' or 'mean', which divides the sum by N, or by the number of valid tokens if there is a mask.
      mask_BN: true for valid tokens (B, N); None = all. Masked tokens have no influence, even if they are not finite.

    Returns:
      (B, S, C), of the dtype of `x_BNC`.

    Raises:
      ValueError: `weighting` or `reduce` is unknown, or the shapes do not match.

    Example:
      >>> pool_tokens(jnp.ones((2, 196, 192)), jnp.zeros((2, 8, 196)), weighting="softmax").shape
      (2, 8, 192)
    """
    check("pool_tokens", "reduce", reduce, one_of(("sum", "mean")))
    if x_BNC.ndim != 3 or logits_BSN.ndim != 3 or x_BNC.shape[:2] != (logits_BSN.shape[0], logits_BSN.shape[2]):
        raise ValueError(
            f"pool_tokens: tokens {x_BNC.shape} and logits {logits_BSN.shape} must be (B, N, C) and (B, S, N)"
        )
    weights_BSN = token_weights(logits_BSN, weighting=weighting, mask_BN=mask_BN)
    if reduce == "mean" and mask_BN is not None:
        count = jnp.maximum(jnp.sum(mask_BN.astype(jnp.float32), axis=1), 1.0)
        weights_BSN = weights_BSN / count[:, None, None]
    elif reduce == "mean":
        weights_BSN = weights_BSN / x_BNC.shape[1]
    if mask_BN is not None:  # 0 * inf and 0 * nan are nan
        x_BNC = jnp.where(mask_BN[..., None].astype(bool), x_BNC, jnp.zeros_like(x_BNC))
    return jnp.einsum("bsn,bnc->bsc", weights_BSN.astype(x_BNC.dtype), x_BNC)


def fuse_tokens(tokens_BSC: jax.Array, mix_BNS: jax.Array) -> jax.Array:
    """Spreads S tokens over N places: each place gets a weighted sum of the tokens.

    Args:
      tokens_BSC: tokens (B, S, C).
      mix_BNS: weights (B, N, S), of any value.

    Returns:
      (B, N, C), of the dtype of `tokens_BSC`.

    Raises:
      ValueError: the shapes do not match.

    Example:
      >>> fuse_tokens(jnp.ones((2, 8, 192)), jnp.ones((2, 196, 8))).shape
      (2, 196, 192)
    """
    if tokens_BSC.ndim != 3 or mix_BNS.ndim != 3 or tokens_BSC.shape[:2] != (mix_BNS.shape[0], mix_BNS.shape[2]):
        raise ValueError(
            f"fuse_tokens: tokens {tokens_BSC.shape} and mix {mix_BNS.shape} must be (B, S, C) and (B, N, S)"
        )
    return jnp.einsum("bns,bsc->bnc", mix_BNS.astype(tokens_BSC.dtype), tokens_BSC)
