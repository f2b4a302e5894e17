"""Random erasing, mixup and CutMix on the device, drawn per image. Mixing turns labels into distributions.

Mixup: Zhang et al., ICLR 2018. CutMix: Yun et al., ICCV 2019. Random erasing: Zhong et al., AAAI 2020. Ranges and the
switch between mixup and CutMix follow timm. timm draws once per batch by default; this module draws for each image,
as timm's mode 'elem' does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

ERASE_MODES = ("zero", "noise")

# Lifts a per-image function to a batch, like `jax.vmap`.
Each = Callable[[Callable[..., Any]], Callable[..., Any]]
# Calls a function of a batch for parts of it: (function) -> function.
Within = Callable[[Callable[..., Any]], Callable[..., Any]]


def random_erasing(
    keys_B: jax.Array,
    x_BHWC: jax.Array,
    probability: float,
    *,
    mode: str = "noise",
    area: tuple[float, float] = (0.02, 1 / 3),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
) -> jax.Array:
    """Overwrites a random rectangle of some images.

    Args:
      keys_B: one key per image.
      x_BHWC: normalised images.
      probability: probability that an image is changed.
      mode: 'noise' fills with standard normal noise, 'zero' with 0, the mean colour.
      area: range of the rectangle's share of the image area, drawn uniformly.
      ratio: range of its height / width, drawn log-uniformly.
    """
    _, height, width, channels = x_BHWC.shape

    def one(key: jax.Array, x_HWC: jax.Array) -> jax.Array:
        keys_5 = jax.random.split(key, 5)
        share_10 = jax.random.uniform(keys_5[0], (10,), minval=area[0], maxval=area[1]) * (height * width)
        shape_10 = jnp.exp(jax.random.uniform(keys_5[1], (10,), minval=math.log(ratio[0]), maxval=math.log(ratio[1])))
        h_10, w_10 = jnp.round(jnp.sqrt(share_10 * shape_10)), jnp.round(jnp.sqrt(share_10 / shape_10))
        fits_10 = (h_10 < height) & (w_10 < width)
        first = jnp.argmax(fits_10)
        h, w = h_10[first], w_10[first]
        u, v = jax.random.uniform(keys_5[2], (2,))
        inside = _inside(jnp.floor(u * (height - h + 1)), jnp.floor(v * (width - w + 1)), h, w, height, width)
        touched = jax.random.bernoulli(keys_5[3], probability) & jnp.any(fits_10)
        filling = 0.0
        if mode == "noise":
            filling = jax.random.normal(keys_5[4], (height, width, channels), x_HWC.dtype)
        return jnp.where((touched & inside)[..., None], filling, x_HWC)

    return jax.vmap(one)(keys_B, x_BHWC)


def _inside(
    top: jax.Array, left: jax.Array, box_height: jax.Array, box_width: jax.Array, height: int, width: int
) -> jax.Array:
    """Returns the mask of a box: bool [height, width]."""
    y = jnp.arange(height, dtype=jnp.float32)[:, None]
    x = jnp.arange(width, dtype=jnp.float32)[None, :]
    return (y >= top) & (y < top + box_height) & (x >= left) & (x < left + box_width)


def partners(mask_B: jax.Array) -> jax.Array:
    """Returns the index [B] of the image to mix each image with: the first with the last, the second with the last but
    one, and so on. Padding is its own partner and that of no image.

    The order of a batch is already random, and the copies of an image under repeated augmentation are adjacent, so this
    pairs different images. Two exceptions: with an odd number of images the middle one is its own partner, and with an
    odd number of repeated images the copies of the middle one are mixed with each other.
    """
    batch = mask_B.shape[0]
    real_first_B = jnp.argsort(mask_B <= 0, stable=True)
    rank_B = jnp.zeros(batch, jnp.int32).at[real_first_B].set(jnp.arange(batch, dtype=jnp.int32))
    count = jnp.sum(mask_B > 0).astype(jnp.int32)
    opposite_B = real_first_B[jnp.clip(count - 1 - rank_B, 0, batch - 1)]
    return jnp.where(mask_B > 0, opposite_B, jnp.arange(batch))


def mix(
    key: jax.Array,
    x_BHWC: jax.Array,
    targets_BK: jax.Array,
    mask_B: jax.Array,
    *,
    mixup: float,
    cutmix: float,
    switch: float = 0.5,
    probability: float = 1.0,
    active: jax.Array | bool = True,
    each: Each = jax.vmap,
    within: Within = lambda blend: blend,
) -> tuple[jax.Array, jax.Array]:
    """Mixes each image and its target with those of a partner.

    Args:
      key: key of this step.
      x_BHWC: images.
      targets_BK: distributions over the classes.
      mask_B: 1.0 for an image, 0.0 for padding, which is never mixed.
      mixup, cutmix: α of the distributions Beta(α, α); 0 = off.
      switch: probability of CutMix if both are on.
      probability: probability that an image is mixed at all.
      active: whether to mix in this step.
      each: lifts a per-image function to a batch: `jax.vmap`, or for a sharded batch
        `jaxvit.devices.sharding.over_images(mesh)`. Sampling from a Beta distribution is a rejection loop that runs
        until every sample is accepted; under `jax.vmap` the devices would communicate in each iteration.
      within: calls a function of a batch for each part of the batch whose images are mixed with each other: the whole
        batch, or for a sharded batch `jaxvit.devices.sharding.on_own_rows(mesh)`. A partner on another device would
        have to be sent. So the number of devices decides which images are mixed. What is drawn for an image (whether it
        is mixed, how, with which weight) does not depend on it.

    Returns:
      (images, targets); each row of the targets is still a distribution.
    """
    batch, height, width, _ = x_BHWC.shape
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (the image's weight at every pixel [H, W], the weight of its target)."""
        keys_5 = jax.random.split(key, 5)
        if cutmix:
            ratio = jnp.sqrt(1 - jax.random.beta(keys_5[1], cutmix, cutmix))
            h, w = jnp.floor(height * ratio), jnp.floor(width * ratio)
            y, x = jnp.floor(jax.random.uniform(keys_5[2], (2,)) * jnp.array([height, width], jnp.float32))
            top, left = jnp.clip(y - h // 2, 0, height), jnp.clip(x - w // 2, 0, width)
            bottom, right = jnp.clip(y + h // 2, 0, height), jnp.clip(x + w // 2, 0, width)
            cut_HW = 1.0 - _inside(top, left, bottom - top, right - left, height, width).astype(jnp.float32)
            share = 1 - (bottom - top) * (right - left) / (height * width)  # by the area of the clipped box
        if mixup:
            weight = jax.random.beta(keys_5[0], mixup, mixup)
            blend_HW = jnp.full((height, width), weight)
        if mixup and cutmix:
            cutting = jax.random.bernoulli(keys_5[3], switch)
            own_HW, own = jnp.where(cutting, cut_HW, blend_HW), jnp.where(cutting, share, weight)
        else:
            own_HW, own = (cut_HW, share) if cutmix else (blend_HW, weight)
        mixed = jax.random.bernoulli(keys_5[4], probability)
        return jnp.where(mixed, own_HW, 1.0), jnp.where(mixed, own, 1.0)

    def blend(
        x_BHWC: jax.Array, targets_BK: jax.Array, mask_B: jax.Array, own_BHW: jax.Array, own_B: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        partner_B = partners(mask_B)
        alone_B = partner_B == jnp.arange(mask_B.shape[0])
        own_BHW, own_B = jnp.where(alone_B[:, None, None], 1.0, own_BHW), jnp.where(alone_B, 1.0, own_B)
        own_BHW1, own_B1 = own_BHW[..., None], own_B[:, None]
        return (
            own_BHW1 * x_BHWC + (1 - own_BHW1) * x_BHWC[partner_B],
            own_B1 * targets_BK + (1 - own_B1) * targets_BK[partner_B],
        )

    own_BHW, own_B = each(one)(keys_B)
    own_BHW, own_B = jnp.where(active, own_BHW, 1.0), jnp.where(active, own_B, 1.0)
    return within(blend)(x_BHWC, targets_BK, mask_B, own_BHW, own_B)
