"""Losses, one value per image, so that the caller can mask and average."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias, cast

import jax
import jax.numpy as jnp

# Output of a model in training: logits [B, K], or (logits, features [B, C]).
Found: TypeAlias = "jax.Array | tuple[jax.Array, jax.Array]"


def cross_entropy(logits_BK: jax.Array, targets_BK: jax.Array) -> jax.Array:
    """Computes the softmax cross-entropy [B] of float32 logits and target distributions."""
    return -jnp.sum(targets_BK * jax.nn.log_softmax(logits_BK), axis=-1)


def distillation_loss(logits_BK: jax.Array, teacher_BK: jax.Array, temperature: float) -> jax.Array:
    """Computes how far a student's softened answers are from a teacher's (Hinton et al. 2015, arXiv:1503.02531).

    Args:
      logits_BK: the student's scores, float32.
      teacher_BK: the teacher's scores; both may have outputs beyond the classes.
      temperature: T > 0, which both scores are divided by.

    Returns:
      [B]: T² times the Kullback-Leibler divergence from the student's distribution to the teacher's. T² keeps the size
      of the gradients for any T.

    Example:
      >>> distillation_loss(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 2.0]]), 2.0)
      Array([0.], dtype=float32)
    """
    student_BK = jax.nn.log_softmax(logits_BK / temperature)
    teacher_BK = jax.nn.log_softmax(teacher_BK / temperature)
    return temperature**2 * jnp.sum(jnp.exp(teacher_BK) * (teacher_BK - student_BK), axis=-1)


def feature_distance(features_BC: jax.Array, teacher_BC: jax.Array) -> jax.Array:
    """Computes 1 - cosine [B] of a student's and a teacher's features, 0 to 2; their lengths do not matter.

    Hints of a teacher's features are from Romero et al. 2014 (arXiv:1412.6550), who use squared distances of a middle
    layer.

    Example:
      >>> feature_distance(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 2.0]]))
      Array([1.], dtype=float32)
    """

    def unit(x_BC: jax.Array) -> jax.Array:
        squares = jnp.sum(jnp.square(x_BC), axis=-1, keepdims=True)
        return x_BC * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))

    return 1.0 - jnp.sum(unit(features_BC) * unit(teacher_BC), axis=-1)


def by_labels(found: Found, examples: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The criterion without a teacher: (logits [B, K], cross-entropy with `target` [B])."""
    logits_BK = cast(jax.Array, found)
    return logits_BK, cross_entropy(logits_BK, examples["target"])
