"""Initial values that follow a formula: mimetic attention and whitening filters.

Papers: Trockman and Kolter 2023, "Mimetic Initialization of Self-Attention Layers" (arXiv:2305.09828). For the
whitening filters, Page 2018 ("How to Train Your ResNet") as in Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a
Single GPU" (arXiv:2404.00498).

`mimetic_attention` departs from the paper as follows:

- Value and output. The paper factors one C x C matrix, .4 Z - .4 I, over all heads together and splits the factors into
  heads. `joint=True` does that. By default each head factors a separate matrix, (.4 Z - .4 I) / heads, with the best
  approximation of the head's rank. If the heads are at least C wide, as in the tutorials, nothing is lost, and the sum
  over the heads has the mean of the paper's matrix. Narrower heads keep only the largest singular values, and the sum
  is a weaker negative identity than the paper's.
- Heads wider than C, which the paper does not have. A C x C matrix has only C singular values, and columns of zeros in
  both factors would never learn. So the factors are multiplied by a random matrix with orthonormal rows and by its
  transpose, which leaves their product unchanged.
- Z is normal, as in the paper's text. The paper's code also has a uniform Z with the same variance, 1/C.
- Biases are left alone. They start at zero, as in the paper's models.

`whitening_filters` departs from Jordan 2024 as follows: the sign of each filter is fixed, so equal moments give equal
filters on every machine, and the number of filters need not match the number of outputs; see `place_filters`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxvit.ops.arguments import POSITIVE, check, whole


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
    """Draws self-attention kernels whose heads attend to similar tokens and subtract part of what they read.

    Each Z below is a separate C x C matrix of normal numbers with variance 1/C. Per head, Wq Wkᵀ = a Z + b I with
    (a, b) = `query_key`, and Wv Wo = (a Z - b I) / heads with (a, b) = `value_output`. If U S Vᵀ is the singular value
    decomposition of the right-hand side, the two factors are the first `head_dim` columns of U √S and of V √S.

    Args:
      key: JAX random key.
      channels: C, channels of a token.
      heads: number of heads.
      head_dim: channels per head.
      query_key: (strength of the noise, strength of the identity).
      value_output: (strength of the noise, strength of the negative identity).
      joint: draw one matrix for all heads, as in the paper: the sum of Wv Wo over the heads is a Z - b I. The
        docstring of `jaxvit.ops.initial_values` compares the two.

    Returns:
      float32 kernels: 'query', 'key' and 'value' of shape (C, heads, head_dim), 'out' of shape (heads, head_dim, C).

    Raises:
      ValueError: a size is below 1.

    Example:
      >>> kernels = mimetic_attention(jax.random.key(0), channels=64, heads=1, head_dim=64)
      >>> product = kernels["query"][:, 0] @ kernels["key"][:, 0].T
      >>> round(float(jnp.mean(jnp.diag(product))), 1)
      0.7
    """
    for name, size in (("channels", channels), ("heads", heads), ("head_dim", head_dim)):
        check("mimetic_attention", name, size, whole(1))
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
    """Factors (M, C, rank) and (M, rank, C) of the best approximation of that rank to each matrix."""
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


# One matrix at a time, also under vmap. On CPU, jax's LAPACK calls split a batch over the thread pool that the devices
# run on, and wait for it. If several devices do that at once, all of them wait forever.
@jax.custom_batching.sequential_vmap
def _svd(matrix_CC: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    left_CC, values_C, right_CC = jnp.linalg.svd(matrix_CC)
    return left_CC, values_C, right_CC


@jax.custom_batching.sequential_vmap
def _orthonormal(matrix_DC: jax.Array) -> jax.Array:
    return jnp.linalg.qr(matrix_DC)[0]


def whitening_filters(moments_PP: np.ndarray, eps: float = 5e-4) -> np.ndarray:
    """Whitening filters: their responses to patches are uncorrelated and have second moments near 1.

    Filter i is the eigenvector of the i-th largest eigenvalue λ of the moments, divided by √(λ + eps). Its responses
    have second moment λ / (λ + eps), so directions with hardly any variance are not amplified. The sign of each filter
    is chosen so that its largest element by size is positive.

    Args:
      moments_PP: mean of x xᵀ over flat patches x of P values; their covariance if the mean patch is 0.
      eps: a number above 0, in units of the moments, such as squared normalised pixels.

    Returns:
      (P, P) float32, one filter per row.

    Raises:
      ValueError: the moments are not a square matrix, or eps is not above 0.

    Example:
      >>> whitening_filters(np.diag([4.0, 1.0]), eps=1e-6).round(3)
      array([[0.5, 0. ],
             [0. , 1. ]], dtype=float32)
    """
    check("whitening_filters", "eps", eps, POSITIVE)
    if np.ndim(moments_PP) != 2 or np.shape(moments_PP)[0] != np.shape(moments_PP)[1]:
        raise ValueError(f"whitening_filters: moments_PP must have shape (P, P), not {np.shape(moments_PP)}")
    values_P, vectors_PP = np.linalg.eigh(np.asarray(moments_PP, np.float64))
    filters_PP = vectors_PP.T[::-1] / np.sqrt(np.maximum(values_P[::-1], 0.0) + eps)[:, None]
    largest_P1 = np.take_along_axis(filters_PP, np.abs(filters_PP).argmax(axis=1, keepdims=True), axis=1)
    return (filters_PP * np.sign(largest_P1)).astype(np.float32)


def place_filters(kernel: jax.Array, filters_PP: jax.Array | np.ndarray) -> jax.Array:
    """Writes filters into the first outputs of a kernel (…, O) with P values per output.

    The first P outputs become the filters and the next P their negatives, until the outputs run out. Further outputs
    keep their values. With fewer outputs than filters only the first filters are used.
    """
    outputs = kernel.shape[-1]
    drawn_PO = kernel.reshape(-1, outputs)
    filters_PP = jnp.asarray(filters_PP, kernel.dtype)
    both_PO = jnp.concatenate([filters_PP.T, -filters_PP.T], axis=1)[:, :outputs]
    return jnp.concatenate([both_PO, drawn_PO[:, both_PO.shape[1] :]], axis=1).reshape(kernel.shape)


def patches_of(x_BHWC: np.ndarray, window: tuple[int, int], strides: tuple[int, int]) -> np.ndarray:
    """All windows inside the images, (B h w, P), each flattened by row, column and channel like a kernel."""
    x = np.lib.stride_tricks.sliding_window_view(x_BHWC, window, axis=(1, 2))[:, :: strides[0], :: strides[1]]
    return np.moveaxis(x, 3, -1).reshape(-1, window[0] * window[1] * x_BHWC.shape[-1])
