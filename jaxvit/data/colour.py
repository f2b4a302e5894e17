"""Colour operations on a batch on the device: normalisation, jitter, and Pillow's point operations as look-up tables.

Most colour operations of AutoAugment and similar policies map each value of a channel to another value. They are tables
of 256 entries, some of which depend on the image's histogram, so a single look-up applies any of them. Values are
rounded and clipped as in Pillow.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

LEVELS = 256


def normalize(images_BHWC: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Maps 0..255 to float32 ``(x / 255 - mean) / std``; `mean` and `std` have C values, or one for all channels."""
    x_BHWC = images_BHWC.astype(jnp.float32)
    scale = 1 / (255 * jnp.asarray(std, jnp.float32))
    shift = -jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
    return x_BHWC * scale.reshape(1, 1, 1, -1) + shift.reshape(1, 1, 1, -1)


def denormalize(images_BHWC: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Inverts `normalize` for display: float32 on the host, clipped to 0..1 (random erasing can exceed it)."""
    pictures_BHWC = np.asarray(images_BHWC) * np.array(std, np.float32) + np.array(mean, np.float32)
    return np.clip(pictures_BHWC, 0, 1)


def to_uint8(images_BHWC: jax.Array) -> jax.Array:
    """Rounds and clips to uint8; uint8 input is returned unchanged."""
    if images_BHWC.dtype == jnp.uint8:
        return images_BHWC
    return jnp.clip(jnp.round(images_BHWC), 0, 255).astype(jnp.uint8)


def grey(x_HWC: jax.Array) -> jax.Array:
    """Returns the ITU-R 601 luma [H, W, 1], not rounded; a one-channel image is returned unchanged."""
    if x_HWC.shape[-1] == 1:
        return x_HWC
    return jnp.tensordot(x_HWC, jnp.array([0.299, 0.587, 0.114], jnp.float32), axes=1)[..., None]


def look_up(image_HWC: jax.Array, table_CL: jax.Array) -> jax.Array:
    """Replaces each uint8 value of channel c by ``table_CL[c, value]``."""
    channels = image_HWC.shape[-1]
    place = image_HWC.astype(jnp.int32) + (jnp.arange(channels) * LEVELS)[None, None]
    return table_CL.reshape(-1)[place]


def histogram(image_HWC: jax.Array) -> jax.Array:
    """Counts each value in each channel: int32 [C, 256]."""
    channels = image_HWC.shape[-1]
    place = image_HWC.astype(jnp.int32) + (jnp.arange(channels) * LEVELS)[None, None]
    return jnp.zeros(channels * LEVELS, jnp.int32).at[place.reshape(-1)].add(1).reshape(channels, LEVELS)


def _values() -> jax.Array:
    return jnp.arange(LEVELS, dtype=jnp.int32)


def posterize_table(bits: jax.Array) -> jax.Array:
    """Table that keeps the upper `bits` (0..8) of each value: int32 [256]."""
    return _values() & ~((1 << (8 - bits.astype(jnp.int32))) - 1)


def solarize_table(threshold: jax.Array) -> jax.Array:
    """Table that inverts values at or above the threshold; threshold 0 inverts all values."""
    return jnp.where(_values().astype(jnp.float32) < threshold, _values(), 255 - _values())


def solarize_add_table(amount: jax.Array) -> jax.Array:
    """Table that adds to values below 128, clipped at 255."""
    added = jnp.clip(_values() + amount.astype(jnp.int32), 0, 255)
    return jnp.where(_values() < 128, added, _values())


def blend_table(towards: jax.Array, factor: jax.Array) -> jax.Array:
    """Table of ``towards + factor (value - towards)``, clipped and rounded down.

    `towards` is 0 for brightness, and the mean grey value for contrast.
    """
    blended = towards + factor * (_values().astype(jnp.float32) - towards)
    return jnp.clip(jnp.floor(blended + 1e-4), 0, 255).astype(jnp.int32)


def autocontrast_table(counts_CL: jax.Array) -> jax.Array:
    """Table that stretches each channel so that its darkest value becomes 0 and its lightest 255: int32 [C, 256]."""
    there = counts_CL > 0
    low = jnp.argmax(there, axis=-1).astype(jnp.int32)[:, None]
    high = (LEVELS - 1 - jnp.argmax(there[:, ::-1], axis=-1)).astype(jnp.int32)[:, None]
    values = jnp.broadcast_to(_values()[None], counts_CL.shape)
    stretched = jnp.clip((values - low) * 255 // jnp.maximum(high - low, 1), 0, 255)
    return jnp.where(high > low, stretched, values)


def equalize_table(counts_CL: jax.Array) -> jax.Array:
    """Table that equalises each channel's histogram as Pillow does: int32 [C, 256]."""
    last = LEVELS - 1 - jnp.argmax((counts_CL > 0)[:, ::-1], axis=-1)
    of_last = jnp.take_along_axis(counts_CL, last[:, None], axis=-1)
    step = (jnp.sum(counts_CL, axis=-1, keepdims=True) - of_last) // 255
    before = jnp.cumsum(counts_CL, axis=-1) - counts_CL
    values = jnp.broadcast_to(_values()[None], counts_CL.shape)
    evened = jnp.clip((step // 2 + before) // jnp.maximum(step, 1), 0, 255)
    return jnp.where(step > 0, evened, values)


def blend(towards: jax.Array, x: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns float32 ``towards + factor (x - towards)``, clipped to 0..255 and rounded down, as Pillow's enhancers."""
    return jnp.floor(jnp.clip(towards + factor * (x - towards), 0.0, 255.0) + 1e-4)


def saturate(image_HWC: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with the grey image, as Pillow's Color; returns whole numbers as float32."""
    x_HWC = image_HWC.astype(jnp.float32)
    return blend(jnp.floor(grey(x_HWC) + 0.5), x_HWC, factor)


def sharpen(image_HWC: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with a smoothed image, as Pillow's Sharpness; returns whole numbers as float32.

    Border pixels are not smoothed.
    """
    x_HWC = image_HWC.astype(jnp.float32)
    height, width, _ = x_HWC.shape
    if height < 3 or width < 3:
        return x_HWC
    rows = x_HWC[:-2] + x_HWC[1:-1] + x_HWC[2:]
    box = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    smooth = jnp.floor((box + 4 * x_HWC[1:-1, 1:-1]) / 13 + 0.5)
    return blend(x_HWC.at[1:-1, 1:-1].set(smooth), x_HWC, factor)


def colour_jitter(keys_B: jax.Array, images_BHWC: jax.Array, strengths: tuple[float, float, float, float]) -> jax.Array:
    """Changes brightness, contrast, saturation and hue of each image at random, in this order.

    torchvision also randomises the order.

    Args:
      keys_B: one key per image.
      images_BHWC: 0..255.
      strengths: (brightness, contrast, saturation, hue). Each of the first three is multiplied by a factor drawn
        uniformly from max(0, 1 - strength) to 1 + strength. The hue is rotated by up to ± strength of a full turn
        (strength at most 0.5). Saturation and hue of one-channel images stay unchanged.

    Returns:
      float32, not rounded.
    """
    brightness, contrast, saturation, hue = strengths

    def one(key: jax.Array, x_HWC: jax.Array) -> jax.Array:
        draw_4 = jax.random.uniform(key, (4,), minval=-1.0, maxval=1.0)

        def factor(i: int, strength: float) -> jax.Array:
            # For a strength above 1, clip the range before drawing: clipping the drawn factor would make many images
            # black.
            low = max(1 - strength, 0.0)
            return 1 + draw_4[i] * strength if strength <= 1 else low + (draw_4[i] + 1) / 2 * (1 + strength - low)

        def mixed(x: jax.Array, towards: jax.Array, by: jax.Array) -> jax.Array:
            return jnp.clip(towards + by * (x - towards), 0.0, 255.0)

        if brightness:
            x_HWC = jnp.clip(x_HWC * factor(0, brightness), 0.0, 255.0)
        if contrast:
            x_HWC = mixed(x_HWC, jnp.mean(grey(x_HWC)), factor(1, contrast))
        if saturation and x_HWC.shape[-1] == 3:
            x_HWC = mixed(x_HWC, grey(x_HWC), factor(2, saturation))
        if hue and x_HWC.shape[-1] == 3:
            x_HWC = turn_hue(x_HWC, draw_4[3] * hue)
        return x_HWC

    return jax.vmap(one)(keys_B, images_BHWC.astype(jnp.float32))


def turn_hue(x_HW3: jax.Array, turn: jax.Array) -> jax.Array:
    """Rotates the hue of RGB values in 0..255 by a fraction of a full turn; HSV value and saturation stay."""
    red, green, blue = jnp.moveaxis(x_HW3, -1, 0)
    high, low = jnp.max(x_HW3, axis=-1), jnp.min(x_HW3, axis=-1)
    spread = jnp.maximum(high - low, 1e-6)
    # Not `high == red`: XLA may compute the colours twice, in two kernels that round differently. Then none equals the
    # maximum.
    sixths = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) / spread,
        jnp.where(green >= blue, 2 + (blue - red) / spread, 4 + (red - green) / spread),
    )
    sixths = jnp.mod(sixths + 6 * turn, 6.0)

    def channel(offset: float) -> jax.Array:
        k = jnp.mod(offset + sixths, 6.0)
        return high - (high - low) * jnp.clip(jnp.minimum(k, 4 - k), 0.0, 1.0)

    return jnp.stack([channel(5.0), channel(3.0), channel(1.0)], axis=-1)
