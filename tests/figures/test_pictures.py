"""Figures of images, curves and names: the tests check their content, not only that a file exists."""

from __future__ import annotations

import numpy as np
import pytest

from jaxvit.figures import images, style
from jaxvit.figures.evaluation import draw_confusion
from jaxvit.figures.history import draw_history
from jaxvit.figures.maps import draw_maps, draw_positions
from jaxvit.figures.predictions import draw_predictions
from jaxvit.figures.rows import draw_rows


@pytest.fixture
def figures(monkeypatch):
    """Collects the figures that are saved; they are drawn but not written."""
    saved = []

    def save(figure, *_, **__):
        figure.draw_without_rendering()
        saved.append(figure)
        return []

    monkeypatch.setattr(style, "save", save)
    monkeypatch.setattr(images, "save", save)
    monkeypatch.setattr("jaxvit.figures.evaluation.save", save)
    monkeypatch.setattr("jaxvit.figures.maps.save", save)
    return saved


@pytest.mark.parametrize(
    ("shape", "patch", "lines"), [((32, 32, 3), 4, 2), ((8, 8, 1), 4, 1), ((8, 8, 1), 1, 2), ((40, 56, 3), 4, 5)]
)
def test_every_patch_stands_in_the_sequence_and_can_be_seen(shape, patch, lines, figures, tmp_path):
    """Each patch has a different grey: the strip shows all in order, each at least a sixth of an inch wide."""
    rows, columns = shape[0] // patch, shape[1] // patch
    greys = np.arange(rows * columns, dtype=np.uint8).reshape(rows, columns)
    image = np.repeat(np.kron(greys, np.ones((patch, patch), np.uint8))[..., None], shape[-1], axis=-1)
    images.draw_patches(image, patch, tmp_path / "patches", "$1^$")
    (figure,) = figures
    whole, grid, strip = figure.axes
    assert whole.get_title().startswith("$1^$") and f"{rows * columns} tokens" in strip.get_title()
    shown = np.asarray(strip.images[0].get_array())
    is_grey = (shown.min(axis=-1) == shown.max(axis=-1)) & (shown[..., 0] < 255)
    in_order = []
    for line in np.flatnonzero(is_grey.any(axis=1)):
        values = shown[line][is_grey[line]][:, 0].tolist()
        if not in_order or values != in_order[-1]:
            in_order.append(values)
    assert len(in_order) == lines
    assert list(dict.fromkeys(v for values in in_order for v in values)) == list(range(rows * columns))
    side = max(8, patch)
    inches = strip.get_window_extent().width / figure.dpi * side / shown.shape[1]
    assert inches > 1 / 6
    assert {label.get_fontsize() for label in (whole.title, grid.title, strip.title)} == {11}


def test_a_long_sequence_is_shown_in_part(figures, tmp_path):
    images.draw_patches(np.zeros((64, 48, 3), np.uint8), 1, tmp_path / "patches")
    assert "the first 256 of 3,072 tokens" in figures[0].axes[2].get_title()


def test_epochs_are_whole_numbers(figures, tmp_path):
    values = {"loss": 1.0, "top1": 0.5, "top5": 0.9, "precision": 0.5, "recall": 0.5}
    draw_history(
        [{"split": split, "epoch": epoch, **values} for split in ("train", "validation") for epoch in (1, 2)],
        tmp_path / "history",
    )
    for axis in figures[0].axes[:5]:
        assert all(tick == round(tick) for tick in axis.get_xticks()), axis.get_title()


def test_the_validation_shown_is_the_one_that_decides(figures, tmp_path):
    records = [{"split": "train", "epoch": 1, "top1": 0.1}, {"split": "validation", "epoch": 1, "top1": 0.2}]
    draw_history(records, tmp_path / "history")
    draw_history([*records, {"split": "validation_ema", "epoch": 1, "top1": 0.3}], tmp_path / "history")
    shown = [{line.get_label(): line.get_ydata()[0] for line in figure.axes[1].lines} for figure in figures]
    assert shown == [{"train": 0.1, "validation": 0.2}, {"train": 0.1, "validation": 0.3}]


def test_dollars_in_names_are_no_mathematics(figures, tmp_path):
    """Matplotlib's mathtext would fail on '$x^$'."""
    picture = np.zeros((8, 8, 1), np.uint8)
    draw_predictions([picture], [("$x^$ 50 %", True)], tmp_path / "grid")
    for names in (["$x^$", "b"], ["$^$", "b"]):
        found = {"confusion": [[1, 0], [0, 1]], "class_names": names, "data": "d", "top1": 1.0, "count": 2}
        draw_confusion(found, tmp_path / "confusion")
    draw_maps(
        picture[None] / 255, np.zeros((1, 1, 2, 2)), ["weights"], tmp_path / "maps", covered=(8, 8), rows=["$x^$"]
    )
    assert len(figures) == 4


@pytest.mark.parametrize("side", [2, 4, 12])
def test_numbers_of_rows_lie_within_the_figure(side, figures, tmp_path):
    draw_positions(np.eye(side**2), (side, side), tmp_path / "positions", "a title")
    (figure,) = figures
    assert min(axis.get_tightbbox().x0 for axis in figure.axes) > 3


def test_rows_show_their_mean_each_seed_and_what_was_reported(figures, tmp_path):
    curves = {"one": [[(1, 0.5), (2, 0.6)], [(1, 0.7), (2, 0.9), (3, 0.9)]], "two": [[(1, 0.2)]]}
    draw_rows(curves, {"one": 0.8, "three": 0.1}, tmp_path / "rows")
    (figure,) = figures
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in figure.axes[0].get_lines()]
    assert ([1, 2], [50, 60]) in lines and ([1, 2, 3], [70, 90, 90]) in lines  # the seeds
    assert any(x == [1, 2] and y == pytest.approx([60, 75]) for x, y in lines)  # their mean, as far as both go
    assert ([1], [20]) in lines and any(list(y) == [80, 80] for _, y in lines) and len(lines) == 5
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["one: 75.00%, mean of 2 seeds (dotted: the document's test accuracy, 80.00%)", "two: 20.00%"]
