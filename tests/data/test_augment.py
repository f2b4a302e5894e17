"""The combined transforms: order, keys, sizes, on device and host, and errors for keys without effect."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxvit.data.augment import augment, augment_geometry, preprocess, without_effect
from jaxvit.data.colour import normalize
from jaxvit.data.geometry import flip_left_right, pad_and_crop
from jaxvit.data.settings import Augmentation

IMAGES = np.random.default_rng(0).integers(0, 256, (64, 6, 5, 3), dtype=np.uint8)
BATCH = {"image": IMAGES, "label": np.arange(64, dtype=np.int32) % 3, "mask": np.ones(64, np.float32)}
EVERYTHING = Augmentation(
    train="resize_crop",
    evaluation="centre_crop",
    resize=12,
    size=10,
    flip=True,
    rotation=0.02,
    zoom=0.2,
    policy="rand-m9-n2-mstd0.5-inc1",
    jitter=(0.4, 0.4, 0.4, 0.1),
    erase=0.25,
    mixup=0.8,
    cutmix=1.0,
)


@functools.cache
def compiled(settings, smoothing):
    return jax.jit(functools.partial(augment, settings=settings, classes=3, label_smoothing=smoothing))


def apply(settings, key=0, step=0, batch=BATCH, smoothing=0.0):
    transform = compiled(settings, smoothing)
    return jax.tree.map(np.asarray, transform(jax.random.key(key), jnp.int32(step), batch))


def test_normalize():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    expected = (IMAGES / 255.0 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(normalize(IMAGES, mean, std), expected, rtol=1e-5, atol=1e-6)
    assert normalize(IMAGES, mean, std).dtype == jnp.float32
    np.testing.assert_allclose(normalize(IMAGES, (0.0,), (1.0,)), IMAGES / 255.0, rtol=1e-6)
    # Pixels left at 0..255, as one of the documents has them.
    np.testing.assert_allclose(normalize(IMAGES, (0.0,), (1 / 255,)), IMAGES, rtol=1e-6)


def test_every_crop_is_a_window_of_the_padded_image_and_images_differ():
    keys = jax.random.split(jax.random.key(1), len(IMAGES))
    cropped = np.asarray(pad_and_crop(keys, IMAGES, 2))
    places = []
    for image, crop in zip(IMAGES, cropped, strict=True):
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
        fits = [(y, x) for y in range(5) for x in range(5) if np.array_equal(padded[y : y + 6, x : x + 5], crop)]
        assert len(fits) == 1
        places += fits
    assert len(set(places)) > 15  # of 25: one decision an image, not one a batch
    assert {y for y, _ in places} == set(range(5)) == {x for _, x in places}


def test_flip_mirrors_about_half_of_the_images():
    keys = jax.random.split(jax.random.key(2), len(IMAGES))
    flipped = np.asarray(flip_left_right(keys, IMAGES))
    mirrored = [np.array_equal(f, i[:, ::-1]) for f, i in zip(flipped, IMAGES, strict=True)]
    kept = [np.array_equal(f, i) for f, i in zip(flipped, IMAGES, strict=True)]
    assert all(m != k for m, k in zip(mirrored, kept, strict=True))
    assert 16 <= sum(mirrored) <= 48


@pytest.mark.parametrize("settings", [Augmentation(pad_crop=2, flip=True), EVERYTHING], ids=["plain", "everything"])
def test_same_key_same_batch_other_key_other_batch(settings):
    once, again, other = apply(settings, 3), apply(settings, 3), apply(settings, 4)
    np.testing.assert_array_equal(once[0], again[0])
    np.testing.assert_array_equal(once[1], again[1])
    assert not np.array_equal(once[0], other[0])
    assert once[0].dtype == np.float32 and np.isfinite(once[0]).all()
    np.testing.assert_allclose(once[1].sum(1), 1, atol=1e-5)


def test_an_images_decision_does_not_depend_on_the_others():
    settings = replace(EVERYTHING, policy="", mixup=0.0, cutmix=0.0)
    changed = IMAGES.copy()
    changed[7:] = 0
    here, there = apply(settings)[0], apply(settings, batch={**BATCH, "image": changed})[0]
    np.testing.assert_array_equal(here[:7], there[:7])
    short = {name: values[:8] for name, values in BATCH.items()}
    np.testing.assert_allclose(apply(settings, batch=short)[0], here[:8], atol=1e-4)  # nor on how many there are


def test_targets_are_smoothed_one_hot_labels():
    _, targets = apply(Augmentation(), smoothing=0.3)
    np.testing.assert_allclose(targets, np.eye(3)[BATCH["label"]] * 0.7 + 0.1, atol=1e-6)


def test_mixing_ends_at_its_step():
    settings = Augmentation(mixup=0.8, mix_until=10)
    plain = apply(Augmentation())
    assert not np.array_equal(apply(settings, step=9)[0], plain[0])
    for got, expected in zip(apply(settings, step=10), plain, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_evaluation_only_normalizes():
    settings = Augmentation(mean=(0.5,), std=(0.25,), pad_crop=2, flip=True)
    expected = (IMAGES / 255.0 - 0.5) / 0.25
    np.testing.assert_allclose(preprocess(IMAGES, settings), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "pillow"),
    [
        (Augmentation(size=12), lambda im: im.resize((12, 12), Image.Resampling.BILINEAR)),
        (
            Augmentation(evaluation="centre_crop", resize=52, size=48),
            lambda im: im.resize((52, 52), Image.Resampling.BILINEAR).crop((2, 2, 50, 50)),
        ),
        (
            Augmentation(evaluation="crop_fraction", crop_fraction=0.875, size=14, interpolation="bicubic"),
            lambda im: im.resize((16, 16), Image.Resampling.BICUBIC).crop((1, 1, 15, 15)),
        ),
    ],
    ids=["whole", "centre_crop", "crop_fraction"],
)
def test_evaluation_sizes_against_pillow(settings, pillow):
    picture = np.asarray(Image.fromarray(IMAGES[0]).resize((32, 32), Image.Resampling.BICUBIC))
    ours = np.asarray(preprocess(picture[None], settings))[0] * 255
    assert np.abs(ours - np.asarray(pillow(Image.fromarray(picture)))).max() <= 1.01
    assert ours.shape == settings.output_shape((32, 32, 3))


def test_the_shorter_side_counts_for_the_crop_fraction():
    wide = np.zeros((1, 20, 40, 3), np.uint8)
    wide[:, :, 10:30] = 255
    settings = Augmentation(evaluation="crop_fraction", crop_fraction=1.0, size=10)
    assert np.asarray(preprocess(wide, settings)).min() > 0.85  # the filter is as wide as two pixels


@pytest.mark.parametrize("train", ["whole", "resize_crop", "random_resized_crop"])
def test_training_sizes(train):
    settings = Augmentation(train=train, resize=52 if train == "resize_crop" else 0, size=48)
    assert apply(settings)[0].shape == (64, 48, 48, 3)


def test_geometry_on_the_host_gives_the_same_batch():
    key = jax.random.key(6)
    on_host = jax.jit(functools.partial(augment_geometry, settings=EVERYTHING))(key, IMAGES)
    there = apply(replace(EVERYTHING, where="host"), 6, batch={**BATCH, "image": np.asarray(on_host)})
    for got, expected in zip(there, apply(EVERYTHING, 6), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "batch_size", "says"),
    [
        (Augmentation(train="resize_crop", size=32), 8, "cuts 32 of 32 pixels"),
        (Augmentation(evaluation="centre_crop"), 8, "the crop is the whole image"),
        (Augmentation(evaluation="crop_fraction"), 8, "augment.crop_fraction=1.0"),
        (Augmentation(train="random_resized_crop", scale=(1.0, 1.0)), 8, "augment.scale"),
        (Augmentation(jitter=(0.1, 0.1, 0.1, 0.0)), 8, "one channel"),
        (Augmentation(mixup=0.8), 1, "no partner"),
        (Augmentation(mixup=0.8, cutmix=1.0, switch=1.0), 8, "augment.mixup is never chosen"),
        (Augmentation(mixup=0.8, mix_probability=0.0), 8, "mixes nothing"),
    ],
)
def test_what_does_nothing_is_named(settings, batch_size, says):
    assert any(says in phrase for phrase in without_effect(settings, (32, 32, 1), batch_size))
    assert not without_effect(EVERYTHING, (32, 32, 3), 8)
