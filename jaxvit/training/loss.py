"""Losses: one value an image, so that the caller can mask and average."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def cross_entropy(logits_BK: jax.Array, targets_BK: jax.Array) -> jax.Array:
    """Softmax cross-entropy [B] of float32 logits against a distribution over the classes."""
    return -jnp.sum(targets_BK * jax.nn.log_softmax(logits_BK), axis=-1)
