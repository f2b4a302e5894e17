"""Class labels as distributions over the classes, the targets of the loss."""

import jax


def one_hot(labels_B: jax.Array, classes: int, smoothing: float = 0.0) -> jax.Array:
    """Targets (B, K): `1 - smoothing` on the label, plus `smoothing / K` on every class (Szegedy et al. 2016,
    arXiv:1512.00567, section 7).

    `optax.smooth_labels` is the same function; it multiplies in the other order, so its compiled program is another.

    Args:
      labels_B: whole numbers, 0 to K - 1. A label outside has `smoothing / K` on every class and nothing else.
      classes: K.
      smoothing: share of each target that all classes get alike, 0 to 1.

    Example:
      >>> one_hot(jnp.array([1]), 4, 0.2)
      Array([[0.05, 0.85, 0.05, 0.05]], dtype=float32)
    """
    return jax.nn.one_hot(labels_B, classes) * (1.0 - smoothing) + smoothing / classes
