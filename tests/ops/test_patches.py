"""Patches against a loop over pixels."""

import numpy as np
import pytest

from jaxvit.ops import image_to_patches, patches_to_image


def test_patches_are_rows_then_columns_then_channels():
    image = np.random.default_rng(0).normal(size=(2, 6, 4, 3)).astype(np.float32)
    patches = np.asarray(image_to_patches(image, patch=2))
    assert patches.shape == (2, 3, 2, 12)
    for row in range(3):
        for column in range(2):
            pixels = [image[:, 2 * row + i, 2 * column + j, c] for i in range(2) for j in range(2) for c in range(3)]
            np.testing.assert_array_equal(patches[:, row, column], np.stack(pixels, -1))
    np.testing.assert_array_equal(patches_to_image(patches, patch=2), image)


def test_fashion_mnist_loses_three_rows_and_columns_only_if_asked():
    image = np.arange(28 * 28, dtype=np.float32).reshape(1, 28, 28, 1)
    with pytest.raises(ValueError, match=r"patch=5 does not divide an image of 28x28.*crop"):
        image_to_patches(image, patch=5)
    patches = image_to_patches(image, patch=5, crop=True)
    assert patches.shape == (1, 5, 5, 25)
    np.testing.assert_array_equal(patches_to_image(patches, patch=5), image[:, :25, :25])


@pytest.mark.parametrize("shape, patch", [((1, 8, 8), 2), ((1, 8, 8, 3), 0), ((1, 8, 8, 3), 9)])
def test_bad_input_is_refused(shape, patch):
    with pytest.raises(ValueError):
        image_to_patches(np.zeros(shape, np.float32), patch=patch)
    with pytest.raises(ValueError):
        patches_to_image(np.zeros((1, 2, 2, 10), np.float32), patch=2)
