"""Activation functions for arrays of any floating dtype."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxvit.ops.arguments import check, check_floating, one_of
from jaxvit.ops.implementations import implementation


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x Φ(x) (Hendrycks and Gimpel 2016, arXiv:1606.08415).

    `jaxvit.ops.implementations` chooses the implementation. The default computes erf in float32, as PyTorch and
    TensorFlow do. `jax.nn.gelu` uses erfc, which is more accurate in the left tail, where the result is below 1e-6 in
    size, and is slower on CPU.

    Args:
      x: any shape, any floating dtype.

    Returns:
      An array of the same shape and dtype.

    Raises:
      ValueError: x is not of a floating dtype.

    Example:
      >>> [round(y, 3) for y in gelu(jnp.array([-1.0, 0.0, 1.0])).tolist()]
      [-0.159, 0.0, 0.841]
    """
    check_floating("gelu", "x", x)
    if implementation("gelu") == "erfc":
        return jax.nn.gelu(x, approximate=False)
    return _gelu_by_erf(x)


@jax.custom_jvp
def _gelu_by_erf(x: jax.Array) -> jax.Array:
    wide, share = _cumulative(x)
    return (wide * share).astype(x.dtype)


@_gelu_by_erf.defjvp
def _gelu_by_erf_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """An explicit derivative: the backward pass keeps one array of x's dtype instead of three float32 arrays."""
    ((x,), (dx,)) = primals, tangents
    wide, share = _cumulative(x)
    slope = share + wide * jnp.exp(-0.5 * wide * wide) * np.asarray((2 * np.pi) ** -0.5, wide.dtype)
    return (wide * share).astype(x.dtype), dx * slope.astype(x.dtype)


def _cumulative(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x in float32 or wider, and the cumulative distribution function of the standard normal at x."""
    wide = x.astype(jnp.float32) if x.dtype.itemsize < 4 else x
    erf = _rational_erf if implementation("gelu") == "rational" else jax.lax.erf
    return wide, 0.5 * (1.0 + erf(wide * np.asarray(0.5**0.5, wide.dtype)))


# Coefficients of Eigen's generic_fast_erf (Eigen/src/SpecialFunctions), which XLA uses too: erf(x) = x p(x²) / q(x²),
# accurate to float32 on [-4, 4], with x clamped to that range. Highest power first.
_ERF_P = (
    *(-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05),
    *(-7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02),
)
_ERF_Q = (
    *(-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03),
    -1.42647390514189e-02,
)


def _rational_erf(x: jax.Array) -> jax.Array:
    """erf as a rational polynomial, for exported programs whose runtime lacks XLA's erf."""
    x = jnp.clip(x, -4.0, 4.0)
    square = x * x
    p, q = (jnp.polyval(np.asarray(each, np.float32), square, unroll=16) for each in (_ERF_P, _ERF_Q))
    return x * p / q


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """Returns an activation by name.

    Args:
      name: 'gelu' (exact, by erf), 'gelu_tanh' (its tanh approximation), 'relu' or 'tanh'.

    Raises:
      ValueError: the name is unknown.
    """
    check("activation", "name", name, one_of(ACTIVATIONS))
    return ACTIVATIONS[name]
