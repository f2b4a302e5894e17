"""Figures of an evaluation: the confusion matrix and the calibration diagram."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxvit.figures.style import BLUE, GREY, VERMILION, entitle, new_figure, save

NUMBERED = 30  # with more classes than this, cells have no numbers


def draw_confusion(found: Mapping[str, Any], file: Path) -> list[Path]:
    """Draws the confusion matrix from a result of `jaxvit.evaluate`; colours show shares of the true class."""
    counts = np.array(found["confusion"])
    names = found["class_names"]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(16.0, max(5.0, 0.55 * len(names) + 2.2))
    figure = new_figure(side + 0.8, side)
    axis = figure.subplots()
    shown = axis.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    if len(names) <= NUMBERED:
        for true, predicted in np.argwhere(counts):
            dark = shares[true, predicted] > 0.5
            axis.text(
                predicted, true, f"{counts[true, predicted]:,}", ha="center", va="center", fontsize=9,
                color="white" if dark else "black",
            )  # fmt: skip
        turned = {"rotation": 45, "ha": "right"} if max(map(len, names)) > 3 else {}
        axis.set_xticks(range(len(names)), names, parse_math=False, **turned)
        axis.set_yticks(range(len(names)), names, parse_math=False)
    axis.set(xlabel="predicted", ylabel="true")
    figure.colorbar(shown, ax=axis, shrink=0.8, label="% of the true class")
    entitle(figure, f"{found['data']}: {100 * found['top1']:.2f} % of {found['count']:,} images right")
    return save(figure, file)


def draw_calibration(found: Mapping[str, Any], file: Path) -> list[Path]:
    """Draws the accuracy and the number of images in each bin of confidence, from a result of `jaxvit.evaluate`."""
    bins = found["calibration"]
    figure = new_figure(6.2, 6.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    width = bins[0]["to"] - bins[0]["from"]
    middles = [row["from"] + width / 2 for row in bins]
    upper.bar(middles, [row["accuracy"] for row in bins], width, color=BLUE, edgecolor="white", label="accuracy")
    points = ([row["confidence"] for row in bins], [row["accuracy"] for row in bins])
    upper.plot(*points, "o", color=VERMILION, label="mean confidence of the bin")
    upper.plot((0, 1), (0, 1), "--", color=GREY, label="perfectly calibrated")
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    entitle(figure, f"{found['data']}: expected calibration error {100 * found['ece']:.2f} %")
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=10)
    lower.bar(middles, [row["count"] for row in bins], width, color=GREY, edgecolor="white")
    lower.set(xlabel="confidence", ylabel="images")
    for axis in (upper, lower):
        axis.grid(alpha=0.3)
    return save(figure, file)
