"""AutoAugment, RandAugment and TrivialAugment on the device.

AutoAugment: Cubuk et al., CVPR 2019 (the tables for CIFAR-10 and ImageNet). RandAugment: Cubuk et al., NeurIPS 2020, in
timm's notation, such as 'rand-m9-n2-mstd0.5-inc1'. TrivialAugment (wide): Müller and Hutter, ICCV 2021.

A policy draws a few operations and their strengths for each image. `apply_operation` runs one warp, one table look-up,
one colour blend and one sharpening; at most one of the four changes the image. (A `switch` over 16 operations would
compute all 16 branches under `vmap`.)

Differences from the original implementations, for speed and for the same result on every device:
- warps are bilinear; timm draws between bilinear and bicubic, torchvision uses the nearest pixel;
- all three policies fill the area outside the image with the mean colour of the normalisation, as timm does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxvit.data import colour
from jaxvit.data.geometry import centred, rotation_matrix, warp
from jaxvit.errors import UsageError

# Name -> unit of the strength.
OPERATIONS = {
    "Identity": "",
    "AutoContrast": "",
    "Equalize": "",
    "Invert": "",
    "Posterize": "bits kept, 0..8",
    "Solarize": "threshold, 0..256",
    "SolarizeAdd": "added to values below 128",
    "Brightness": "factor, 1 = unchanged",
    "Contrast": "factor",
    "Color": "factor",
    "Sharpness": "factor",
    "Rotate": "degrees, counter-clockwise",
    "ShearX": "pixels to the left per row down",
    "ShearY": "pixels up per column to the right",
    "TranslateX": "share of the width, to the left",
    "TranslateY": "share of the height, upwards",
}
_ID = {name: i for i, name in enumerate(OPERATIONS)}
_TABLES = ("AutoContrast", "Equalize", "Invert", "Posterize", "Solarize", "SolarizeAdd", "Brightness", "Contrast")

# Draws for one image: key -> (operations int32 [L], strengths float32 [L]), applied in order.
Policy = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


def apply_operation(
    image_HWC: jax.Array, operation: jax.Array, strength: jax.Array, background: tuple[float, ...] = (0.0,)
) -> jax.Array:
    """Applies one operation to one image.

    Args:
      image_HWC: uint8, one or three channels.
      operation: index into OPERATIONS; may be traced.
      strength: in the operation's unit.
      background: fill colour of warps, 0..255: C values, or one for all channels.

    Returns:
      uint8, same shape.
    """
    height, width, channels = image_HWC.shape

    def when(name: str, value: jax.Array | float, otherwise: float) -> jax.Array:
        return jnp.where(operation == _ID[name], value, otherwise)

    turn = centred(rotation_matrix(jnp.deg2rad(when("Rotate", strength, 0.0))), height, width)
    shift = jnp.stack(
        [
            jnp.stack([jnp.float32(0), when("ShearX", strength, 0.0), when("TranslateX", strength * width, 0.0)]),
            jnp.stack([when("ShearY", strength, 0.0), jnp.float32(0), when("TranslateY", strength * height, 0.0)]),
        ]
    )
    warped = warp(image_HWC[None], (turn + shift)[None], fill="zero", colour=background)[0]
    moved = operation >= _ID["Rotate"]
    image_HWC = jnp.where(moved, jnp.floor(warped + 1e-3).astype(jnp.uint8), image_HWC)

    image_HWC = colour.look_up(image_HWC, _table(image_HWC, operation, strength))
    mixed = image_HWC.astype(jnp.float32)
    if channels == 3:
        mixed = jnp.where(operation == _ID["Color"], colour.saturate(image_HWC, strength), mixed)
    mixed = jnp.where(operation == _ID["Sharpness"], colour.sharpen(image_HWC, strength), mixed)
    return mixed.astype(jnp.uint8)


def _table(image_HWC: jax.Array, operation: jax.Array, strength: jax.Array) -> jax.Array:
    """Returns the look-up table [C, 256] of an operation; the identity for operations that are not table look-ups."""
    channels = image_HWC.shape[-1]
    counts_CL = colour.histogram(image_HWC)
    mean_grey = jnp.floor(jnp.mean(jnp.floor(colour.grey(image_HWC.astype(jnp.float32)) + 0.5)) + 0.5)
    tables = {
        "AutoContrast": colour.autocontrast_table(counts_CL),
        "Equalize": colour.equalize_table(counts_CL),
        "Invert": colour.solarize_table(jnp.float32(0)),
        "Posterize": colour.posterize_table(jnp.clip(strength, 0, 8)),
        "Solarize": colour.solarize_table(strength),
        "SolarizeAdd": colour.solarize_add_table(strength),
        "Brightness": colour.blend_table(jnp.float32(0), strength),
        "Contrast": colour.blend_table(mean_grey, strength),
    }
    shape = (channels, colour.LEVELS)
    chosen = jnp.broadcast_to(jnp.arange(colour.LEVELS, dtype=jnp.int32)[None], shape)
    for name in _TABLES:
        table = tables[name] if tables[name].ndim == 2 else tables[name][None]
        chosen = jnp.where(operation == _ID[name], jnp.broadcast_to(table, shape), chosen)
    return chosen


def apply_policy(
    policy: Policy, keys_B: jax.Array, images_BHWC: jax.Array, background: tuple[float, ...] = (0.0,)
) -> jax.Array:
    """Draws operations for each uint8 image and applies them; returns uint8 images."""

    def one(key: jax.Array, image_HWC: jax.Array) -> jax.Array:
        def layer(image_HWC: jax.Array, drawn: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            return apply_operation(image_HWC, *drawn, background), None

        return jax.lax.scan(layer, image_HWC, policy(key))[0]  # compiles the body once for any number of layers

    return jax.vmap(one)(keys_B, images_BHWC)


@dataclass(frozen=True)
class RandAugmentSettings:
    """Settings of RandAugment, in timm's notation 'rand-m9-n2-mstd0.5-inc1'.

    Attributes:
      magnitude: m, 0..10.
      layers: n, operations per image.
      std: mstd, standard deviation of the magnitude of each operation around m, clipped to 0..`limit`; 100 or more
        draws the magnitude uniformly from 0..m.
      limit: mmax, the largest magnitude.
      increasing: inc1: every operation becomes stronger with the magnitude. Without it some become weaker, as in timm.
      probability: p, probability that each operation is applied.
    """

    magnitude: float = 10.0
    layers: int = 2
    std: float = 0.0
    limit: float = 10.0
    increasing: bool = False
    probability: float = 0.5


def parse_rand_augment(text: str) -> RandAugmentSettings:
    """Parses timm's notation of RandAugment.

    Raises:
      ValueError: an unknown part, or a value out of range.
    """
    fields = {"m": "magnitude", "n": "layers", "mstd": "std", "mmax": "limit", "inc": "increasing", "p": "probability"}
    kinds = {"layers": int, "increasing": lambda value: bool(int(value))}
    values = {}
    for part in text.split("-")[1:]:
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
        if not match or match[1] not in fields:
            raise ValueError(f"'{part}' is not one of m9, n2, mstd0.5, mmax10, inc1, p0.5")
        name = fields[match[1]]
        values[name] = kinds.get(name, float)(match[2])
    settings = RandAugmentSettings(**values)
    if settings.layers < 1 or settings.magnitude > settings.limit or settings.probability > 1:
        raise ValueError(f"needs n of 1 or more, m up to {settings.limit:g} and p up to 1")
    return settings


_RAND_OPERATIONS = [name for name in OPERATIONS if name != "Identity"]


def rand_augment(settings: RandAugmentSettings) -> Policy:
    """Returns timm's RandAugment: draws n of 15 operations, with replacement, and applies each with probability p."""

    def policy(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys_4 = jax.random.split(key, 4)
        shape = (settings.layers,)
        chosen_L = jax.random.randint(keys_4[0], shape, 0, len(_RAND_OPERATIONS))
        done_L = jax.random.bernoulli(keys_4[1], settings.probability, shape)
        sign_L = jax.random.rademacher(keys_4[2], shape, jnp.float32)
        if settings.std >= 100:
            level_L = jax.random.uniform(keys_4[3], shape) * settings.magnitude
        else:
            level_L = settings.magnitude + settings.std * jax.random.normal(keys_4[3], shape)
        level_L = jnp.clip(level_L, 0.0, settings.limit)
        strength_NL = jnp.stack(
            [rand_strength(name, level_L, sign_L, settings.increasing) for name in _RAND_OPERATIONS]
        )
        strength_L = jnp.take_along_axis(strength_NL, chosen_L[None], axis=0)[0]
        ids = jnp.array([_ID[name] for name in _RAND_OPERATIONS])
        return jnp.where(done_L, ids[chosen_L], _ID["Identity"]), strength_L

    return policy


def rand_strength(name: str, level: jax.Array, sign: jax.Array, increasing: bool) -> jax.Array:
    """Returns the strength of an operation at a level of 0..10, as in timm."""
    share = level / 10.0
    if name in ("Brightness", "Contrast", "Color", "Sharpness"):
        return jnp.maximum(0.1, 1 + sign * share * 0.9) if increasing else share * 1.8 + 0.1
    if name == "Posterize":
        bits = jnp.floor(share * 4)
        return 4 - bits if increasing else bits
    if name == "Solarize":
        threshold = jnp.minimum(jnp.floor(share * 256), 256)
        return 256 - threshold if increasing else threshold
    if name == "SolarizeAdd":
        return jnp.minimum(jnp.floor(share * 110), 128)
    widest = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3, "TranslateX": 0.45, "TranslateY": 0.45}
    return sign * share * widest.get(name, 0.0)


# Sub-policies, separated by semicolons or line ends: operation, probability, level 0..9; the same again.
_CIFAR10_TABLE = """
Invert .1 0 Contrast .2 6; Rotate .7 2 TranslateX .3 9; Sharpness .8 1 Sharpness .9 3; ShearY .5 8 TranslateY .7 9
AutoContrast .5 0 Equalize .9 0; ShearY .2 7 Posterize .3 7; Color .4 3 Brightness .6 7
Sharpness .3 9 Brightness .7 9; Equalize .6 0 Equalize .5 0; Contrast .6 7 Sharpness .6 5; Color .7 7 TranslateX .5 8
Equalize .3 0 AutoContrast .4 0; TranslateY .4 3 Sharpness .2 6; Brightness .9 6 Color .2 8; Solarize .5 2 Invert .0 0
Equalize .2 0 AutoContrast .6 0; Equalize .2 0 Equalize .6 0; Color .9 9 Equalize .6 0; AutoContrast .8 0 Solarize .2 8
Brightness .1 3 Color .7 0; Solarize .4 5 AutoContrast .9 0; TranslateY .9 9 TranslateY .7 9
AutoContrast .9 0 Solarize .8 3; Equalize .8 0 Invert .1 0; TranslateY .7 9 AutoContrast .9 0
"""
_IMAGENET_TABLE = """
Posterize .4 8 Rotate .6 9; Solarize .6 5 AutoContrast .6 0; Equalize .8 0 Equalize .6 0; Posterize .6 7 Posterize .6 6
Equalize .4 0 Solarize .2 4; Equalize .4 0 Rotate .8 8; Solarize .6 3 Equalize .6 0; Posterize .8 5 Equalize 1 0
Rotate .2 3 Solarize .6 8; Equalize .6 0 Posterize .4 6; Rotate .8 8 Color .4 0; Rotate .4 9 Equalize .6 0
Equalize .0 0 Equalize .8 0; Invert .6 0 Equalize 1 0; Color .6 4 Contrast 1 8; Rotate .8 8 Color 1 2
Color .8 8 Solarize .8 7; Sharpness .4 7 Invert .6 0; ShearX .6 5 Equalize 1 0; Color .4 0 Equalize .6 0
Equalize .4 0 Solarize .2 4; Solarize .6 5 AutoContrast .6 0; Invert .6 0 Equalize 1 0; Color .6 4 Contrast 1 8
Equalize .8 0 Equalize .6 0
"""


def auto_augment(table: str) -> Policy:
    """Returns AutoAugment: draws one of 25 pairs of operations per image; each is applied with its probability.

    The signs of geometric and enhancing operations are drawn.

    Args:
      table: the sub-policies, in the format of `_CIFAR10_TABLE`.
    """
    pairs = [entry.split() for entry in table.replace("\n", ";").split(";") if entry.strip()]
    ids, chances, sizes, signed = [], [], [], []
    for words in pairs:
        for name, chance, level in (words[:3], words[3:]):
            size, has_sign = _auto_strength(name, int(level))
            ids.append(_ID[name])
            chances.append(float(chance))
            sizes.append(size)
            signed.append(has_sign)
    enhancing = jnp.array([_ID["Brightness"], _ID["Contrast"], _ID["Color"], _ID["Sharpness"]])
    count = len(pairs)

    def policy(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        pair_key, chance_key, sign_key = jax.random.split(key, 3)
        pair = jax.random.randint(pair_key, (), 0, count)
        chosen_2 = pair * 2 + jnp.arange(2)
        ids_2 = jnp.array(ids)[chosen_2]
        sign_2 = jnp.where(jnp.array(signed)[chosen_2], jax.random.rademacher(sign_key, (2,), jnp.float32), 1.0)
        strength_2 = sign_2 * jnp.array(sizes, jnp.float32)[chosen_2]
        strength_2 = jnp.where(jnp.isin(ids_2, enhancing), 1 + strength_2, strength_2)
        done_2 = jax.random.uniform(chance_key, (2,)) < jnp.array(chances, jnp.float32)[chosen_2]
        return jnp.where(done_2, ids_2, _ID["Identity"]), strength_2

    return policy


def _auto_strength(name: str, level: int) -> tuple[float, bool]:
    """Returns (strength at level 0..9, whether its sign is drawn); for enhancing factors, the distance from 1."""
    share = level / 9
    if name == "Posterize":
        return 8 - round(share * 4), False
    if name == "Solarize":
        return 255.0 * (1 - share), False
    widest = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3, "TranslateX": 150 / 331, "TranslateY": 150 / 331}
    if name in widest:
        return share * widest[name], True
    return (0.0, False) if name in ("AutoContrast", "Equalize", "Invert") else (share * 0.9, True)


_TRIVIAL_OPERATIONS = [name for name in OPERATIONS if name not in ("Invert", "SolarizeAdd")]


def trivial_augment(height: int, width: int) -> Policy:
    """Returns TrivialAugment (wide): draws one operation per image and one of 31 strengths, both uniformly.

    Args:
      height, width: size of the images in pixels. Translations shift by at most 32 pixels for any size.
    """

    def strength(name: str, share: jax.Array, sign: jax.Array) -> jax.Array:
        if name in ("Brightness", "Contrast", "Color", "Sharpness"):
            return 1 + sign * share * 0.99
        if name == "Posterize":
            return 8 - jnp.round(share * 6)
        if name == "Solarize":
            return 255 * (1 - share)
        widest = {"Rotate": 135.0, "ShearX": 0.99, "ShearY": 0.99, "TranslateX": 32 / width, "TranslateY": 32 / height}
        return sign * share * widest.get(name, 0.0)

    def policy(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        choice_key, level_key, sign_key = jax.random.split(key, 3)
        choice = jax.random.randint(choice_key, (), 0, len(_TRIVIAL_OPERATIONS))
        share = jax.random.randint(level_key, (), 0, 31).astype(jnp.float32) / 30.0
        sign = jax.random.rademacher(sign_key, (), jnp.float32)
        strengths = jnp.stack([strength(name, share, sign) for name in _TRIVIAL_OPERATIONS])
        return jnp.array([_ID[name] for name in _TRIVIAL_OPERATIONS])[choice][None], strengths[choice][None]

    return policy


POLICIES = ("autoaugment-cifar10", "autoaugment-imagenet", "trivial", "rand-m9-n2-mstd0.5-inc1")


def make_policy(text: str, height: int, width: int) -> Policy:
    """Returns the policy that the config key ``augment.policy`` names.

    Args:
      text: 'autoaugment-cifar10', 'autoaugment-imagenet', 'trivial', or RandAugment in timm's notation.
      height, width: size of the images in pixels.

    Raises:
      UsageError: unknown policy.
    """
    if text == "autoaugment-cifar10":
        return auto_augment(_CIFAR10_TABLE)
    if text == "autoaugment-imagenet":
        return auto_augment(_IMAGENET_TABLE)
    if text == "trivial":
        return trivial_augment(height, width)
    if text.split("-")[0] == "rand":
        try:
            return rand_augment(parse_rand_augment(text))
        except ValueError as error:
            raise UsageError(f"config.augment.policy='{text}': {error}") from None
    raise UsageError(f"config.augment.policy='{text}': must be one of {', '.join(POLICIES)}, or '' for none")


def background(mean: tuple[float, ...]) -> tuple[float, ...]:
    """Returns the fill colour of warps: the mean, rounded to whole numbers of 0..255."""
    return tuple(float(min(255, math.floor(255 * m + 0.5))) for m in mean)
