"""What happens to pixels on the device between the uint8 batch and the model, put together from the settings.

Training and evaluation have transforms of their own. The training transform is a pure function of (key, step, batch);
each image draws from a key of its own, made from the step's key and its place in the batch. One thing goes by the image
and the epoch instead, with a key that all steps share: ``augment.flip_mode='alternate'``. The order is fixed:

    size -> pad_crop -> flip -> rotation and zoom | policy -> jitter -> own -> normalise -> erase -> mixup / CutMix

What stands before the bar is the geometry, which ``augment.where='host'`` moves to the host's processor.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from jaxvit.data import colour, geometry, mixing, policies
from jaxvit.data.settings import Augmentation, Preprocessing
from jaxvit.ops.labels import one_hot
from jaxvit.own_code import load_function

# (step's key, step, batch of image uint8 [B, H, W, C], label [B], mask [B]) -> (float32 images, targets [B, K]); the
# batch has number int32 [B] too, the images' numbers in their split, where images are mirrored by turns
Transform = Callable[[jax.Array, jax.Array, Mapping[str, jax.Array]], tuple[jax.Array, jax.Array]]


def image_keys(key: jax.Array, name: int, batch: int) -> jax.Array:
    """One key an image for the use of randomness that has this number; those of a longer batch begin with the same."""
    return jax.random.split(jax.random.fold_in(key, name), batch)


def flip_key(root: jax.Array) -> jax.Array:
    """What images that are mirrored by turns draw from, in all steps; `root` is the root of all steps' randomness."""
    return jax.random.fold_in(root, zlib.crc32(b"flip"))


def mirrored(
    settings: Augmentation, key: jax.Array | None, step: jax.Array, batch: Mapping[str, jax.Array]
) -> jax.Array | None:
    """Which images of a batch are mirrored, bool [B], where they are by turns; None where chance decides each time.

    `key` is that of `flip_key`.
    """
    if not settings.alternates:
        return None
    if key is None:
        raise ValueError("flip_mode='alternate' draws from a key that all steps share: give flips=flip_key(root)")
    return geometry.alternating(key, batch["number"], step // settings.epoch_steps)


def geometric_transform(
    settings: Augmentation, before: int = 0
) -> Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]:
    """Builds ``(step's key, uint8 [B, H, W, C], mirrored) -> images of the model's size``, 0..255.

    They stay uint8 where nothing is interpolated. `mirrored` is what the function of that name says. `before` is how
    many images of the batch come before these, which are a process's part of it.
    """
    s = settings

    def transform(key: jax.Array, x_BHWC: jax.Array, mirrored_B: jax.Array | None = None) -> jax.Array:
        def keys(name: int) -> jax.Array:
            return image_keys(key, name, before + x_BHWC.shape[0])[before:]

        height, width, channels = x_BHWC.shape[1:]
        target_height, target_width, _ = s.output_shape((height, width, channels))
        if s.train == "random_resized_crop":
            x_BHWC = geometry.random_resized_crop(
                keys(2), x_BHWC, target_height, scale=s.scale, ratio=s.ratio, interpolation=s.interpolation
            )
        elif s.train == "resize_crop":
            if s.resize:
                x_BHWC = geometry.resize(x_BHWC, s.resize, s.resize, s.interpolation)
            if x_BHWC.shape[1:3] != (target_height, target_width):
                x_BHWC = geometry.random_crop(keys(2), x_BHWC, target_height, target_width, position=s.crop_position)
        else:
            x_BHWC = geometry.resize(x_BHWC, target_height, target_width, s.interpolation)
        if s.pad_crop:
            x_BHWC = geometry.pad_and_crop(keys(0), x_BHWC, s.pad_crop)
        if mirrored_B is not None:
            x_BHWC = geometry.mirror(mirrored_B, x_BHWC)
        elif s.flip:
            x_BHWC = geometry.flip_left_right(keys(1), x_BHWC)
        if s.rotation or s.zoom:
            x_BHWC = geometry.random_rotation_and_zoom(keys(3), x_BHWC, rotation=s.rotation, zoom=s.zoom, fill=s.fill)
        return x_BHWC

    return transform


def training_transform(
    settings: Augmentation,
    classes: int,
    label_smoothing: float = 0.0,
    *,
    each: mixing.Each = jax.vmap,
    flips: jax.Array | None = None,
) -> Transform:
    """Builds the transform for training.

    Args:
      settings: what to do.
      classes: K, of the model's output.
      label_smoothing: share of each target spread evenly over all classes, before mixing.
      each: how a function of one image becomes one of all; see `jaxvit.data.mixing.mix`.
      flips: key of `flip_key`, where images are mirrored by turns.

    Returns:
      ``(key, step, batch) -> (images float32 [B, H, W, C], targets float32 [B, K])``.
    """
    s = settings
    geometric = geometric_transform(s)
    own = load_function(s.own, "augment.own") if s.own else None
    fill = policies.background(s.mean)

    def transform(key: jax.Array, step: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        def keys(name: int) -> jax.Array:
            return image_keys(key, name, batch["image"].shape[0])

        x_BHWC = batch["image"]
        if s.where != "host":
            x_BHWC = geometric(key, x_BHWC, mirrored(s, flips, step, batch))
        if s.policy:
            policy = policies.make_policy(s.policy, *x_BHWC.shape[1:3])
            x_BHWC = policies.apply_policy(policy, keys(5), colour.to_uint8(x_BHWC), fill)
        if s.jitter:
            x_BHWC = colour.colour_jitter(keys(4), x_BHWC, s.jitter)
        if own:
            x_BHWC = 255.0 * each(own)(keys(8), x_BHWC.astype(jnp.float32) / 255.0)
        x_BHWC = colour.normalize(x_BHWC, s.mean, s.std)
        if s.erase:
            x_BHWC = mixing.random_erasing(keys(6), x_BHWC, s.erase, mode=s.erase_mode)
        targets_BK = one_hot(batch["label"], classes, label_smoothing)
        if s.mixes:
            x_BHWC, targets_BK = mixing.mix(
                jax.random.fold_in(key, 7),
                x_BHWC,
                targets_BK,
                batch["mask"],
                mixup=s.mixup,
                cutmix=s.cutmix,
                switch=s.switch,
                probability=s.mix_probability,
                active=step < s.mix_until if s.mix_until else True,
                each=each,
            )
        return x_BHWC, targets_BK

    return transform


def evaluation_transform(settings: Preprocessing) -> Callable[[jax.Array], jax.Array]:
    """Builds the transform for evaluation: uint8 [B, H, W, C] to the model's size, then normalised; nothing random."""
    s = settings

    def transform(x_BHWC: jax.Array) -> jax.Array:
        height, width = x_BHWC.shape[1:3]
        target_height, target_width, _ = s.output_shape(x_BHWC.shape[1:])
        if s.evaluation == "centre_crop":
            if s.resize:
                x_BHWC = geometry.resize(x_BHWC, s.resize, s.resize, s.interpolation)
            x_BHWC = geometry.centre_crop(x_BHWC, target_height, target_width)
        elif s.evaluation == "crop_fraction":
            side = int(min(target_height, target_width) / s.crop_fraction)
            x_BHWC = geometry.resize(x_BHWC, *geometry.shorter_side(height, width, side), s.interpolation)
            x_BHWC = geometry.centre_crop(x_BHWC, target_height, target_width)
        else:
            x_BHWC = geometry.resize(x_BHWC, target_height, target_width, s.interpolation)
        return colour.normalize(x_BHWC, s.mean, s.std)

    return transform


def without_effect(settings: Augmentation, image_shape: tuple[int, ...], batch_size: int) -> tuple[str, ...]:
    """What was asked for and does nothing, one phrase each, for ``--dry_run``."""
    s, found = settings, []
    channels = image_shape[-1]
    before = (s.resize, s.resize) if s.resize else tuple(image_shape[:2])
    if before == s.output_shape(image_shape)[:2]:
        size = before[0] if before[0] == before[1] else f"{before[0]}×{before[1]}"
        if s.train == "resize_crop":
            found.append(f"augment.train='resize_crop' cuts {size} of {size} pixels: every crop is the whole image")
        if s.evaluation == "centre_crop":
            found.append(f"augment.evaluation='centre_crop' cuts {size} of {size} pixels: the crop is the whole image")
    if s.evaluation == "crop_fraction" and s.crop_fraction == 1.0 and image_shape[0] == image_shape[1]:
        found.append("augment.crop_fraction=1.0 of a square image: the crop is the whole image")
    if s.train == "random_resized_crop" and min(s.scale) == 1.0 and image_shape[0] == image_shape[1]:
        found.append("augment.scale=(1, 1) of a square image: every crop is the whole image")
    if s.jitter and channels == 1 and any(s.jitter[2:]):
        found.append("augment.jitter: saturation and hue mean nothing on images of one channel")
    if s.mixes and batch_size == 1:
        found.append("augment.mixup and cutmix: an image alone in its batch has no partner")
    if s.mixup and s.cutmix and s.switch in (0.0, 1.0):
        off = "cutmix" if s.switch == 0 else "mixup"
        found.append(f"augment.{off} is never chosen at augment.switch={s.switch:g}")
    if s.mixes and s.mix_probability == 0:
        found.append("augment.mix_probability=0 mixes nothing")
    return tuple(found)
