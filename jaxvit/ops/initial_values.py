"""Initial values that follow a formula: attention that begins as trained attention looks, filters that whiten.

Papers: Trockman and Kolter 2023, "Mimetic Initialization of Self-Attention Layers" (arXiv:2305.09828); whitening
filters Page 2018 ("How to Train Your ResNet") as in Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU"
(arXiv:2404.00498).

Departures from the papers, in `mimetic_attention`:

- Value and output. The paper writes one C x C matrix, .4 Z - .4 I, as a product over all heads together, and cuts its
  factors into heads: `joint=True`. Without `joint` each head has a matrix of its own, (.4 Z - .4 I) / heads, whose best
  approximation of the head's rank is taken. Where heads are at least C wide, as in the tutorials, nothing is lost and
  the sum over the heads has the paper's mean. Narrower heads keep their largest singular values only, and the sum is a
  weaker negative identity than the paper's.
- Heads wider than C, which the paper does not have: a C x C matrix has no further singular values, and zeros in both
  factors would never learn. So the factors are multiplied by a random matrix with orthonormal rows and its transpose,
  which leaves their product as it is.
- Z is drawn from a normal distribution, as the paper writes; its code also has a uniform one of the same variance, 1/C.
- Biases are not touched. The paper's models start with zeros there, and so do those of this package.

Departures from Jordan 2024, in `whitening_filters`: the sign of a filter is fixed, so that the same moments give the
same filters everywhere; and the filters may be fewer or more than there is room for, see `place_filters`.
"""

import jax
import jax.numpy as jnp
import numpy as np


def mimetic_attention(
    key: jax.Array,
    channels: int,
    heads: int,
    head_dim: int,
    *,
    query_key: tuple[float, float] = (0.7, 0.7),
    value_output: tuple[float, float] = (0.4, 0.4),
    joint: bool = False,
) -> dict[str, jax.Array]:
    """Kernels of a self-attention whose heads look at similar tokens and take away a part of what they find.

    Z stands for a C x C matrix of normal numbers of variance 1/C, another one in each place. Per head,
    Wq Wkᵀ = a Z + b I with (a, b) = `query_key`, and Wv Wo = (a Z - b I) / heads with (a, b) = `value_output`. With the
    singular value decomposition U S Vᵀ of the right-hand side, the two factors are the first `head_dim` columns of
    U √S and of V √S.

    Args:
      key: for all Z.
      channels: C, of the tokens.
      heads, head_dim: of the attention.
      query_key, value_output: strength of the noise, strength of the (negative) identity.
      joint: the sum of Wv Wo over all heads is a Z - b I, as in the paper; see the top of this file.

    Returns:
      {'query', 'key', 'value': (C, heads, head_dim), 'out': (heads, head_dim, C)}, float32.

    Example:
      >>> kernels = mimetic_attention(jax.random.key(0), 128, 2, 128)
      >>> product = kernels["query"][:, 0] @ kernels["key"][:, 0].T
      >>> round(float(jnp.mean(jnp.diag(product))), 1)
      0.7
    """
    keys = jax.random.split(key, 4)
    identity = jnp.eye(channels)[None]

    def noise(key: jax.Array, count: int) -> jax.Array:
        return jax.random.normal(key, (count, channels, channels)) * channels**-0.5

    a, b = query_key
    query_MCD, key_MDC = _factors(keys[1], a * noise(keys[0], heads) + b * identity, head_dim)
    a, b = value_output
    if joint:
        value_1CD, out_1DC = _factors(keys[3], a * noise(keys[2], 1) - b * identity, heads * head_dim)
        value_CMD = value_1CD.reshape(channels, heads, head_dim)
        out_MDC = out_1DC.reshape(heads, head_dim, channels)
    else:
        value_MCD, out_MDC = _factors(keys[3], (a * noise(keys[2], heads) - b * identity) / heads, head_dim)
        value_CMD = value_MCD.swapaxes(0, 1)
    return {
        "query": query_MCD.swapaxes(0, 1),
        "key": key_MDC.transpose(2, 0, 1),
        "value": value_CMD,
        "out": out_MDC,
    }


def _factors(key: jax.Array, matrices_MCC: jax.Array, rank: int) -> tuple[jax.Array, jax.Array]:
    """(M, C, rank) and (M, rank, C), whose products are the best approximations of this rank to the matrices."""
    count, channels, _ = matrices_MCC.shape
    left_MCC, values_MC, right_MCC = jax.vmap(_svd)(matrices_MCC)
    kept = min(rank, channels)
    root_MC = jnp.sqrt(values_MC[:, :kept])
    left_MCD, right_MDC = left_MCC[:, :, :kept] * root_MC[:, None], right_MCC[:, :kept] * root_MC[:, :, None]
    if rank > channels:
        turn_MDC = jax.vmap(_orthonormal)(jax.random.normal(key, (count, rank, channels)))
        left_MCD = jnp.einsum("mce,mde->mcd", left_MCD, turn_MDC, precision="highest")
        right_MDC = jnp.einsum("mde,mec->mdc", turn_MDC, right_MDC, precision="highest")
    return left_MCD, right_MDC


# One matrix at a time, whatever vmap says. On CPUs, jax's LAPACK calls spread a batch over the threads that the devices
# themselves run on, and wait for them: where each of several devices does so at once, all of them wait for ever.
@jax.custom_batching.sequential_vmap
def _svd(matrix_CC: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    left_CC, values_C, right_CC = jnp.linalg.svd(matrix_CC)
    return left_CC, values_C, right_CC


@jax.custom_batching.sequential_vmap
def _orthonormal(matrix_DC: jax.Array) -> jax.Array:
    return jnp.linalg.qr(matrix_DC)[0]


def whitening_filters(moments_PP: np.ndarray, eps: float = 5e-4) -> np.ndarray:
    """Filters whose responses to patches are uncorrelated and have a second moment of 1: principal components, scaled.

    Filter i is the eigenvector of the i-th largest eigenvalue λ, divided by √(λ + eps): responses have the second
    moment λ / (λ + eps), so what hardly occurs is not blown up. Of each filter the largest value by size is positive.

    Args:
      moments_PP: mean of x xᵀ over patches x of P values: their covariance, where the mean patch is 0.
      eps: in the units of the moments, such as normalised pixels squared.

    Returns:
      (P, P) float32, a filter a row.
    """
    values_P, vectors_PP = np.linalg.eigh(np.asarray(moments_PP, np.float64))
    filters_PP = vectors_PP.T[::-1] / np.sqrt(np.maximum(values_P[::-1], 0.0) + eps)[:, None]
    largest_P1 = np.take_along_axis(filters_PP, np.abs(filters_PP).argmax(axis=1, keepdims=True), axis=1)
    return (filters_PP * np.sign(largest_P1)).astype(np.float32)


def place_filters(kernel: jax.Array, filters_PP: jax.Array) -> jax.Array:
    """A kernel (…, O), of P values for each output, that begins with the filters.

    The first P outputs are the filters, the next P their negatives, as far as there is room; what is left over stays as
    it is. Fewer outputs than filters take the first of these.
    """
    outputs = kernel.shape[-1]
    drawn_PO = kernel.reshape(-1, outputs)
    filters_PP = jnp.asarray(filters_PP, kernel.dtype)
    both_PO = jnp.concatenate([filters_PP.T, -filters_PP.T], axis=1)[:, :outputs]
    return jnp.concatenate([both_PO, drawn_PO[:, both_PO.shape[1] :]], axis=1).reshape(kernel.shape)


def patches_of(x_BHWC: np.ndarray, window: tuple[int, int], strides: tuple[int, int]) -> np.ndarray:
    """(B h w, P): the windows that lie wholly inside, each flattened by row, column and channel, as a kernel is."""
    x = np.lib.stride_tricks.sliding_window_view(x_BHWC, window, axis=(1, 2))[:, :: strides[0], :: strides[1]]
    return np.moveaxis(x, 3, -1).reshape(-1, window[0] * window[1] * x_BHWC.shape[-1])
