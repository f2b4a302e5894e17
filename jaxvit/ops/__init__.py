"""Pure functions on arrays: jax only, no Flax, no configuration.

Axis letters: B batch, H W grid, N tokens, C channels, S learned tokens, M heads, K classes.
"""

from jaxvit.ops.patches import image_to_patches, patch_grid, patches_to_image
from jaxvit.ops.positions import resize_positions, sincos_positions, sine_positions
from jaxvit.ops.stochastic import drop_path, drop_path_rates, dropout

__all__ = [
    "drop_path",
    "drop_path_rates",
    "dropout",
    "image_to_patches",
    "patch_grid",
    "patches_to_image",
    "resize_positions",
    "sincos_positions",
    "sine_positions",
]
