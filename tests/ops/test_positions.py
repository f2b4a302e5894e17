"""Position tables against loops over the formulas, and resizing."""

import math

import numpy as np
import pytest

from jaxvit.ops import resize_positions, sincos_positions, sine_positions


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
