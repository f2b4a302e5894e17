"""Fewer tokens without training: merges similar tokens, removes unimportant ones, and spreads the rest out again.

Merging is bipartite soft matching (Bolya et al. 2022, ToMe, arXiv:2210.09461, section 3 and appendix D; authors' code
facebookresearch/ToMe, `tome/merge.py`). Removing tokens by the class token's attention follows Liang et al. 2022 (EViT,
arXiv:2202.07800), without their fused token.

Which tokens go is decided by comparisons, so no gradient flows through the decision. The ranks are counted rather than
sorted: on CPUs that is faster, and converters for ONNX take it with any batch size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvit.ops.arguments import check, check_array, one_of, whole

CRITERIA = ("attention", "norm", "random")
_FIRST, _LAST = np.finfo(np.float32).max, np.finfo(np.float32).min


class Reduced(NamedTuple):
    """Tokens after merging or removing some.

    Attributes:
      tokens: (B, N', C).
      sizes: float32 (B, N'), the number of original tokens in each token; 0 = masked.
      places: int32 (B, N), where each token of the input is now; -1 = removed.

    Example:
      >>> x = jnp.ones((2, 5, 3))
      >>> [array.shape for array in merge_tokens(x, x, 2)]
      [(2, 3, 3), (2, 3), (2, 5)]
    """

    tokens: jax.Array
    sizes: jax.Array
    places: jax.Array


def merge_tokens(
    x_BNC: jax.Array,
    keys_BND: jax.Array,
    r: int,
    *,
    prefix: int = 0,
    sizes_BN: jax.Array | None = None,
    mask_BN: jax.Array | None = None,
) -> Reduced:
    """Merges r pairs of similar tokens: (B, N, C) to (B, N - r, C).

    The tokens after the prefix are dealt alternately to two sets. Each token of the first set is paired with the most
    similar one of the second, by the cosine of their keys. The r most similar pairs are merged to their mean, weighted
    by size; several tokens may go to the same one. Ties go to the lower index.

    The result has the prefix first, then the rest of the first set, then the second set, as in the authors' code. There
    the class token belongs to the first set, so with an odd prefix the first set starts with the second token after it.

    Args:
      x_BNC: tokens (B, N, C).
      keys_BND: what similarity is measured by (B, N, D): the keys of the attention, averaged over heads.
      r: number of tokens that disappear, at most half of the tokens after the prefix.
      prefix: number of leading tokens that are never merged, such as a class token and registers.
      sizes_BN: sizes of the tokens from earlier merging (B, N); None = all 1.
      mask_BN: true for valid tokens (B, N); None = all. Masked tokens are merged away first, without influence, even
        if they are not finite. No token is merged into a masked one unless r leaves no other choice.

    Returns:
      `Reduced`; tokens have the dtype of `x_BNC`. With r = 0 they are `x_BNC` itself.

    Raises:
      ValueError: r is larger than half of the tokens after the prefix, or the shapes do not match.

    Example:
      >>> x = jnp.array([[[1.0, 0.0], [2.0, 0.0], [0.0, 4.0], [0.0, 1.0]]])
      >>> merged = merge_tokens(x, x, 1)
      >>> merged.tokens
      Array([[[0. , 4. ],
              [1.5, 0. ],
              [0. , 1. ]]], dtype=float32)
      >>> merged.sizes, merged.places
      (Array([[1., 2., 1.]], dtype=float32), Array([[1, 1, 0, 2]], dtype=int32))
    """
    batch, tokens, sizes_BN = _checked("merge_tokens", x_BNC, prefix, sizes_BN, mask_BN)
    check_array("merge_tokens", "keys_BND", keys_BND, "B N D")
    if keys_BND.shape[:2] != x_BNC.shape[:2]:
        raise ValueError(f"merge_tokens: keys {keys_BND.shape} do not fit tokens {x_BNC.shape}")
    check("merge_tokens", "r", r, whole(0))
    if r > most_merged(tokens - prefix):
        raise ValueError(
            f"merge_tokens: r={r} is more than {most_merged(tokens - prefix)}, half of the {tokens - prefix} tokens "
            "that may be merged"
        )
    if r == 0:
        return Reduced(x_BNC, sizes_BN, jnp.broadcast_to(jnp.arange(tokens, dtype=jnp.int32)[None], sizes_BN.shape))
    if mask_BN is not None:
        keys_BND = _without(keys_BND, mask_BN)
        x_BNC = _without(x_BNC, mask_BN)

    def first(array: jax.Array) -> jax.Array:
        return array[:, prefix + prefix % 2 :: 2]

    def second(array: jax.Array) -> jax.Array:
        return array[:, prefix + (prefix + 1) % 2 :: 2]

    keys_BND = jax.lax.stop_gradient(keys_BND.astype(jnp.float32))
    squares = jnp.sum(jnp.square(keys_BND), axis=-1, keepdims=True)
    keys_BND = keys_BND * jax.lax.rsqrt(jnp.maximum(squares, jnp.finfo(jnp.float32).tiny))
    similar_BIJ = jnp.einsum("bid,bjd->bij", first(keys_BND), second(keys_BND))
    if mask_BN is not None:
        similar_BIJ = jnp.where(second(mask_BN)[:, None].astype(bool), similar_BIJ, _LAST)
        similar_BIJ = jnp.where(first(mask_BN)[:, :, None].astype(bool), similar_BIJ, _FIRST)
    best_BI = jnp.max(similar_BIJ, axis=-1)
    firsts, seconds = similar_BIJ.shape[1:]
    j = jnp.arange(seconds, dtype=jnp.int32)
    # The first maximum; argmax itself is a slow reduction on CPUs.
    goal_BI = jnp.min(jnp.where(similar_BIJ == best_BI[..., None], j[None, None], seconds - 1), axis=-1)
    gone_BI = _ranks(best_BI) < r
    place_BI = _count_before(~gone_BI)

    kept = firsts - r
    merge_BJI = ((j[None, :, None] == goal_BI[:, None]) & gone_BI[:, None]).astype(jnp.float32)
    merge_BJI = merge_BJI * first(sizes_BN)[:, None]
    sizes_BJ = second(sizes_BN) + jnp.sum(merge_BJI, axis=-1)
    total_BJC = jnp.einsum(
        "bji,bic->bjc", merge_BJI.astype(x_BNC.dtype), first(x_BNC), preferred_element_type=jnp.float32
    )
    total_BJC = total_BJC + second(x_BNC).astype(jnp.float32) * second(sizes_BN)[..., None]
    mean_BJC = total_BJC / jnp.where(sizes_BJ > 0, sizes_BJ, 1.0)[..., None]

    source_BI = _sources(place_BI, ~gone_BI, kept)
    tokens_BNC = [x_BNC[:, :prefix], _take(first(x_BNC), source_BI), mean_BJC.astype(x_BNC.dtype)]
    sizes = [sizes_BN[:, :prefix], _take(first(sizes_BN), source_BI), sizes_BJ]
    places = [
        jnp.broadcast_to(jnp.arange(prefix, dtype=jnp.int32)[None], (batch, prefix)),
        prefix + jnp.where(gone_BI, kept + goal_BI, place_BI),
        jnp.broadcast_to((prefix + kept + j)[None], (batch, seconds)),
    ]
    numbers = np.arange(tokens)[None]
    order = np.concatenate([numbers[:, :prefix], first(numbers), second(numbers)], axis=1)[0]  # pyright: ignore[reportArgumentType]
    return Reduced(
        jnp.concatenate(tokens_BNC, axis=1),
        jnp.concatenate(sizes, axis=1),
        jnp.concatenate(places, axis=1)[:, np.argsort(order)],
    )


def most_merged(tokens: int) -> int:
    """The largest r that `merge_tokens` takes for a number of tokens after the prefix: half of them.

    Example:
      >>> most_merged(65)
      32
    """
    check("most_merged", "tokens", tokens, whole(0))
    return tokens // 2


def unmerge_tokens(x_BMC: jax.Array, places_BN: jax.Array) -> jax.Array:
    """Copies each token to all places that were merged into it: (B, M, C) to (B, N, C).

    Args:
      x_BMC: tokens after merging.
      places_BN: the token of each place, int (B, N); -1 = removed. See `Reduced`; `compose_places` chains several
        steps.

    Returns:
      (B, N, C), of the dtype of `x_BMC`; zeros at removed places.

    Raises:
      ValueError: the shapes do not match.

    Example:
      >>> unmerge_tokens(jnp.array([[[1.0], [2.0]]]), jnp.array([[1, 0, 1, -1]]))[0, :, 0]
      Array([2., 1., 2., 0.], dtype=float32)
    """
    check_array("unmerge_tokens", "x_BMC", x_BMC, "B M C")
    check_array("unmerge_tokens", "places_BN", places_BN, "B N")
    if x_BMC.shape[0] != places_BN.shape[0]:
        raise ValueError(f"unmerge_tokens: tokens {x_BMC.shape} and places {places_BN.shape} differ in the batch")
    spread_BNC = _take(x_BMC, jnp.maximum(places_BN, 0))
    return jnp.where((places_BN >= 0)[..., None], spread_BNC, jnp.zeros_like(spread_BNC))


def compose_places(first_BN: jax.Array, then_BM: jax.Array) -> jax.Array:
    """Places after two steps: `first_BN` leads to the M tokens between them, `then_BM` from there.

    Example:
      >>> compose_places(jnp.array([[0, 1, 1, -1]]), jnp.array([[5, 7]]))
      Array([[ 5,  7,  7, -1]], dtype=int32)
    """
    check_array("compose_places", "first_BN", first_BN, "B N")
    check_array("compose_places", "then_BM", then_BM, "B M")
    return jnp.where(first_BN >= 0, _take(then_BM, jnp.maximum(first_BN, 0)), -1)


def prune_tokens(
    x_BNC: jax.Array,
    scores_BN: jax.Array,
    keep: int,
    *,
    prefix: int = 0,
    sizes_BN: jax.Array | None = None,
    mask_BN: jax.Array | None = None,
) -> Reduced:
    """Keeps the prefix and the tokens with the highest scores, in their order: (B, N, C) to (B, prefix + keep, C).

    Args:
      x_BNC: tokens (B, N, C).
      scores_BN: how important each token is (B, N); see `token_scores`. Ties go to the lower index.
      keep: number of tokens to keep besides the prefix, 1 or more.
      prefix: number of leading tokens that are always kept, such as a class token and registers.
      sizes_BN: sizes of the tokens from earlier merging (B, N); None = all 1.
      mask_BN: true for valid tokens (B, N); None = all. Masked tokens are removed first.

    Returns:
      `Reduced`; tokens have the dtype of `x_BNC`. If nothing is removed they are `x_BNC` itself.

    Raises:
      ValueError: `keep` is not a number of tokens that there are, or the shapes do not match.

    Example:
      >>> x = jnp.arange(4.0).reshape(1, 4, 1)
      >>> pruned = prune_tokens(x, jnp.array([[0.1, 0.4, 0.2, 0.3]]), 2)
      >>> pruned.tokens[0, :, 0], pruned.places
      (Array([1., 3.], dtype=float32), Array([[-1,  0, -1,  1]], dtype=int32))
    """
    batch, tokens, sizes_BN = _checked("prune_tokens", x_BNC, prefix, sizes_BN, mask_BN)
    check_array("prune_tokens", "scores_BN", scores_BN, "B N")
    if scores_BN.shape != x_BNC.shape[:2]:
        raise ValueError(f"prune_tokens: scores {scores_BN.shape} do not fit tokens {x_BNC.shape}")
    check("prune_tokens", "keep", keep, whole(1))
    if keep > tokens - prefix:
        raise ValueError(f"prune_tokens: keep={keep} is more than the {tokens - prefix} tokens after the prefix")
    own = jnp.broadcast_to(jnp.arange(prefix, dtype=jnp.int32)[None], (batch, prefix))
    if keep == tokens - prefix:
        return Reduced(x_BNC, sizes_BN, jnp.broadcast_to(jnp.arange(tokens, dtype=jnp.int32)[None], sizes_BN.shape))
    scores_BI = jax.lax.stop_gradient(scores_BN[:, prefix:].astype(jnp.float32))
    if mask_BN is not None:
        scores_BI = jnp.where(mask_BN[:, prefix:].astype(bool), scores_BI, -jnp.inf)
    stays_BI = _ranks(scores_BI) < keep
    place_BI = _count_before(stays_BI)
    source_BN = jnp.concatenate([own, prefix + _sources(place_BI, stays_BI, keep)], axis=1)
    places_BN = jnp.concatenate([own, jnp.where(stays_BI, prefix + place_BI, -1)], axis=1)
    return Reduced(_take(x_BNC, source_BN), _take(sizes_BN, source_BN), places_BN)


def token_scores(
    by: str,
    x_BNC: jax.Array,
    *,
    attention_BMQN: jax.Array | None = None,
    class_token: bool = False,
    seed: int = 0,
) -> jax.Array:
    """Scores tokens by importance, for `prune_tokens`.

    Args:
      by: 'attention' (the attention that a token receives from the class token, or from all tokens on average; mean
        over heads), 'norm' (Euclidean norm of the token) or 'random' (the same order for every sample).
      x_BNC: tokens (B, N, C).
      attention_BMQN: attention weights of M heads, from Q queries to N keys; needed for 'attention'.
      class_token: whether the first query is a class token.
      seed: seed of 'random'.

    Returns:
      (B, N) float32.

    Raises:
      ValueError: unknown criterion, or there are no attention weights for 'attention'.

    Example:
      >>> token_scores("norm", jnp.array([[[3.0, 4.0], [0.0, 1.0]]]))
      Array([[5., 1.]], dtype=float32)
    """
    check("token_scores", "by", by, one_of(CRITERIA))
    check_array("token_scores", "x_BNC", x_BNC, "B N C")
    if by == "norm":
        return jnp.sqrt(jnp.sum(jnp.square(x_BNC.astype(jnp.float32)), axis=-1))
    if by == "random":
        # NumPy's generator: jax's would be part of every exported program.
        noise_N = np.random.default_rng(seed).random(x_BNC.shape[1], dtype=np.float32)
        return jnp.broadcast_to(jnp.asarray(noise_N)[None], x_BNC.shape[:2])
    if attention_BMQN is None:
        raise ValueError("token_scores: by='attention' needs attention_BMQN, the attention weights")
    check_array("token_scores", "attention_BMQN", attention_BMQN, "B M Q N")
    attention_BMQN = attention_BMQN[:, :, :1] if class_token else attention_BMQN
    return jnp.mean(attention_BMQN.astype(jnp.float32), axis=(1, 2))


def size_bias(sizes_BN: jax.Array) -> jax.Array:
    """Proportional attention: log size, to be added to the logits of each key, so that every original token counts.

    Args:
      sizes_BN: sizes (B, N); a token of size 0 gets the lowest finite number, and so no attention.

    Example:
      >>> size_bias(jnp.array([[1.0, 2.0]]))
      Array([[0.       , 0.6931472]], dtype=float32)
    """
    check_array("size_bias", "sizes_BN", sizes_BN, "B N")
    sizes_BN = sizes_BN.astype(jnp.float32)
    return jnp.where(sizes_BN > 0, jnp.log(jnp.where(sizes_BN > 0, sizes_BN, 1.0)), _LAST)


def _checked(
    owner: str, x_BNC: jax.Array, prefix: int, sizes_BN: jax.Array | None, mask_BN: jax.Array | None
) -> tuple[int, int, jax.Array]:
    """Returns (B, N, sizes (B, N) float32 with 0 for masked tokens)."""
    check_array(owner, "x_BNC", x_BNC, "B N C")
    batch, tokens, _ = x_BNC.shape
    check(owner, "prefix", prefix, whole(0))
    if prefix >= tokens:
        raise ValueError(f"{owner}: prefix={prefix} leaves none of {tokens} tokens")
    for name, array in (("sizes_BN", sizes_BN), ("mask_BN", mask_BN)):
        if array is not None and tuple(array.shape) != (batch, tokens):
            raise ValueError(f"{owner}: {name} {tuple(array.shape)} does not fit tokens {tuple(x_BNC.shape)}")
    sizes_BN = jnp.ones((batch, tokens), jnp.float32) if sizes_BN is None else sizes_BN.astype(jnp.float32)
    if mask_BN is not None:
        sizes_BN = jnp.where(mask_BN.astype(bool), sizes_BN, 0.0)
    return batch, tokens, sizes_BN


def _without(x_BNC: jax.Array, mask_BN: jax.Array) -> jax.Array:
    return jnp.where(mask_BN[..., None].astype(bool), x_BNC, jnp.zeros_like(x_BNC))


def _ranks(scores_BI: jax.Array) -> jax.Array:
    """The rank of each score, 0 = the highest; ties go to the lower index."""
    count = scores_BI.shape[1]
    earlier = np.tril(np.ones((count, count), bool), -1)[None]  # [i, j]: j < i
    own, other = scores_BI[:, :, None], scores_BI[:, None, :]
    return jnp.sum(((other > own) | ((other == own) & earlier)).astype(jnp.int32), axis=-1)


def _count_before(flags_BI: jax.Array) -> jax.Array:
    """The number of set flags before each index."""
    count = flags_BI.shape[1]
    earlier = np.tril(np.ones((count, count), bool), -1)[None]
    return jnp.sum((flags_BI[:, None, :] & earlier).astype(jnp.int32), axis=-1)


def _sources(place_BI: jax.Array, stays_BI: jax.Array, count: int) -> jax.Array:
    """The index of the token that comes to each of `count` places."""
    i = jnp.arange(place_BI.shape[1], dtype=jnp.int32)[None, None]
    there = (place_BI[:, None] == jnp.arange(count, dtype=jnp.int32)[None, :, None]) & stays_BI[:, None]
    return jnp.sum(jnp.where(there, i, 0), axis=-1)


def _take(array: jax.Array, index_BM: jax.Array) -> jax.Array:
    """array (B, N, …) at index (B, M), whose values are known to be in range."""
    index = index_BM if array.ndim == 2 else index_BM[..., None]
    return jnp.take_along_axis(array, index, axis=1, mode="promise_in_bounds")
