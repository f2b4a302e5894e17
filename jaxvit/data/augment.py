"""The transforms between the uint8 batch and the model: `augment` for training, `preprocess` for evaluation.

`augment` is a pure function of (key, step, batch). Each image draws from its own key, which is derived from the step's
key and the image's position in the batch. The exception is ``augment.flip_mode='alternate'``, which depends on the
image and the epoch and uses one key for all steps. The order is fixed:

    size -> pad_crop -> flip -> rotation and zoom | policy -> jitter -> own -> normalize -> erase -> mixup / CutMix

The steps before the bar are the geometry; ``augment.where='host'`` moves them to the host's CPU.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from jaxvit.data import colour, geometry, mixing, policies
from jaxvit.data.settings import Augmentation, Preprocessing
from jaxvit.ops.labels import one_hot
from jaxvit.own_code import load_function


def image_keys(key: jax.Array, name: int, batch: int) -> jax.Array:
    """Derives a key per image for one use of randomness; a longer batch starts with the same keys."""
    return jax.random.split(jax.random.fold_in(key, name), batch)


def flip_key(root: jax.Array) -> jax.Array:
    """Derives the key of ``flip_mode='alternate'``, the same for all steps, from the root key of all steps."""
    return jax.random.fold_in(root, zlib.crc32(b"flip"))


def mirrored(
    settings: Augmentation, key: jax.Array | None, step: jax.Array, batch: Mapping[str, jax.Array]
) -> jax.Array | None:
    """Returns which images of a batch to mirror, bool [B], with ``flip_mode='alternate'``; else None.

    Args:
      settings: settings of the augmentation.
      key: key made by `flip_key`.
      step: number of the step.
      batch: batch with the images' numbers in their split.
    """
    if not settings.alternates:
        return None
    if key is None:
        raise ValueError("flip_mode='alternate' draws from a key that all steps share: give flips=flip_key(root)")
    return geometry.alternating(key, batch["number"], step // settings.epoch_steps)


def augment_geometry(
    key: jax.Array,
    x_BHWC: jax.Array,
    settings: Augmentation,
    *,
    mirrored_B: jax.Array | None = None,
    before: int = 0,
) -> jax.Array:
    """Resizes, crops, mirrors, rotates and zooms uint8 images [B, H, W, C] to the model's size; values stay 0..255.

    The result stays uint8 where nothing is interpolated.

    Args:
      key: key of the step.
      x_BHWC: images.
      settings: what to do.
      mirrored_B: which images to mirror, as `mirrored` returns it; None = each with probability 1/2 if `settings.flip`.
      before: number of images of the batch that precede these, where these are one process's part of it.
    """
    s = settings

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


def augment(
    key: jax.Array,
    step: jax.Array,
    batch: Mapping[str, jax.Array],
    settings: Augmentation,
    *,
    classes: int,
    label_smoothing: float = 0.0,
    each: mixing.Each = jax.vmap,
    within: mixing.Within = lambda blend: blend,
    flips: jax.Array | None = None,
    class_weights: Sequence[float] = (),
) -> tuple[jax.Array, jax.Array]:
    """The training transform: augments and normalizes a batch, and makes its targets.

    Args:
      key: key of the step.
      step: number of the step, int32.
      batch: image uint8 [B, H, W, C], label int32 [B], mask [B]; with ``flip_mode='alternate'`` also number int32 [B],
        the images' numbers in their split.
      settings: what to do.
      classes: K, of the model's output.
      label_smoothing: share of each target spread evenly over all classes, before mixing.
      each: lifts a per-image function to a batch, like `jax.vmap`; see `jaxvit.data.mixing.mix`.
      within: calls a function for each part of the batch whose images are mixed with each other; see there.
      flips: key made by `flip_key`, needed with ``flip_mode='alternate'``.
      class_weights: weight of each class. An image's target is multiplied by the weight of its class, before mixing;
        () = all weights are 1. Cross-entropy is linear in the target: an image mixed from a (share s) and b has the
        loss s·w_a·CE(a) + (1 - s)·w_b·CE(b).

    Returns:
      Images float32 [B, H, W, C] and targets float32 [B, K]: a distribution over the classes for each image, times its
      weight.
    """
    s = settings

    def keys(name: int) -> jax.Array:
        return image_keys(key, name, batch["image"].shape[0])

    x_BHWC = batch["image"]
    if s.where != "host":
        x_BHWC = augment_geometry(key, x_BHWC, s, mirrored_B=mirrored(s, flips, step, batch))
    if s.policy:
        policy = policies.make_policy(s.policy, *x_BHWC.shape[1:3])
        x_BHWC = policies.apply_policy(policy, keys(5), colour.to_uint8(x_BHWC), policies.background(s.mean))
    if s.jitter:
        x_BHWC = colour.colour_jitter(keys(4), x_BHWC, s.jitter)
    if s.own:
        own = load_function(s.own, "augment.own")
        x_BHWC = 255.0 * each(own)(keys(8), x_BHWC.astype(jnp.float32) / 255.0)
    x_BHWC = colour.normalize(x_BHWC, s.mean, s.std)
    if s.erase:
        x_BHWC = mixing.random_erasing(keys(6), x_BHWC, s.erase, mode=s.erase_mode)
    targets_BK = one_hot(batch["label"], classes, label_smoothing)
    if class_weights:
        weights_K = jnp.asarray(class_weights, jnp.float32)
        targets_BK = targets_BK * jnp.take(weights_K, batch["label"], mode="clip")[:, None]
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
            within=within,
        )
    return x_BHWC, targets_BK


def preprocess(x_BHWC: jax.Array, settings: Preprocessing) -> jax.Array:
    """The evaluation transform: resizes uint8 images [B, H, W, C] to the model's size and normalizes; not random."""
    s = settings
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


def without_effect(settings: Augmentation, image_shape: tuple[int, ...], batch_size: int) -> tuple[str, ...]:
    """Lists settings that have no effect, one phrase each, for ``--dry_run``."""
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
