"""Losses, one value per image, so that the caller can mask and average."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def cross_entropy(logits_BK: jax.Array, targets_BK: jax.Array) -> jax.Array:
    """Computes the softmax cross-entropy [B] of float32 logits and target distributions."""
    return -jnp.sum(targets_BK * jax.nn.log_softmax(logits_BK), axis=-1)
