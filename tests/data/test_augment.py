"""Pixels on the device against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxvit.data.augment import (
    Augmentation,
    evaluation_transform,
    flip_left_right,
    normalize,
    pad_and_crop,
    training_transform,
)

IMAGES = np.random.default_rng(0).integers(0, 256, (64, 6, 5, 3), dtype=np.uint8)


def test_normalize():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    expected = (IMAGES / 255.0 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(normalize(IMAGES, mean, std), expected, rtol=1e-5, atol=1e-6)
    assert normalize(IMAGES, mean, std).dtype == jnp.float32
    np.testing.assert_allclose(normalize(IMAGES, (0.0,), (1.0,)), IMAGES / 255.0, rtol=1e-6)


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


def test_same_key_same_batch_other_key_other_batch():
    transform = jax.jit(training_transform(Augmentation(pad_crop=2, flip=True)))
    once, again = transform(jax.random.key(3), IMAGES), transform(jax.random.key(3), IMAGES)
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, transform(jax.random.key(4), IMAGES))


def test_an_images_decision_does_not_depend_on_the_others():
    transform = training_transform(Augmentation(pad_crop=2, flip=True))
    key = jax.random.key(5)
    np.testing.assert_array_equal(transform(key, IMAGES)[:7], transform(key, np.roll(IMAGES[:64], 0))[:7])
    changed = IMAGES.copy()
    changed[7:] = 0
    np.testing.assert_array_equal(transform(key, IMAGES)[:7], transform(key, changed)[:7])


def test_evaluation_only_normalizes():
    settings = Augmentation(mean=(0.5,), std=(0.25,), pad_crop=2, flip=True)
    expected = (IMAGES / 255.0 - 0.5) / 0.25
    np.testing.assert_allclose(evaluation_transform(settings)(IMAGES), expected, rtol=1e-5, atol=1e-5)
