"""Crops, resizing and warps on the device against Pillow and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxvit.data import geometry

IMAGES = np.random.default_rng(0).integers(0, 256, (48, 8, 7, 3), dtype=np.uint8)
# Smooth pictures: what interpolation does is seen, not the noise of the pixels.
SMOOTH = np.asarray(Image.fromarray(IMAGES[0]).resize((21, 18), Image.Resampling.BICUBIC))[None]
KEYS = jax.random.split(jax.random.key(1), len(IMAGES))
PILLOW = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}


def places(big, small):
    """All positions at which `small` occurs in `big`."""
    h, w = small.shape[:2]
    spots = [(y, x) for y in range(big.shape[0] - h + 1) for x in range(big.shape[1] - w + 1)]
    return [(y, x) for y, x in spots if np.array_equal(big[y : y + h, x : x + w], small)]


def test_random_crop_gives_each_image_a_place_of_its_own():
    crops = np.asarray(geometry.random_crop(KEYS, IMAGES, 6, 5))
    found = [places(image, crop) for image, crop in zip(IMAGES, crops, strict=True)]
    assert all(len(f) == 1 for f in found)
    assert {f[0] for f in found} == {(y, x) for y in range(3) for x in range(3)}


def test_by_turns_an_image_is_mirrored_in_every_other_epoch():
    numbers = np.array([5, 999, *range(200), 5])
    epochs = [np.asarray(geometry.alternating(jax.random.key(3), numbers, epoch)) for epoch in range(4)]
    assert 60 < epochs[0].sum() < 140 and epochs[0][0] == epochs[0][-1] == epochs[0][7]
    np.testing.assert_array_equal(epochs[1], ~epochs[0])
    np.testing.assert_array_equal(epochs[2:], epochs[:2])
    assert not np.array_equal(epochs[0], geometry.alternating(jax.random.key(4), numbers, 0))
    marked = np.asarray(geometry.mirror(np.arange(48) % 3 == 0, IMAGES))
    expected = [image[:, ::-1] if i % 3 == 0 else image for i, image in enumerate(IMAGES)]
    np.testing.assert_array_equal(marked, expected)


def test_one_position_for_the_batch():
    crops = np.asarray(geometry.random_crop(KEYS, IMAGES, 6, 5, position="batch"))
    assert len({places(image, crop)[0] for image, crop in zip(IMAGES, crops, strict=True)}) == 1


def test_centre_crop():
    np.testing.assert_array_equal(geometry.centre_crop(IMAGES, 4, 4), IMAGES[:, 2:6, 1:5])


@pytest.mark.parametrize("size", [(11, 13), (5, 4)])
@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_resize_against_pillow(method, size):
    ours = np.asarray(geometry.resize(SMOOTH, *size, method))[0]
    theirs = np.asarray(Image.fromarray(SMOOTH[0]).resize(size[::-1], PILLOW[method]))
    assert (
        np.quantile(np.abs(ours - theirs), 0.98) <= 1.01
    )  # Pillow rounds, and cuts overshoot off, after each direction
    assert geometry.resize(IMAGES, 8, 7) is IMAGES


def test_resize_32_to_52_is_that_of_half_pixel_centres():
    """The documents' upscaling, against a loop over output pixels."""
    image = IMAGES[:1, :4, :4]
    ours = np.asarray(geometry.resize(image, 6, 6))[0]
    for y in range(6):
        for x in range(6):
            v, u = np.clip((np.array([y, x]) + 0.5) * 4 / 6 - 0.5, 0, 3)
            t, s = int(v), int(u)
            square = image[0, t : t + 2, s : s + 2].astype(float)
            square = np.pad(square, ((0, 2 - square.shape[0]), (0, 2 - square.shape[1]), (0, 0)), mode="edge")
            wy, wx = np.array([1 - (v - t), v - t]), np.array([1 - (u - s), u - s])
            np.testing.assert_allclose(ours[y, x], np.einsum("y,x,yxc->c", wy, wx, square), atol=1e-3)


@pytest.mark.parametrize("method", ["bilinear", "bicubic", "nearest"])
def test_crop_and_resize_against_pillow(method):
    image = SMOOTH[0]
    box = (3, 4, 9, 13)  # top, left, height, width
    ours = geometry.crop_and_resize(jnp.asarray(image, jnp.float32), *map(jnp.float32, box), 7, 3, method)
    theirs = Image.fromarray(image).resize((7, 7), PILLOW[method], box=(4, 3, 17, 12))
    assert np.abs(np.clip(ours, 0, 255) - np.asarray(theirs)).max() <= 1.01


def test_boxes_have_the_area_and_shape_asked_for():
    keys = jax.random.split(jax.random.key(2), 500)
    top, left, h, w = map(
        np.asarray, jax.vmap(lambda k: jnp.stack(geometry.crop_box(k, 64, 48, (0.3, 0.6), (0.5, 2.0))))(keys).T
    )
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= 64).all() and (left + w <= 48).all()
    share, shape = h * w / (64 * 48), w / h
    assert 0.28 < share.min() < 0.34 and 0.56 < share.max() < 0.62
    assert shape.min() > 0.48 and shape.max() < 2.1 and (shape < 0.9).any() and (shape > 1.1).any()
    assert len({*zip(top, left, strict=True)}) > 200


def test_a_box_that_never_fits_falls_back_to_the_centre():
    top, left, h, w = geometry.crop_box(jax.random.key(0), 10, 100, (0.9, 1.0), (0.9, 1.1))
    assert (float(top), float(left), float(h), float(w)) == (0.0, 44.0, 10.0, 11.0)


def test_random_resized_crop_has_the_size_and_differs():
    crops = np.asarray(geometry.random_resized_crop(KEYS, IMAGES, 5))
    assert crops.shape == (48, 5, 5, 3) and crops.min() >= 0 and crops.max() <= 255
    same = np.broadcast_to(IMAGES[:1], IMAGES.shape)
    assert len({crop.tobytes() for crop in np.asarray(geometry.random_resized_crop(KEYS, same, 5))}) > 24


@pytest.mark.parametrize("degrees", [0.0, 10.0, -33.0, 90.0])
def test_rotation_against_pillow(degrees):
    image = SMOOTH[0]
    matrix = geometry.centred(geometry.rotation_matrix(jnp.deg2rad(degrees)), *image.shape[:2])
    ours = np.asarray(geometry.warp(image[None], matrix[None], colour=(9.0, 20.0, 30.0)))[0]
    theirs = np.asarray(Image.fromarray(image).rotate(degrees, Image.Resampling.BILINEAR, fillcolor=(9, 20, 30)), float)
    off = np.abs(ours - theirs).max(-1)
    assert (off > 1.01).mean() < 0.05  # a position on the very border may fall to either side


def test_warp_fills():
    image = np.arange(4, dtype=np.float32)[None, None, :, None]
    left_by_two = jnp.array([[[1.0, 0, 2], [0, 1, 0]]])
    show = lambda fill: np.asarray(geometry.warp(image, left_by_two, fill=fill)).ravel().tolist()  # noqa: E731
    assert show("zero") == [2, 3, 0, 0]
    assert show("edge") == [2, 3, 3, 3]
    np.testing.assert_allclose(show("reflect"), [2, 3, 3, 2], atol=1e-3)


def test_rotation_and_zoom_stay_within_their_ranges():
    """An image whose values are its coordinates reveals the map that was applied."""
    side = 33
    y, x = np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5, indexing="ij")
    picture = np.broadcast_to(np.stack([x, y], -1)[None], (40, side, side, 2)).astype(np.float32)
    keys = jax.random.split(jax.random.key(3), 40)
    middle = slice(14, 19)
    still = np.asarray(geometry.random_rotation_and_zoom(keys, picture, rotation=0.0, zoom=0.0))
    np.testing.assert_allclose(still, picture, atol=1e-3)
    turned = np.asarray(geometry.random_rotation_and_zoom(keys, picture, rotation=0.02, zoom=0.0))[:, middle, middle]
    angles = np.degrees(np.arctan2(turned[:, 2, 4, 1] - turned[:, 2, 0, 1], turned[:, 2, 4, 0] - turned[:, 2, 0, 0]))
    assert np.abs(angles).max() <= 7.21 and np.abs(angles).max() > 5 and angles.min() < 0 < angles.max()
    zoomed = np.asarray(geometry.random_rotation_and_zoom(keys, picture, rotation=0.0, zoom=0.2))[:, middle, middle]
    across, down = (zoomed[:, 2, 4, 0] - zoomed[:, 2, 0, 0]) / 4, (zoomed[:, 4, 2, 1] - zoomed[:, 0, 2, 1]) / 4
    for factor in (across, down):
        assert 0.79 < factor.min() < 0.85 and 1.15 < factor.max() < 1.21
    assert np.abs(across - down).max() > 0.1  # height and width on their own
