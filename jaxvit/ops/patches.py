"""Cutting images into a grid of flat patches, and putting the grid back together."""

import jax


def patch_grid(height: int, width: int, patch: int, *, crop: bool = False) -> tuple[int, int]:
    """Rows and columns of patches in an image.

    Args:
      height, width: image size in pixels.
      patch: side of a square patch in pixels.
      crop: drop the rows below and the columns right of the last whole patch instead of refusing.

    Raises:
      ValueError: the patch is larger than the image, or does not divide it and `crop` is false.
    """
    if patch < 1 or patch > min(height, width):
        raise ValueError(f"patch={patch} does not fit an image of {height}x{width} pixels")
    if not crop and (height % patch or width % patch):
        raise ValueError(
            f"patch={patch} does not divide an image of {height}x{width} pixels: choose one that does, "
            f"or crop to {height // patch * patch}x{width // patch * patch} with crop=True"
        )
    return height // patch, width // patch


def image_to_patches(x_BHWC: jax.Array, *, patch: int, crop: bool = False) -> jax.Array:
    """Cuts images into square patches that do not overlap.

    A patch is flattened by row, then column, then channel, the order of TensorFlow's `extract_patches`.

    Args:
      x_BHWC: images.
      patch: side of a patch in pixels.
      crop: allow a patch that does not divide the image; what remains at the bottom and right is dropped.

    Returns:
      (B, H // patch, W // patch, patch * patch * C)
    """
    if x_BHWC.ndim != 4:
        raise ValueError(f"image_to_patches takes images (B, H, W, C), not shape {x_BHWC.shape}")
    batch, height, width, channels = x_BHWC.shape
    rows, columns = patch_grid(height, width, patch, crop=crop)
    x_BHWC = x_BHWC[:, : rows * patch, : columns * patch]
    x = x_BHWC.reshape(batch, rows, patch, columns, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, patch * patch * channels)


def patches_to_image(patches_BHWC: jax.Array, *, patch: int) -> jax.Array:
    """The inverse of `image_to_patches` (of what it did not crop).

    Args:
      patches_BHWC: a grid of flat patches; its last axis is a multiple of patch².
      patch: side of a patch in pixels.

    Returns:
      (B, rows * patch, columns * patch, channels)
    """
    if patches_BHWC.ndim != 4:
        raise ValueError(f"patches_to_image takes a grid of patches (B, H, W, P), not shape {patches_BHWC.shape}")
    batch, rows, columns, values = patches_BHWC.shape
    channels, left = divmod(values, patch * patch)
    if left or not channels:
        raise ValueError(f"patches of {values} values are not {patch}x{patch} pixels of whole channels")
    x = patches_BHWC.reshape(batch, rows, columns, patch, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * patch, columns * patch, channels)
