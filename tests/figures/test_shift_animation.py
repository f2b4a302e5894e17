"""The shift animation ends with the output of the operations, and slides in the right direction."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxvit.figures.shift_animation import (
    _MAPS_TOP,
    _SIDE,
    cells_at,
    draw_frame,
    draw_shift_animation,
    numbered_map,
    shifted_maps,
)
from jaxvit.ops import mask_borders, shift_channels

CASES = [(12, 1, False), (12, 1, True), (4, 2, False), (5, 3, True), (6, 9, False)]


def by_the_operation(groups, pixels, border, size):
    """Shifted maps of two channels per group; returns the first of each group."""
    x = jnp.asarray(np.repeat(numbered_map(size)[None, :, :, None], 2 * groups, axis=3))
    out = np.asarray((mask_borders if border else shift_channels)(x, groups=groups, pixels=pixels))[0]
    return np.moveaxis(out[..., : 10 if groups > 4 else 8 : 2], -1, 0)


def shown(axis, maps, size):
    """The numbers in a frame, by position."""
    found = np.full((maps, size, size), -1)
    side = _SIDE / size
    for text in axis.texts:
        if (text.get_gid() or "").startswith("map "):
            i = int(text.get_gid().split()[1])
            left = min(t.get_position()[0] for t in axis.texts if t.get_gid() == text.get_gid())
            x, y = text.get_position()
            found[i, round((y - _MAPS_TOP) / side - 0.5), round((x - left) / side)] = int(text.get_text())
    return found


@pytest.mark.parametrize("groups, pixels, border", CASES)
def test_the_last_frame_is_the_operation(groups, pixels, border):
    size = 4
    after = shifted_maps(groups=groups, pixels=pixels, border=border, size=size)
    expected = by_the_operation(groups, pixels, border, size)
    np.testing.assert_array_equal(after, expected)
    last = draw_frame(1.0, after, groups=groups, pixels=pixels, border=border)
    np.testing.assert_array_equal(shown(last, len(after), size), expected)
    first = draw_frame(0.0, after, groups=groups, pixels=pixels, border=border)
    np.testing.assert_array_equal(shown(first, len(after), size), [numbered_map(size)] * len(after))


@pytest.mark.parametrize("groups, pixels, border", CASES)
def test_the_slide_arrives_where_the_operation_puts_it(groups, pixels, border):
    size = 4
    after = shifted_maps(groups=groups, pixels=pixels, border=border, size=size)
    arrived = np.zeros_like(after)
    for i, cells in enumerate(cells_at(1 - 1e-6, after, pixels=pixels, border=border)):
        for cell in cells:
            if cell.opacity > 0.5:
                arrived[i, round(cell.row), round(cell.column)] = cell.number
    np.testing.assert_array_equal(arrived, after)


def test_with_borders_nothing_moves():
    after = shifted_maps(groups=12, pixels=1, border=True, size=4)
    for progress in (0.0, 0.3, 0.9):
        for cells in cells_at(progress, after, pixels=1, border=True):
            places = [(cell.row, cell.column) for cell in cells]
            assert places == list(np.ndindex(4, 4)) and [cell.number for cell in cells] == list(range(1, 17))


def test_the_file(tmp_path):
    one = draw_shift_animation(tmp_path / "one", groups=12, pixels=1, size=6)
    assert one.name == "one.gif" and one.stat().st_size < 500_000 and len(list(tmp_path.iterdir())) == 1
    with Image.open(one) as picture:
        assert picture.info["loop"] == 0 and picture.n_frames == 16
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    small = {"groups": 12, "pixels": 1, "border": True, "size": 3, "frames": 3}
    again = [draw_shift_animation(tmp_path / f"{i}.gif", **small).read_bytes() for i in range(2)]
    assert again[0] == again[1]


@pytest.mark.parametrize(
    "settings, sentence",
    [({"groups": 3}, "4 or"), ({"pixels": -1}, "0 or more"), ({"size": 20}, "size=20"), ({"frames": 2}, "frames=2")],
)
def test_what_cannot_be_drawn_is_refused(settings, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        draw_shift_animation(tmp_path / "refused", **settings)
    assert not list(tmp_path.iterdir())
