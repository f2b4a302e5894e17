"""Weighted pooling of tokens, and spreading tokens back over a map.

The two halves of TokenLearner and TokenFuser (Ryoo et al. 2021, arXiv:2106.11297). With one token the pooling is also
the sequence pooling of CCT (Hassani et al. 2021, arXiv:2104.05704).
"""

import jax
import jax.numpy as jnp


def token_weights(logits_BSN: jax.Array, *, weighting: str, mask_BN: jax.Array | None = None) -> jax.Array:
    """The weight of every place for every learned token, float32.

    Args:
      logits_BSN: scores of N places for each of S tokens.
      weighting: 'softmax' = the weights of a token add up to 1 over the places; 'sigmoid' = each place by itself.
      mask_BN: true where a place counts; the others get weight 0. A sample without any such place gets all zeros.

    Raises:
      ValueError: another weighting, or shapes that do not fit.
    """
    if weighting not in ("softmax", "sigmoid"):
        raise ValueError(f"weighting={weighting!r} is neither 'softmax' nor 'sigmoid'")
    if logits_BSN.ndim != 3:
        raise ValueError(f"token logits have shape (B, S, N), not {logits_BSN.shape}")
    logits_BSN = logits_BSN.astype(jnp.float32)
    if mask_BN is None:
        return jax.nn.softmax(logits_BSN, axis=-1) if weighting == "softmax" else jax.nn.sigmoid(logits_BSN)
    if mask_BN.shape != (logits_BSN.shape[0], logits_BSN.shape[2]):
        raise ValueError(f"a mask of shape {mask_BN.shape} does not fit token logits {logits_BSN.shape}")
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
    """S weighted sums of N tokens.

    A matrix product per sample: no (B, S, N, C) array is made.

    Args:
      x_BNC: tokens.
      logits_BSN: scores, see `token_weights`.
      weighting: 'softmax' or 'sigmoid'.
      reduce: 'sum', or 'mean' = the sum divided by N (by the number of true places where there is a mask).
      mask_BN: true where a token counts.

    Returns:
      (B, S, C), of the dtype of `x_BNC`.

    Raises:
      ValueError: another weighting or reduction, or shapes that do not fit.
    """
    if reduce not in ("sum", "mean"):
        raise ValueError(f"reduce={reduce!r} is neither 'sum' nor 'mean'")
    if x_BNC.ndim != 3 or logits_BSN.ndim != 3 or x_BNC.shape[:2] != (logits_BSN.shape[0], logits_BSN.shape[2]):
        raise ValueError(f"tokens {x_BNC.shape} and logits {logits_BSN.shape} are not (B, N, C) and (B, S, N)")
    weights_BSN = token_weights(logits_BSN, weighting=weighting, mask_BN=mask_BN)
    if reduce == "mean" and mask_BN is None:
        weights_BSN = weights_BSN / x_BNC.shape[1]
    elif reduce == "mean":
        count = jnp.maximum(jnp.sum(mask_BN.astype(jnp.float32), axis=1), 1.0)
        weights_BSN = weights_BSN / count[:, None, None]
    if mask_BN is not None:  # a weight of zero does not silence what is not finite
        x_BNC = jnp.where(mask_BN[..., None].astype(bool), x_BNC, jnp.zeros_like(x_BNC))
    return jnp.einsum("bsn,bnc->bsc", weights_BSN.astype(x_BNC.dtype), x_BNC)


def fuse_tokens(tokens_BSC: jax.Array, mix_BNS: jax.Array) -> jax.Array:
    """Spreads S tokens over N places: each place gets the sum of the tokens, weighted by its mix.

    Args:
      tokens_BSC: tokens.
      mix_BNS: weights, of any range.

    Returns:
      (B, N, C), of the dtype of `tokens_BSC`.
    """
    if tokens_BSC.ndim != 3 or mix_BNS.ndim != 3 or (tokens_BSC.shape[:2] != (mix_BNS.shape[0], mix_BNS.shape[2])):
        raise ValueError(f"tokens {tokens_BSC.shape} and mix {mix_BNS.shape} are not (B, S, C) and (B, N, S)")
    return jnp.einsum("bns,bsc->bnc", mix_BNS.astype(tokens_BSC.dtype), tokens_BSC)
