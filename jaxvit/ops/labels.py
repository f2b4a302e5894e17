"""Class labels as target distributions for the loss."""

import jax

from jaxvit.ops.arguments import RATE, check, whole


def one_hot(labels_B: jax.Array, classes: int, smoothing: float = 0.0) -> jax.Array:
    """One-hot targets with label smoothing (Szegedy et al. 2016, arXiv:1512.00567, section 7).

    The label's class gets `1 - smoothing`, and every class gets `smoothing / K` on top. `optax.smooth_labels` computes
    the same function with the factors in another order, so its compiled program differs.

    Args:
      labels_B: whole numbers from 0 to K - 1. A label outside that range gives `smoothing / K` for every class.
      classes: K, 1 or more.
      smoothing: probability mass that is spread evenly over all classes, 0 to 1.

    Returns:
      (B, K) float32.

    Raises:
      ValueError: `classes` or `smoothing` is out of range.

    Example:
      >>> one_hot(jnp.array([1]), 4, 0.2)
      Array([[0.05, 0.85, 0.05, 0.05]], dtype=float32)
    """
    check("one_hot", "classes", classes, whole(1))
    check("one_hot", "smoothing", smoothing, RATE)
    return jax.nn.one_hot(labels_B, classes) * (1.0 - smoothing) + smoothing / classes
