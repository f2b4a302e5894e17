"""Colour operations and policies on the device against Pillow, and timm's and the papers' strengths."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from jaxvit.data import colour, policies
from jaxvit.errors import UsageError

RNG = np.random.default_rng(0)
NOISE = RNG.integers(40, 220, (12, 10, 3), dtype=np.uint8)
SMOOTH = np.asarray(
    Image.fromarray(RNG.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((20, 16), Image.Resampling.BICUBIC)
)
NAMES = list(policies.OPERATIONS)


def affine(*numbers):
    return lambda im: im.transform(
        im.size, Image.Transform.AFFINE, numbers, Image.Resampling.BILINEAR, fillcolor=(9, 9, 9)
    )


def brighter(im):
    return im.point([min(255, i + 66) if i < 128 else i for i in range(256)] * 3)


CASES = {
    "Identity": (0.0, lambda im: im),
    "AutoContrast": (0.0, ImageOps.autocontrast),
    "Equalize": (0.0, ImageOps.equalize),
    "Invert": (0.0, ImageOps.invert),
    "Posterize": (3.0, lambda im: ImageOps.posterize(im, 3)),
    "Solarize": (100.0, lambda im: ImageOps.solarize(im, 100)),
    "SolarizeAdd": (66.0, brighter),
    "Brightness": (1.7, lambda im: ImageEnhance.Brightness(im).enhance(1.7)),
    "Contrast": (0.4, lambda im: ImageEnhance.Contrast(im).enhance(0.4)),
    "Color": (1.6, lambda im: ImageEnhance.Color(im).enhance(1.6)),
    "Sharpness": (1.8, lambda im: ImageEnhance.Sharpness(im).enhance(1.8)),
    "Rotate": (20.0, lambda im: im.rotate(20, Image.Resampling.BILINEAR, fillcolor=(9, 9, 9))),
    "ShearX": (0.25, affine(1, 0.25, 0, 0, 1, 0)),
    "ShearY": (-0.2, affine(1, 0, 0, -0.2, 1, 0)),
    "TranslateX": (0.2, lambda im: affine(1, 0, 0.2 * im.width, 0, 1, 0)(im)),
    "TranslateY": (-0.3, lambda im: affine(1, 0, 0, 0, 1, -0.3 * im.height)(im)),
}


@jax.jit
def operate(image, operation, strength):
    return policies.apply_operation(image, operation, strength, (9.0,))


@pytest.mark.parametrize("image", [NOISE, SMOOTH], ids=["noise", "smooth"])
@pytest.mark.parametrize("name", NAMES)
def test_each_operation_against_pillow(name, image):
    strength, pillow = CASES[name]
    ours = np.asarray(operate(image, NAMES.index(name), jnp.float32(strength))).astype(int)
    theirs = np.asarray(pillow(Image.fromarray(image))).astype(int)
    off = np.abs(ours - theirs).max(-1)
    if name == "Identity":
        assert off.max() == 0
    # One grey level for rounding; on noise a warp may also pick the other side of a border in a few places.
    assert (off > 1).mean() <= (0.03 if NAMES.index(name) >= NAMES.index("Rotate") else 0)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "Color"])
def test_each_operation_on_grey_images(name):
    strength, pillow = CASES[name]
    ours = np.asarray(operate(SMOOTH[..., :1], NAMES.index(name), jnp.float32(strength))).astype(int)
    if "Shear" in name or "Translate" in name or name in ("Rotate", "SolarizeAdd"):
        assert ours.shape == SMOOTH[..., :1].shape
    else:
        assert np.abs(ours[..., 0] - np.asarray(pillow(Image.fromarray(SMOOTH[..., 0])))).max() <= 1


def test_flat_images_survive():
    flat = np.full((6, 6, 3), 77, np.uint8)
    for name in ("AutoContrast", "Equalize", "Sharpness", "Color"):
        np.testing.assert_array_equal(operate(flat, NAMES.index(name), jnp.float32(1.5)), flat)


def test_hue_against_colorsys():
    picture = NOISE[:4, :4].astype(np.float32)
    ours = np.asarray(colour.turn_hue(jnp.asarray(picture), jnp.float32(0.3)))
    for y in range(4):
        for x in range(4):
            h, s, v = colorsys.rgb_to_hsv(*(picture[y, x] / 255))
            np.testing.assert_allclose(ours[y, x], np.array(colorsys.hsv_to_rgb((h + 0.3) % 1, s, v)) * 255, atol=0.05)


def test_jitter_above_one_cuts_the_range_off():
    """Like torchvision: uniform in [0, 1 + strength], and not a third of the images black."""
    grey = np.full((256, 2, 2, 3), 50, np.uint8)
    keys = jax.random.split(jax.random.key(0), 256)
    factors = np.asarray(colour.colour_jitter(keys, grey, (2.0, 0.0, 0.0, 0.0)))[:, 0, 0, 0] / 50
    assert (factors < 0.05).mean() < 0.05 and factors.max() > 2.9 and abs(factors.mean() - 1.5) < 0.15


def test_jitter_draws_for_each_image_and_within_its_strength():
    grey = np.full((64, 3, 3, 3), 100, np.uint8)
    keys = jax.random.split(jax.random.key(0), 64)
    out = np.asarray(colour.colour_jitter(keys, grey, (0.4, 0.0, 0.0, 0.0)))
    factors = out[:, 0, 0, 0] / 100
    assert 0.6 <= factors.min() < 0.68 and 1.32 < factors.max() <= 1.4
    np.testing.assert_allclose(colour.colour_jitter(keys, grey, (0.0, 0.9, 0.9, 0.5)), grey, atol=0.01)  # already grey
    one_channel = np.asarray(colour.colour_jitter(keys, NOISE[None, :, :, :1].repeat(64, 0), (0.0, 0.5, 0.5, 0.5)))
    assert one_channel.shape == (64, 12, 10, 1) and one_channel.std(0).max() > 0


def draws(policy, count=2000):
    ops, strengths = jax.jit(jax.vmap(policy))(jax.random.split(jax.random.key(4), count))
    return np.asarray(ops), np.asarray(strengths)


def test_rand_augment_strengths_are_timms():
    one, minus = jnp.float32(1), jnp.float32(-1)
    nine = jnp.float32(9)
    expect = {"Rotate": 27.0, "ShearX": 0.27, "TranslateY": 0.405, "SolarizeAdd": 99.0, "Color": 1.81, "Posterize": 1.0}
    for name, value in expect.items():
        assert float(policies.rand_strength(name, nine, one, True)) == pytest.approx(value), name
    assert float(policies.rand_strength("Color", nine, minus, True)) == pytest.approx(0.19)
    assert float(policies.rand_strength("Solarize", nine, one, True)) == 26.0
    assert float(policies.rand_strength("Color", nine, one, False)) == pytest.approx(1.72)
    assert float(policies.rand_strength("Posterize", nine, one, False)) == 3.0
    assert float(policies.rand_strength("Solarize", nine, one, False)) == 230.0


def test_rand_augment_draws_evenly_does_half_and_varies():
    settings = policies.parse_rand_augment("rand-m9-n2-mstd0.5-inc1")
    assert settings == policies.RandAugmentSettings(9.0, 2, 0.5, 10.0, True, 0.5)
    ops, strengths = draws(policies.rand_augment(settings))
    assert ops.shape == (2000, 2) and abs((ops == 0).mean() - 0.5) < 0.03
    shares = np.bincount(ops[ops > 0], minlength=16)[1:] / (ops > 0).sum()
    assert np.abs(shares - 1 / 15).max() < 0.03
    turns = np.abs(strengths[ops == NAMES.index("Rotate")]) / 3
    assert 8.9 < turns.mean() < 9.1 and 0.4 < turns.std() < 0.6 and turns.max() <= 10
    even = draws(policies.rand_augment(policies.parse_rand_augment("rand-m9-n1-mstd100-p1")))
    levels = np.abs(even[1][even[0] == NAMES.index("Rotate")]) / 3
    assert levels.min() < 1.5 and 7.5 < levels.max() <= 9 and (even[0] > 0).all()


@pytest.mark.parametrize("text", ["rand-m9-x2", "rand-m11", "rand-n0", "rand-mm", "trivia", "autoaugment"])
def test_a_policy_that_does_not_exist(text):
    with pytest.raises(UsageError, match=r"config\.augment\.policy='"):
        policies.make_policy(text, 32, 32)


@pytest.mark.parametrize(
    ("table", "name", "op", "share"),
    [("_CIFAR10_TABLE", "cifar10", "Invert", 0.004), ("_IMAGENET_TABLE", "imagenet", "Equalize", 0.27)],
)
def test_auto_augment_tables(table, name, op, share):
    entries = [e.split() for e in getattr(policies, table).replace("\n", ";").split(";") if e.strip()]
    assert len(entries) == 25 and all(len(e) == 6 for e in entries)
    ops, strengths = draws(policies.make_policy(f"autoaugment-{name}", 32, 32))
    words = [(e[i], float(e[i + 1])) for e in entries for i in (0, 3)]
    expected = sum(p for n, p in words if n == op) / 50
    assert abs((ops == NAMES.index(op)).mean() - expected) < 0.02 and expected == pytest.approx(share, abs=0.2)
    bits = strengths[ops == NAMES.index("Posterize")]
    assert set(bits) <= {4.0, 5.0, 6.0, 7.0, 8.0}


def test_auto_augment_levels_are_torchvisions():
    assert policies._auto_strength("Posterize", 7) == (5, False)
    assert policies._auto_strength("Solarize", 9) == (0.0, False)
    assert policies._auto_strength("Rotate", 9) == (30.0, True)
    assert policies._auto_strength("Color", 3) == (pytest.approx(0.3), True)


def test_trivial_augment_does_one_operation_at_any_strength():
    ops, strengths = draws(policies.make_policy("trivial", 64, 128))
    assert ops.shape == (2000, 1)
    shares = np.bincount(ops.ravel(), minlength=16) / 2000
    assert shares[NAMES.index("Invert")] == 0 and np.abs(shares[shares > 0] - 1 / 14).max() < 0.03
    turns = strengths[ops == NAMES.index("Rotate")]
    assert turns.min() < -120 and turns.max() > 120
    # 32 pixels of a height of 64 and a width of 128
    assert np.abs(strengths[ops == NAMES.index("TranslateY")]).max() == 0.5
    assert np.abs(strengths[ops == NAMES.index("TranslateX")]).max() == 0.25


def test_a_policy_changes_each_image_in_its_own_way():
    same = np.broadcast_to(SMOOTH[None], (16, *SMOOTH.shape))
    policy = policies.make_policy("rand-m9-n2-mstd0.5-inc1", 16, 16)
    keys = jax.random.split(jax.random.key(5), 16)
    once = np.asarray(jax.jit(lambda k, x: policies.apply_policy(policy, k, x))(keys, same))
    assert once.dtype == np.uint8 and len({image.tobytes() for image in once}) > 8
    few = np.asarray(jax.jit(lambda k, x: policies.apply_policy(policy, k, x))(keys[:3], same[:3]))
    np.testing.assert_array_equal(few, once[:3])


def test_what_comes_from_outside_has_the_colour_of_the_mean():
    assert policies.background((0.4914, 0.4822, 0.4465)) == (125.0, 123.0, 114.0)
