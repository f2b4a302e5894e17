"""Position tables against loops over the formulas, and resizing."""

import math

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from jaxvit.ops import resize_positions, sincos_positions, sine_positions
from jaxvit.ops.positions import RESIZING


def test_sincos_table():
    table = sincos_positions((2, 3), 8)
    assert table.shape == (6, 8) and table.dtype == np.float32
    for row in range(2):
        for column in range(3):
            want = []
            for place in (column, row):
                for function in (math.sin, math.cos):
                    want += [function(place * w) for w in (1.0, 1e-4)]
            np.testing.assert_allclose(table[row * 3 + column], want, atol=1e-6)
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_positions((2, 2), 6)


def test_sine_table():
    table = sine_positions(5, 6)
    for place in range(5):
        for channel in range(6):
            angle = place / 10_000 ** (2 * (channel // 2) / 6)
            want = math.cos(angle) if channel % 2 else math.sin(angle)
            assert abs(table[place, channel] - want) < 1e-6


def test_resizing_keeps_the_prefix_and_follows_a_slope():
    rows, columns = 4, 6
    slope = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1).reshape(-1, 2)
    table = np.concatenate([[[7.0, -7.0]], slope]).astype(np.float32)
    out = np.asarray(resize_positions(table, source=(4, 6), target=(8, 3), prefix=1, method="linear"))
    assert out.shape == (1 + 24, 2)
    np.testing.assert_array_equal(out[0], table[0])
    grid = out[1:].reshape(8, 3, 2)
    np.testing.assert_allclose(grid[1:-1, 1, 0], (np.arange(8) / 2 - 0.25)[1:-1], atol=1e-5)  # half-pixel centres
    np.testing.assert_allclose(grid[4, 1, 1], 2.5, atol=1e-5)


def test_resizing_to_the_same_grid_is_nothing_and_a_wrong_grid_is_refused():
    table = np.random.default_rng(0).normal(size=(13, 4)).astype(np.float32)
    np.testing.assert_array_equal(resize_positions(table, source=(3, 4), target=(3, 4), prefix=1), table)
    with pytest.raises(ValueError, match="does not hold 0 \\+ 3x4"):
        resize_positions(table, source=(3, 4), target=(6, 8))


def zoomed(grid, target):
    """The resize function of vision_transformer, big_vision and Scenic."""
    factors = [new / old for new, old in zip(target, grid.shape, strict=False)]
    return scipy.ndimage.zoom(grid, (*factors, 1), order=1)


def bilinear(grid, target):
    """torch.nn.functional.interpolate(mode='bilinear', align_corners=False), one output position at a time."""
    out = np.zeros((*target, grid.shape[2]))

    def corners(place, new, old):
        x = max((place + 0.5) * old / new - 0.5, 0.0)
        low = min(int(x), old - 1)
        return (low, 1 - (x - low)), (min(low + 1, old - 1), x - low)

    for i in range(target[0]):
        for j in range(target[1]):
            for row, a in corners(i, target[0], grid.shape[0]):
                for column, b in corners(j, target[1], grid.shape[1]):
                    out[i, j] += a * b * grid[row, column]
    return out


def antialiased(grid, target):
    """Pillow's bicubic, whose filter PyTorch's antialias=True copies: a = -.5, as wide as the shrinking asks for."""
    planes = [Image.fromarray(plane, mode="F") for plane in np.moveaxis(grid, 2, 0)]
    size = (target[1], target[0])
    return np.stack([np.asarray(plane.resize(size, Image.Resampling.BICUBIC)) for plane in planes], axis=2)


REFERENCE = {
    "vision_transformer": zoomed,
    "big_vision": zoomed,
    "scenic": zoomed,
    "cct": bilinear,
    "timm": antialiased,
}


@pytest.mark.parametrize("method", RESIZING)
@pytest.mark.parametrize(("source", "target"), [((4, 4), (7, 7)), ((7, 5), (3, 9)), ((3, 2), (1, 1)), ((1, 3), (2, 2))])
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
def test_resizing_as_each_code_base_does_it(method, source, target):
    rng = np.random.default_rng(3)
    prefix, grid = rng.normal(size=(1, 3)), rng.normal(size=(*source, 3)).astype(np.float32)
    table = np.concatenate([prefix, grid.reshape(-1, 3)]).astype(np.float32)
    got = np.asarray(resize_positions(table, source=source, target=target, prefix=1, method=method))
    np.testing.assert_array_equal(got[0], table[0])
    want = REFERENCE[method](grid, target).reshape(-1, 3)
    np.testing.assert_allclose(got[1:], want, atol=2e-6)


def test_the_ways_of_the_code_bases_differ():
    table = np.random.default_rng(3).normal(size=(16, 3)).astype(np.float32)
    ways = [resize_positions(table, source=(4, 4), target=(6, 6), method=m) for m in ("big_vision", "cct", "timm")]
    assert all(np.abs(a - b).max() > 0.05 for a, b in zip(ways, [*ways[1:], ways[0]], strict=True))
    np.testing.assert_array_equal(ways[2], resize_positions(table, source=(4, 4), target=(6, 6)))  # the default
    # Where scipy rounds the last row out of the grid and makes it zero, the corner stays.
    table = np.random.default_rng(3).normal(size=(32 * 32, 1)).astype(np.float32)
    small = np.asarray(resize_positions(table, source=(32, 32), target=(16, 16), method="big_vision"))
    assert small[-1] == table[-1] and not zoomed(table.reshape(32, 32, 1), (16, 16))[-1].any()
    with pytest.raises(ValueError, match="method='imagenet' must be 'vision_transformer'"):
        resize_positions(table, source=(32, 32), target=(16, 16), method="imagenet")
