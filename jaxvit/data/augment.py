"""What happens to pixels on the device: pure, jitted functions of (key, uint8 batch), one decision an image.

`training_transform` and `evaluation_transform` build them from an `Augmentation`; both end with the same
normalisation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

Transform = Callable[[jax.Array, jax.Array], jax.Array]  # (key, uint8 [B, H, W, C]) -> float32 [B, H, W, C]


@dataclass(frozen=True)
class Augmentation:
    """What to do; the meaning of each field is that of the config key ``augment.FIELD``."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    pad_crop: int = 0
    flip: bool = False


def normalize(images_BHWC: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """uint8 0..255 to float32 ``(x / 255 - mean) / std``; `mean` and `std` have C values, or one for all channels."""
    x_BHWC = images_BHWC.astype(jnp.float32)
    scale = 1 / (255 * jnp.asarray(std, jnp.float32))
    shift = -jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
    return x_BHWC * scale.reshape(1, 1, 1, -1) + shift.reshape(1, 1, 1, -1)


def pad_and_crop(keys_B: jax.Array, images_BHWC: jax.Array, pixels: int) -> jax.Array:
    """Pads each side with `pixels` zeros, then cuts the original size out at a random place, for each image its own."""
    _, height, width, channels = images_BHWC.shape
    widths = ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0))
    padded = jnp.pad(images_BHWC, widths)

    def crop(key: jax.Array, image_HWC: jax.Array) -> jax.Array:
        top, left = jax.random.randint(key, (2,), 0, 2 * pixels + 1)
        return jax.lax.dynamic_slice(image_HWC, (top, left, 0), (height, width, channels))

    return jax.vmap(crop)(keys_B, padded)


def flip_left_right(keys_B: jax.Array, images_BHWC: jax.Array) -> jax.Array:
    """Mirrors each image with probability 1/2."""
    mirrored_B = jax.vmap(jax.random.bernoulli)(keys_B)
    return jnp.where(mirrored_B[:, None, None, None], images_BHWC[:, :, ::-1], images_BHWC)


def training_transform(settings: Augmentation) -> Transform:
    """The transform for training: geometry on uint8 (a quarter of float32's bytes), then normalisation."""

    def transform(key: jax.Array, images_BHWC: jax.Array) -> jax.Array:
        def keys(name: int) -> jax.Array:
            return jax.random.split(jax.random.fold_in(key, name), images_BHWC.shape[0])

        if settings.pad_crop:
            images_BHWC = pad_and_crop(keys(0), images_BHWC, settings.pad_crop)
        if settings.flip:
            images_BHWC = flip_left_right(keys(1), images_BHWC)
        return normalize(images_BHWC, settings.mean, settings.std)

    return transform


def evaluation_transform(settings: Augmentation) -> Callable[[jax.Array], jax.Array]:
    """The transform for evaluation: normalisation only."""
    return lambda images_BHWC: normalize(images_BHWC, settings.mean, settings.std)
