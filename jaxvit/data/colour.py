"""Colour of a batch on the device: normalisation, jitter, and Pillow's point operations as look-up tables.

Most of the colour operations of AutoAugment and its kin map each value of a channel to another value: they are tables
of 256 entries, some of which depend on the image's histogram. So one look-up does them all, whichever an image got.
Values are rounded and cut off as Pillow does it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

LEVELS = 256


def normalize(images_BHWC: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """0..255 to float32 ``(x / 255 - mean) / std``; `mean` and `std` have C values, or one for all channels."""
    x_BHWC = images_BHWC.astype(jnp.float32)
    scale = 1 / (255 * jnp.asarray(std, jnp.float32))
    shift = -jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
    return x_BHWC * scale.reshape(1, 1, 1, -1) + shift.reshape(1, 1, 1, -1)


def denormalize(images_BHWC: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """The inverse of `normalize`, to look at: float32 0..1 on the host, whatever the constants are.

    What lies outside, such as the noise of random erasing, is cut off.
    """
    pictures_BHWC = np.asarray(images_BHWC) * np.array(std, np.float32) + np.array(mean, np.float32)
    return np.clip(pictures_BHWC, 0, 1)


def to_uint8(images_BHWC: jax.Array) -> jax.Array:
    """Rounds 0..255 to uint8; uint8 stays as it is."""
    if images_BHWC.dtype == jnp.uint8:
        return images_BHWC
    return jnp.clip(jnp.round(images_BHWC), 0, 255).astype(jnp.uint8)


def grey(x_HWC: jax.Array) -> jax.Array:
    """ITU-R 601 luma [H, W, 1] of 0..255 values, not rounded; one channel is its own luma."""
    if x_HWC.shape[-1] == 1:
        return x_HWC
    return jnp.tensordot(x_HWC, jnp.array([0.299, 0.587, 0.114], jnp.float32), axes=1)[..., None]


def look_up(image_HWC: jax.Array, table_CL: jax.Array) -> jax.Array:
    """Replaces each uint8 value of channel c by ``table_CL[c, value]``."""
    channels = image_HWC.shape[-1]
    place = image_HWC.astype(jnp.int32) + (jnp.arange(channels) * LEVELS)[None, None]
    return table_CL.reshape(-1)[place]


def histogram(image_HWC: jax.Array) -> jax.Array:
    """How often each value stands in each channel, int32 [C, 256]."""
    channels = image_HWC.shape[-1]
    place = image_HWC.astype(jnp.int32) + (jnp.arange(channels) * LEVELS)[None, None]
    return jnp.zeros(channels * LEVELS, jnp.int32).at[place.reshape(-1)].add(1).reshape(channels, LEVELS)


def _values() -> jax.Array:
    return jnp.arange(LEVELS, dtype=jnp.int32)


def posterize_table(bits: jax.Array) -> jax.Array:
    """Keeps the upper `bits` (0..8) of each value: int32 [256]."""
    return _values() & ~((1 << (8 - bits.astype(jnp.int32))) - 1)


def solarize_table(threshold: jax.Array) -> jax.Array:
    """Inverts the values at or above the threshold; threshold 0 inverts all of them."""
    return jnp.where(_values().astype(jnp.float32) < threshold, _values(), 255 - _values())


def solarize_add_table(amount: jax.Array) -> jax.Array:
    """Adds to the values below 128, cut off at 255."""
    added = jnp.clip(_values() + amount.astype(jnp.int32), 0, 255)
    return jnp.where(_values() < 128, added, _values())


def blend_table(towards: jax.Array, factor: jax.Array) -> jax.Array:
    """``towards + factor (value - towards)``, cut off and rounded down: brightness towards 0, contrast towards grey."""
    blended = towards + factor * (_values().astype(jnp.float32) - towards)
    return jnp.clip(jnp.floor(blended + 1e-4), 0, 255).astype(jnp.int32)


def autocontrast_table(counts_CL: jax.Array) -> jax.Array:
    """Stretches each channel so that its darkest value becomes 0 and its lightest 255: int32 [C, 256]."""
    there = counts_CL > 0
    low = jnp.argmax(there, axis=-1).astype(jnp.int32)[:, None]
    high = (LEVELS - 1 - jnp.argmax(there[:, ::-1], axis=-1)).astype(jnp.int32)[:, None]
    values = jnp.broadcast_to(_values()[None], counts_CL.shape)
    stretched = jnp.clip((values - low) * 255 // jnp.maximum(high - low, 1), 0, 255)
    return jnp.where(high > low, stretched, values)


def equalize_table(counts_CL: jax.Array) -> jax.Array:
    """Evens each channel's histogram out, by Pillow's rule: int32 [C, 256]."""
    last = LEVELS - 1 - jnp.argmax((counts_CL > 0)[:, ::-1], axis=-1)
    of_last = jnp.take_along_axis(counts_CL, last[:, None], axis=-1)
    step = (jnp.sum(counts_CL, axis=-1, keepdims=True) - of_last) // 255
    before = jnp.cumsum(counts_CL, axis=-1) - counts_CL
    values = jnp.broadcast_to(_values()[None], counts_CL.shape)
    evened = jnp.clip((step // 2 + before) // jnp.maximum(step, 1), 0, 255)
    return jnp.where(step > 0, evened, values)


def blend(towards: jax.Array, x: jax.Array, factor: jax.Array) -> jax.Array:
    """``towards + factor (x - towards)``, cut off at 0 and 255 and rounded down as Pillow's enhancers do: float32."""
    return jnp.floor(jnp.clip(towards + factor * (x - towards), 0.0, 255.0) + 1e-4)


def saturate(image_HWC: jax.Array, factor: jax.Array) -> jax.Array:
    """Pillow's Color: blends with the grey image; float32 of whole numbers."""
    x_HWC = image_HWC.astype(jnp.float32)
    return blend(jnp.floor(grey(x_HWC) + 0.5), x_HWC, factor)


def sharpen(image_HWC: jax.Array, factor: jax.Array) -> jax.Array:
    """Pillow's Sharpness: blends with a smoothed image, whose border is the image's own; float32 of whole numbers."""
    x_HWC = image_HWC.astype(jnp.float32)
    height, width, _ = x_HWC.shape
    if height < 3 or width < 3:
        return x_HWC
    rows = x_HWC[:-2] + x_HWC[1:-1] + x_HWC[2:]
    box = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    smooth = jnp.floor((box + 4 * x_HWC[1:-1, 1:-1]) / 13 + 0.5)
    return blend(x_HWC.at[1:-1, 1:-1].set(smooth), x_HWC, factor)


def colour_jitter(keys_B: jax.Array, images_BHWC: jax.Array, strengths: tuple[float, float, float, float]) -> jax.Array:
    """Brightness, contrast, saturation and hue, each changed at random for each image, in that order.

    Args:
      keys_B: one key an image.
      images_BHWC: 0..255.
      strengths: (brightness, contrast, saturation, hue). The first three are multiplied by a number drawn evenly
        from max(0, 1 - strength) to 1 + strength; the hue turns by up to ± strength of a full turn (at most 0.5).
        One-channel images have neither saturation nor hue: both are left out.

    Returns:
      float32, not rounded. (torchvision draws the order, too; here it is fixed.)
    """
    brightness, contrast, saturation, hue = strengths

    def one(key: jax.Array, x_HWC: jax.Array) -> jax.Array:
        draw_4 = jax.random.uniform(key, (4,), minval=-1.0, maxval=1.0)

        def factor(i: int, strength: float) -> jax.Array:
            # Above strength 1 the range is cut off, not what falls below it: else images would turn black in bulk.
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
    """Turns the hue of RGB values in 0..255 by a share of a full turn; lightness and saturation (HSV) stay."""
    red, green, blue = jnp.moveaxis(x_HW3, -1, 0)
    high, low = jnp.max(x_HW3, axis=-1), jnp.min(x_HW3, axis=-1)
    spread = jnp.maximum(high - low, 1e-6)
    sixths = jnp.where(
        high == red,
        (green - blue) / spread,
        jnp.where(high == green, 2 + (blue - red) / spread, 4 + (red - green) / spread),
    )
    sixths = jnp.mod(sixths + 6 * turn, 6.0)

    def channel(offset: float) -> jax.Array:
        k = jnp.mod(offset + sixths, 6.0)
        return high - (high - low) * jnp.clip(jnp.minimum(k, 4 - k), 0.0, 1.0)

    return jnp.stack([channel(5.0), channel(3.0), channel(1.0)], axis=-1)
