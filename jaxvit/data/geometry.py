"""Geometric transforms of a batch on the device: crops, flips, resizing and affine warps, drawn per image.

Each random function takes one key per image, so an image's draw depends neither on the other images nor on the number
of devices. Crops and flips keep uint8; functions that interpolate return float32 in the same 0..255 range, not rounded.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

# Bound to another name, because jax2onnx patches `jax.image.resize` with a version that fails for symbolic batch sizes.
from jax.image import resize as _resize

INTERPOLATIONS = {"bilinear": "linear", "bicubic": "cubic", "nearest": "nearest"}
FILLS = ("zero", "reflect", "edge")


def pad_and_crop(keys_B: jax.Array, images_BHWC: jax.Array, pixels: int) -> jax.Array:
    """Pads each side with `pixels` zeros, then crops each image to its original size at a random position."""
    _, height, width, _ = images_BHWC.shape
    widths = ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0))
    return random_crop(keys_B, jnp.pad(images_BHWC, widths), height, width)


def random_crop(
    keys_B: jax.Array, images_BHWC: jax.Array, height: int, width: int, *, position: str = "image"
) -> jax.Array:
    """Crops windows at random positions, without resizing.

    Args:
      keys_B: one key per image.
      images_BHWC: images of any dtype.
      height, width: size of the window, at most that of the images.
      position: 'image' draws a position for each image; 'batch' uses the first image's position for all, as the
        layer RandomCrop of Keras 3 does.
    """
    _, h, w, channels = images_BHWC.shape

    def place(key: jax.Array) -> jax.Array:
        return jax.random.randint(key, (2,), 0, jnp.array([h - height + 1, w - width + 1]))

    places_B2 = jax.vmap(place)(keys_B)
    if position == "batch":
        places_B2 = jnp.broadcast_to(places_B2[:1], places_B2.shape)

    def cut(corner_2: jax.Array, image_HWC: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image_HWC, (corner_2[0], corner_2[1], 0), (height, width, channels))

    return jax.vmap(cut)(places_B2, images_BHWC)


def centre_crop(images_BHWC: jax.Array, height: int, width: int) -> jax.Array:
    """Crops the centre; if the margin is odd, the bottom and right lose one pixel more."""
    top, left = (images_BHWC.shape[1] - height) // 2, (images_BHWC.shape[2] - width) // 2
    return images_BHWC[:, top : top + height, left : left + width]


def flip_left_right(keys_B: jax.Array, images_BHWC: jax.Array) -> jax.Array:
    """Mirrors each image with probability 1/2."""
    return mirror(jax.vmap(jax.random.bernoulli)(keys_B), images_BHWC)


def alternating(key: jax.Array, numbers_B: jax.Array, epoch: jax.Array) -> jax.Array:
    """Selects the images to mirror: in epoch 0 each with probability 1/2, then each in every other epoch.

    Two consecutive epochs thus show every image both ways, which independent draws do for only half of the images.
    From Jordan 2024 (arXiv:2404.00498).

    Args:
      key: the same key in all epochs.
      numbers_B: indices of the images in their split.
      epoch: counted from 0.

    Returns:
      bool [B].
    """
    first_B = jax.vmap(lambda number: jax.random.bernoulli(jax.random.fold_in(key, number)))(numbers_B)
    return first_B != (epoch % 2 == 1)


def mirror(mirrored_B: jax.Array, images_BHWC: jax.Array) -> jax.Array:
    """Flips the images where `mirrored_B` (bool [B]) is true, left to right."""
    return jnp.where(mirrored_B[:, None, None, None], images_BHWC[:, :, ::-1], images_BHWC)


def resize(images_BHWC: jax.Array, height: int, width: int, interpolation: str = "bilinear") -> jax.Array:
    """Resizes to float32, with pixel centres at half-integers and, when shrinking, Pillow's antialiasing filter.

    Images that already have the size are returned unchanged, with their dtype.
    """
    batch, h, w, channels = images_BHWC.shape
    if (h, w) == (height, width):
        return images_BHWC
    method = INTERPOLATIONS[interpolation]
    x_BHWC = _resize(images_BHWC.astype(jnp.float32), (batch, height, width, channels), method)
    return jnp.clip(x_BHWC, 0.0, 255.0)  # bicubic overshoots


def shorter_side(height: int, width: int, side: int) -> tuple[int, int]:
    """Returns the (height, width) with shorter side `side` and the same aspect ratio, rounded."""
    scale = side / min(height, width)
    return (side, round(width * scale)) if height <= width else (round(height * scale), side)


def random_resized_crop(
    keys_B: jax.Array,
    images_BHWC: jax.Array,
    size: int,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: str = "bilinear",
) -> jax.Array:
    """Crops a window of random area and aspect ratio and resizes it to a square (Szegedy et al., 2015).

    Args:
      keys_B: one key per image.
      images_BHWC: 0..255.
      size: side of the result, in pixels.
      scale: range of the window's share of the image area, drawn uniformly.
      ratio: range of width / height, drawn log-uniformly.
      interpolation: 'bilinear', 'bicubic' or 'nearest'.

    Returns:
      float32 [B, size, size, C].
    """
    _, height, width, channels = images_BHWC.shape

    def one(key: jax.Array, image_HWC: jax.Array) -> jax.Array:
        top, left, h, w = crop_box(key, height, width, scale, ratio)
        return crop_and_resize(image_HWC, top, left, h, w, size, channels, interpolation)

    return jnp.clip(jax.vmap(one)(keys_B, images_BHWC.astype(jnp.float32)), 0.0, 255.0)


def crop_and_resize(
    image_HWC: jax.Array,
    top: jax.Array,
    left: jax.Array,
    height: jax.Array,
    width: jax.Array,
    size: int,
    channels: int,
    interpolation: str = "bilinear",
) -> jax.Array:
    """Resizes one window, whose corner and size may be traced, to [size, size, channels], as Pillow's resize(box=)."""
    if interpolation == "nearest":
        rows = jnp.floor(top + (_pixels(size) + 0.5) * height / size).astype(jnp.int32)
        columns = jnp.floor(left + (_pixels(size) + 0.5) * width / size).astype(jnp.int32)
        return image_HWC[rows][:, columns]
    stretch = jnp.stack([size / height, size / width])
    return jax.image.scale_and_translate(
        image_HWC,
        (size, size, channels),
        (0, 1),
        stretch,
        -jnp.stack([top, left]) * stretch,
        INTERPOLATIONS[interpolation],
    )


def crop_box(
    key: jax.Array, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Draws a random window and returns (top, left, height, width): whole pixels, as float32.

    Uses the first of ten draws that fits into the image; if none fits, the largest centred window with an aspect ratio
    in range.
    """
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    area = jax.random.uniform(area_key, (10,), minval=scale[0], maxval=scale[1]) * (height * width)
    shape = jnp.exp(jax.random.uniform(ratio_key, (10,), minval=math.log(ratio[0]), maxval=math.log(ratio[1])))
    w, h = jnp.round(jnp.sqrt(area * shape)), jnp.round(jnp.sqrt(area / shape))
    fits = (w <= width) & (h <= height) & (w > 0) & (h > 0)
    first = jnp.argmax(fits)
    whole = width / height
    fallback_w = float(width if whole <= ratio[1] else round(height * ratio[1]))
    fallback_h = float(height if whole >= ratio[0] else round(width / ratio[0]))
    some = jnp.any(fits)
    w, h = jnp.where(some, w[first], fallback_w), jnp.where(some, h[first], fallback_h)
    u, v = jax.random.uniform(place_key, (2,))
    top = jnp.where(some, jnp.floor(u * (height - h + 1)), jnp.floor((height - h) / 2))
    left = jnp.where(some, jnp.floor(v * (width - w + 1)), jnp.floor((width - w) / 2))
    return jnp.minimum(top, height - h), jnp.minimum(left, width - w), h, w


def random_rotation_and_zoom(
    keys_B: jax.Array, images_BHWC: jax.Array, *, rotation: float, zoom: float, fill: str = "reflect"
) -> jax.Array:
    """Rotates, then zooms each image about its centre, in one bilinear warp.

    Args:
      keys_B: one key per image.
      images_BHWC: 0..255.
      rotation: largest angle in either direction, as a fraction of a full turn (0.02 is 7.2 degrees), as in Keras's
        RandomRotation.
      zoom: the visible extent is multiplied by a factor in 1 ± zoom, drawn separately for height and width, as in
        Keras's RandomZoom: above 1 zooms out.
      fill: 'reflect', 'edge' or 'zero': fills the area outside the image.

    Returns:
      float32, same shape.
    """
    _, height, width, _ = images_BHWC.shape

    def matrix(key: jax.Array) -> jax.Array:
        turn, zoom_h, zoom_w = jax.random.uniform(key, (3,), minval=-1.0, maxval=1.0)
        about = centred(rotation_matrix(turn * rotation * 2 * math.pi), height, width)
        scales = jnp.stack([1 + zoom_w * zoom, 1 + zoom_h * zoom])
        return compose(about, centred(jnp.diag(scales), height, width))

    return warp(images_BHWC, jax.vmap(matrix)(keys_B), fill=fill)


def rotation_matrix(radians: jax.Array) -> jax.Array:
    """Returns the [2, 2] map from output (x, y) to input (x, y) that rotates counter-clockwise, as Pillow's rotate."""
    cos, sin = jnp.cos(radians), jnp.sin(radians)
    return jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])])


def centred(linear_22: jax.Array, height: int, width: int) -> jax.Array:
    """Returns the affine map [2, 3] that applies `linear_22` about the centre of the image."""
    middle_2 = jnp.array([width / 2, height / 2])
    return jnp.concatenate([linear_22, (middle_2 - linear_22 @ middle_2)[:, None]], axis=1)


def compose(outer_23: jax.Array, inner_23: jax.Array) -> jax.Array:
    """Returns the affine map x -> outer(inner(x))."""
    linear = outer_23[:, :2] @ inner_23[:, :2]
    return jnp.concatenate([linear, (outer_23[:, :2] @ inner_23[:, 2] + outer_23[:, 2])[:, None]], axis=1)


def warp(
    images_BHWC: jax.Array, matrices_B23: jax.Array, *, fill: str = "zero", colour: tuple[float, ...] = (0.0,)
) -> jax.Array:
    """Applies affine warps with bilinear sampling; pixel centres are at half-integers, as in Pillow.

    Args:
      images_BHWC: 0..255.
      matrices_B23: map output positions (x, y) to input positions.
      fill: for input positions outside the image: 'zero' gives `colour`, 'edge' the nearest pixel, 'reflect' the
        mirrored image (with the border pixel repeated).
      colour: C values, or one for all channels, for fill='zero'.

    Returns:
      float32, same shape.
    """
    _, height, width, channels = images_BHWC.shape
    y_HW, x_HW = jnp.meshgrid(_pixels(height) + 0.5, _pixels(width) + 0.5, indexing="ij")
    grid_3N = jnp.stack([x_HW.ravel(), y_HW.ravel(), jnp.ones(height * width)])

    def one(matrix_23: jax.Array, image_HWC: jax.Array) -> jax.Array:
        x_N, y_N = jnp.matmul(matrix_23, grid_3N, precision=jax.lax.Precision.HIGHEST)
        if fill == "reflect":
            x_N, y_N = _reflect(x_N, width), _reflect(y_N, height)
        inside_N = (x_N >= 0) & (x_N < width) & (y_N >= 0) & (y_N < height)
        x_N, y_N = x_N - 0.5, y_N - 0.5
        left_N, top_N = jnp.floor(x_N), jnp.floor(y_N)
        across_N1, down_N1 = (x_N - left_N)[:, None], (y_N - top_N)[:, None]
        flat_NC = image_HWC.reshape(-1, channels)

        def at(row_N: jax.Array, column_N: jax.Array) -> jax.Array:
            row_N = jnp.clip(row_N, 0, height - 1).astype(jnp.int32)
            column_N = jnp.clip(column_N, 0, width - 1).astype(jnp.int32)
            return flat_NC[row_N * width + column_N].astype(jnp.float32)

        upper_NC = at(top_N, left_N) * (1 - across_N1) + at(top_N, left_N + 1) * across_N1
        lower_NC = at(top_N + 1, left_N) * (1 - across_N1) + at(top_N + 1, left_N + 1) * across_N1
        out_NC = upper_NC * (1 - down_N1) + lower_NC * down_N1
        if fill == "zero":
            out_NC = jnp.where(inside_N[:, None], out_NC, jnp.asarray(colour, jnp.float32)[None])
        return out_NC.reshape(image_HWC.shape)

    return jax.vmap(one)(matrices_B23, images_BHWC)


def _reflect(position_N: jax.Array, extent: int) -> jax.Array:
    """Folds positions in [-extent, 2 extent) into [0, extent): …c b a | a b c | c b a…"""
    folded = jnp.abs(position_N)  # jnp.mod would support any position, but costs several times more
    return jnp.clip(extent - jnp.abs(extent - folded), 0.0, extent - 1e-4)


def _pixels(count: int) -> jax.Array:
    return jnp.arange(count, dtype=jnp.float32)
