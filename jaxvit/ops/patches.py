"""Cuts images into a grid of flat patches, and puts such a grid back together."""

import jax

from jaxvit.ops.arguments import check, check_array, whole


def patch_grid(height: int, width: int, patch: int, *, crop: bool = False) -> tuple[int, int]:
    """The number of rows and columns of patches in an image.

    Args:
      height: height of the image in pixels.
      width: width of the image in pixels.
      patch: side of a square patch in pixels, 1 or more.
      crop: drop the rows below and the columns right of the last whole patch instead of raising an error.

    Returns:
      (rows, columns).

    Raises:
      ValueError: the patch is larger than the image, or does not divide it and `crop` is false.

    Example:
      >>> patch_grid(224, 196, 16, crop=True)
      (14, 12)
    """
    check("patch_grid", "patch", patch, whole(1))
    if patch > min(height, width):
        raise ValueError(f"patch={patch} does not fit an image of {height}x{width} pixels")
    if not crop and (height % patch or width % patch):
        raise ValueError(
            f"patch={patch} does not divide an image of {height}x{width} pixels: choose a patch that does, "
            f"or crop to {height // patch * patch}x{width // patch * patch} with crop=True"
        )
    return height // patch, width // patch


def image_to_patches(x_BHWC: jax.Array, *, patch: int, crop: bool = False) -> jax.Array:
    """Cuts images into square patches that do not overlap.

    A patch is flattened by row, then column, then channel, like TensorFlow's `extract_patches`.

    Args:
      x_BHWC: images (B, H, W, C).
      patch: side of a patch in pixels, 1 or more.
      crop: drop the pixels at the bottom and right that do not fill a patch instead of raising an error.

    Returns:
      (B, H // patch, W // patch, patch * patch * C).

    Raises:
      ValueError: the array is not a batch of images, or the patch does not fit it; see `patch_grid`.

    Example:
      >>> image_to_patches(jnp.ones((1, 8, 8, 3)), patch=4).shape
      (1, 2, 2, 48)
    """
    check_array("image_to_patches", "x_BHWC", x_BHWC, "B H W C")
    batch, height, width, channels = x_BHWC.shape
    rows, columns = patch_grid(height, width, patch, crop=crop)
    x_BHWC = x_BHWC[:, : rows * patch, : columns * patch]
    x = x_BHWC.reshape(batch, rows, patch, columns, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, patch * patch * channels)


def patches_to_image(patches_BHWC: jax.Array, *, patch: int) -> jax.Array:
    """Inverts `image_to_patches`; cropped pixels are lost.

    Args:
      patches_BHWC: a grid of flat patches (B, rows, columns, patch * patch * C).
      patch: side of a patch in pixels, 1 or more.

    Returns:
      (B, rows * patch, columns * patch, C).

    Raises:
      ValueError: the array is not such a grid.

    Example:
      >>> patches_to_image(jnp.ones((1, 2, 2, 48)), patch=4).shape
      (1, 8, 8, 3)
    """
    check_array("patches_to_image", "patches_BHWC", patches_BHWC, "B rows columns values")
    check("patches_to_image", "patch", patch, whole(1))
    batch, rows, columns, values = patches_BHWC.shape
    channels, left = divmod(values, patch * patch)
    if left or not channels:
        raise ValueError(
            f"patches_to_image: {values} values per patch are not {patch}x{patch} pixels of whole channels"
        )
    x = patches_BHWC.reshape(batch, rows, columns, patch, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * patch, columns * patch, channels)
