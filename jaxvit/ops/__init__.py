"""Pure functions on arrays. They depend on JAX and NumPy only.

An argument's name ends in its axes: `x_BNC` has shape (B, N, C). The letters are B batch, H height, W width, N tokens,
C channels, S learned tokens, M heads, D channels of a head, K classes (in attention: tokens attended to).

The examples assume::

    import jax
    import jax.numpy as jnp
    import numpy as np
    from jaxvit.ops import *
"""

from jaxvit.ops.activations import gelu
from jaxvit.ops.attention import attend, attend_absorbed
from jaxvit.ops.initial_values import mimetic_attention, whitening_filters
from jaxvit.ops.patches import image_to_patches, patch_grid, patches_to_image
from jaxvit.ops.pool import max_pool
from jaxvit.ops.positions import resize_positions, sincos_positions, sine_positions
from jaxvit.ops.reduction import (
    Reduced,
    compose_places,
    merge_tokens,
    most_merged,
    prune_tokens,
    size_bias,
    token_scores,
    unmerge_tokens,
)
from jaxvit.ops.shift import mask_borders, shift_channels
from jaxvit.ops.stochastic import drop_path, drop_path_rates, dropout
from jaxvit.ops.tokens import fuse_tokens, pool_tokens, token_weights

__all__ = [
    "Reduced",
    "attend",
    "attend_absorbed",
    "compose_places",
    "drop_path",
    "drop_path_rates",
    "dropout",
    "fuse_tokens",
    "gelu",
    "image_to_patches",
    "mask_borders",
    "max_pool",
    "merge_tokens",
    "mimetic_attention",
    "most_merged",
    "patch_grid",
    "patches_to_image",
    "pool_tokens",
    "prune_tokens",
    "resize_positions",
    "shift_channels",
    "sincos_positions",
    "sine_positions",
    "size_bias",
    "token_scores",
    "token_weights",
    "unmerge_tokens",
    "whitening_filters",
]
