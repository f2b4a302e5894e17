"""The shift and the tutorial's mask of borders, against loops over pixels."""

import jax
import numpy as np
import pytest

from jaxvit.ops import mask_borders, shift_channels

MOVES = [(0, 1), (0, -1), (1, 0), (-1, 0)]  # where the content of left, right, up, down comes from


def loop(x, groups, pixels, border):
    height, width, channels = x.shape[1:]
    size = channels // groups
    out = np.zeros_like(x)
    for h in range(height):
        for w in range(width):
            for c in range(channels):
                direction = c // size if size else 4
                dh, dw = MOVES[direction] if direction < 4 else (0, 0)
                source = (h + pixels * dh, w + pixels * dw)
                if 0 <= source[0] < height and 0 <= source[1] < width:
                    out[:, h, w, c] = x[:, h, w, c] if border else x[:, source[0], source[1], c]
    return out


@pytest.mark.parametrize("border, op", [(False, shift_channels), (True, mask_borders)])
@pytest.mark.parametrize("shape, groups, pixels", [((2, 5, 4, 26), 12, 1), ((1, 3, 5, 9), 4, 2), ((1, 2, 2, 5), 4, 3)])
def test_both_operations(op, border, shape, groups, pixels):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    np.testing.assert_array_equal(op(x, groups=groups, pixels=pixels), loop(x, groups, pixels, border))


def test_the_tutorial_never_shifts():
    x = np.random.default_rng(0).normal(size=(1, 6, 6, 48)).astype(np.float32)
    masked = np.asarray(mask_borders(x))
    np.testing.assert_array_equal(masked[:, 1:-1, 1:-1], x[:, 1:-1, 1:-1])
    assert not np.array_equal(shift_channels(x)[:, 1:-1, 1:-1], x[:, 1:-1, 1:-1])


@pytest.mark.parametrize("shape, groups, pixels", [((4, 4, 12), 12, 1), ((1, 4, 4, 8), 12, 1), ((1, 4, 4, 8), 3, 1)])
def test_bad_input_is_refused(shape, groups, pixels):
    with pytest.raises(ValueError):
        shift_channels(np.zeros(shape, np.float32), groups=groups, pixels=pixels)


def test_gradient_goes_back_where_the_content_came_from():
    x = np.zeros((1, 3, 3, 4), np.float32)
    grad = jax.grad(lambda x: shift_channels(x, groups=4)[0, 1, 1].sum())(x)
    assert [np.argwhere(np.asarray(grad[0, ..., c])).tolist() for c in range(4)] == [
        [[1, 2]],
        [[1, 0]],
        [[2, 1]],
        [[0, 1]],
    ]
