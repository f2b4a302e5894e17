"""Moving groups of channels by a pixel: the mixing step of ShiftViT (Wang et al. 2022, arXiv:2201.10801).

`shift_channels` is the paper's operation. `mask_borders` is what the Keras tutorial computes in its place: it crops a
row or column and pads it back on the same side, so nothing moves; one border of each group becomes zero.
"""

import jax
import jax.numpy as jnp

# Per direction: the axis moved along, and the end of that axis which the content leaves empty.
_DIRECTIONS = {"left": (2, "last"), "right": (2, "first"), "up": (1, "last"), "down": (1, "first")}


def _groups(x_BHWC: jax.Array, groups: int, pixels: int) -> tuple[list[jax.Array], jax.Array]:
    if x_BHWC.ndim != 4:
        raise ValueError(f"a shift takes maps (B, H, W, C), not shape {x_BHWC.shape}")
    channels = x_BHWC.shape[-1]
    if groups < 4 or channels // groups < 1:
        raise ValueError(
            f"groups={groups} of {channels} channels: four directions need at least four groups of one channel"
        )
    if pixels < 0:
        raise ValueError(f"pixels={pixels} is negative")
    width = channels // groups
    moved = [x_BHWC[..., i * width : (i + 1) * width] for i in range(4)]
    return moved, x_BHWC[..., 4 * width :]


def shift_channels(x_BHWC: jax.Array, *, groups: int = 12, pixels: int = 1) -> jax.Array:
    """Moves four groups of channels left, right, up and down; the rest stays where it is.

    Args:
      x_BHWC: maps.
      groups: C // groups channels move in each direction, so 4 / groups of all channels move.
      pixels: how far. What enters from outside is zero; from the size of the map on, everything is.

    Returns:
      An array of the same shape. Channel order: left, right, up, down, untouched.

    Raises:
      ValueError: the input is no map, or there are fewer than four groups or no channel in a group.
    """
    moved, rest = _groups(x_BHWC, groups, pixels)
    out = []
    for x, (axis, empty) in zip(moved, _DIRECTIONS.values(), strict=True):
        size = x.shape[axis]
        step = min(pixels, size)
        padding = [(0, 0)] * 4
        padding[axis] = (0, step) if empty == "last" else (step, 0)
        kept = (step, size) if empty == "last" else (0, size - step)
        out.append(jnp.pad(jax.lax.slice_in_dim(x, *kept, axis=axis), padding))
    return jnp.concatenate([*out, rest], axis=-1)


def mask_borders(x_BHWC: jax.Array, *, groups: int = 12, pixels: int = 1) -> jax.Array:
    """Zeroes the border that `shift_channels` would leave empty, and moves nothing.

    Arguments, order of channels and errors as `shift_channels`.
    """
    moved, rest = _groups(x_BHWC, groups, pixels)
    out = []
    for x, (axis, empty) in zip(moved, _DIRECTIONS.values(), strict=True):
        size = x.shape[axis]
        place = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)
        kept = place < size - pixels if empty == "last" else place >= pixels
        out.append(jnp.where(kept, x, jnp.zeros_like(x)))
    return jnp.concatenate([*out, rest], axis=-1)
