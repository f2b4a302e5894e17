"""Moves groups of channels by a pixel: the mixing step of ShiftViT (Wang et al. 2022, arXiv:2201.10801).

`shift_channels` is the paper's operation. The Keras tutorial computes `mask_borders` instead: it crops a row or column
and pads on the same side, so nothing moves, and one border of each group becomes zero.
"""

import jax
import jax.numpy as jnp

from jaxvit.ops.arguments import check, check_array, whole

# For each direction: the axis of the move, and the end of that axis that is empty after it.
_DIRECTIONS = {"left": (2, "last"), "right": (2, "first"), "up": (1, "last"), "down": (1, "first")}


def _groups(owner: str, x_BHWC: jax.Array, groups: int, pixels: int) -> tuple[list[jax.Array], jax.Array]:
    """The channels to move, one array for each direction, and the other channels."""
    check_array(owner, "x_BHWC", x_BHWC, "B H W C")
    check(owner, "groups", groups, whole(4))
    check(owner, "pixels", pixels, whole(0))
    channels = x_BHWC.shape[-1]
    if groups > channels:
        raise ValueError(f"{owner}: groups={groups} must not exceed the {channels} channels")
    width = channels // groups
    moved = [x_BHWC[..., i * width : (i + 1) * width] for i in range(4)]
    return moved, x_BHWC[..., 4 * width :]


def shift_channels(x_BHWC: jax.Array, *, groups: int = 12, pixels: int = 1) -> jax.Array:
    """Moves four groups of channels by some pixels: one left, one right, one up, one down. The others stay.

    Args:
      x_BHWC: maps (B, H, W, C).
      groups: number of groups, from 4 to C. C // groups channels move in each direction.
      pixels: distance of the move, 0 or more. The pixels that become free are zero.

    Returns:
      (B, H, W, C), with the channels in the order left, right, up, down, not moved.

    Raises:
      ValueError: the array is not a batch of maps, or an argument is out of range.

    Example:
      >>> x = jnp.tile(jnp.arange(9.0).reshape(1, 3, 3, 1), 4)  # four equal channels
      >>> shift_channels(x, groups=4)[0, :, :, 0]  # the first one moves left
      Array([[1., 2., 0.],
             [4., 5., 0.],
             [7., 8., 0.]], dtype=float32)
    """
    moved, rest = _groups("shift_channels", x_BHWC, groups, pixels)
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
    """Sets to zero the pixels that `shift_channels` would leave empty, and moves nothing.

    Args:
      x_BHWC: maps (B, H, W, C).
      groups: number of groups, from 4 to C. One border of C // groups channels becomes zero for each direction.
      pixels: width of the border, 0 or more.

    Returns:
      (B, H, W, C), with the channels in the order left, right, up, down, not masked.

    Raises:
      ValueError: the array is not a batch of maps, or an argument is out of range.

    Example:
      >>> mask_borders(jnp.ones((1, 2, 3, 4)), groups=4)[0, :, :, 0]
      Array([[1., 1., 0.],
             [1., 1., 0.]], dtype=float32)
    """
    moved, rest = _groups("mask_borders", x_BHWC, groups, pixels)
    out = []
    for x, (axis, empty) in zip(moved, _DIRECTIONS.values(), strict=True):
        size = x.shape[axis]
        place = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)
        kept = place < size - pixels if empty == "last" else place >= pixels
        out.append(jnp.where(kept, x, jnp.zeros_like(x)))
    return jnp.concatenate([*out, rest], axis=-1)
