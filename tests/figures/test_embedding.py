"""The map of images by their features."""

import numpy as np

from jaxvit.figures.embedding import draw_map, spread_out


def test_thumbnails_do_not_cover_each_other(tmp_path):
    places = np.random.default_rng(0).uniform(size=(200, 2))
    step = np.array([0.1, 0.05])
    chosen = spread_out(places, step)
    for i in chosen:
        apart = (np.abs(places[chosen] - places[i]) >= step).any(axis=1)
        assert apart.sum() == len(chosen) - 1
    covered = [i for i in range(200) if i not in chosen]
    assert all((np.abs(places[chosen] - places[i]) < step).all(axis=1).any() for i in covered)
    names = [f"class {i % 30} $x$" for i in range(200)]
    [file] = draw_map(places, names, [np.zeros((4, 4, 3), np.uint8)] * 200, tmp_path / "m.svg", "title")
    drawn = file.read_text()
    assert "class 0 $x$" in drawn and "the first 24 of 30 classes" in drawn and "title" in drawn
