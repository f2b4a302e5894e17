"""Figures of a model's input: an augmented batch with its targets, and an image cut into patches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxvit.figures.style import entitle, new_figure, save

GAP = (150, 190, 230)
IN_LINE, IN_STRIP = 32, 256  # patches in a line of the sequence, and in total


def draw_batch(
    images_BHWC: np.ndarray, targets_BK: np.ndarray, class_names: Sequence[str], path: Path, title: str = ""
) -> list[Path]:
    """Draws a grid of images, each with its largest targets.

    Args:
      images_BHWC: images with values in [0, 1].
      targets_BK: target distributions over the classes.
      class_names: names of the K classes.
      path: path to write to, as PNG and SVG.
      title: title of the grid.
    """
    columns = min(8, math.ceil(math.sqrt(len(images_BHWC))))
    rows = math.ceil(len(images_BHWC) / columns)
    figure = new_figure(1.7 * columns, 2.05 * rows + 0.4)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    for axis, image, target in zip(axes.ravel(), images_BHWC, targets_BK, strict=False):
        axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(_describe(target, class_names), fontsize=7, parse_math=False)
    entitle(figure, f"{title}: a training batch as the model sees it, with its targets", fontsize=9)
    return save(figure, path)


def _describe(target_K: np.ndarray, class_names: Sequence[str]) -> str:
    """Names up to two classes, with their shares unless there is only one."""
    order = np.argsort(-target_K, kind="stable")[:2]
    floor = 1.5 * float(np.min(target_K)) + 0.02  # label smoothing gives every class a small share
    named = [(class_names[i], float(target_K[i])) for i in order if i < len(class_names) and target_K[i] > floor]
    if len(named) == 1 and named[0][1] > 0.995:
        return named[0][0]
    return "\n".join(f"{name} {share:.2f}" for name, share in named)


def draw_patches(image_HWC: np.ndarray, patch: int, path: Path, name: str = "") -> list[Path]:
    """Draws an image, its patches as a grid, and its patches as the sequence that a transformer reads.

    Args:
      image_HWC: uint8, or float in [0, 1].
      patch: side of a patch in pixels; incomplete patches at the lower and right edges are left out (padding VALID).
      path: path to write to, as PNG and SVG.
      name: class of the image.
    """
    rows, columns = image_HWC.shape[0] // patch, image_HWC.shape[1] // patch
    cut = image_HWC[: rows * patch, : columns * patch]
    patches = cut.reshape(rows, patch, columns, patch, -1).swapaxes(1, 2).reshape(rows * columns, patch, patch, -1)
    times = math.ceil(8 / patch)  # so that gaps can be thinner than one image pixel
    patches = patches.repeat(times, axis=1).repeat(times, axis=2)
    high = 255 if image_HWC.dtype == np.uint8 else 1.0
    shown = {"cmap": "gray", "vmin": 0, "vmax": high, "interpolation": "nearest"}
    strip = _strip(patches, columns)
    width = 9.0
    strip_height = min(width * strip.shape[0] / strip.shape[1], 4.2)
    figure = new_figure(width, 5.0 + strip_height)
    outer = figure.add_gridspec(2, 2, height_ratios=(4.5, strip_height + 0.3))
    whole = figure.add_subplot(outer[0, 0])
    whole.imshow(image_HWC.squeeze(), **shown)
    whole.set_title(f"{name}, {image_HWC.shape[0]}×{image_HWC.shape[1]}", fontsize=11, parse_math=False)
    grid = figure.add_subplot(outer[0, 1])
    grid.imshow(_tile(patches.reshape(rows, columns, *patches.shape[1:])), **shown)
    grid.set_title(f"{rows}×{columns} patches of {patch}×{patch}", fontsize=11)
    row = figure.add_subplot(outer[1, :])
    row.imshow(strip, **shown)
    first = f"the first {IN_STRIP} of " if len(patches) > IN_STRIP else ""
    row.set_title(f"the same as a sequence, line by line: {first}{len(patches):,} tokens", fontsize=11)
    for axis in (whole, grid, row):
        axis.set_axis_off()
    return save(figure, path)


def _strip(patches_NPPD: np.ndarray, columns: int) -> np.ndarray:
    """The first patches as an RGB sequence, wrapped into lines of whole image rows so that each patch is visible."""
    patches_NPPD = patches_NPPD[:IN_STRIP]
    patch = patches_NPPD.shape[1]
    per_line = columns * max(1, IN_LINE // columns)
    lines = [_tile(patches_NPPD[None, start : start + per_line]) for start in range(0, len(patches_NPPD), per_line)]
    step = patch + max(2, patch // 2)
    white = 255 if patches_NPPD.dtype == np.uint8 else 1
    # A line has room for at least IN_LINE / 2 patches, so that a few patches are not blown up.
    width = max(lines[0].shape[1], (IN_LINE // 2) * (patch + _gap(patch)))
    canvas = np.full((len(lines) * step, width, 3), white, patches_NPPD.dtype)
    left = (width - lines[0].shape[1]) // 2
    for i, line in enumerate(lines):
        canvas[i * step : i * step + patch, left : left + line.shape[1]] = line
    return canvas


def _gap(patch: int) -> int:
    return max(1, patch // 6)


def _tile(patches_RCPQD: np.ndarray) -> np.ndarray:
    """Tiles patches into an RGB grid; the gaps are blue, which shows on black and on white images."""
    rows, columns, patch, _, channels = patches_RCPQD.shape
    gap = _gap(patch)
    step = patch + gap
    if channels == 1:
        patches_RCPQD = np.repeat(patches_RCPQD, 3, axis=-1)
    colour = np.array(GAP) if patches_RCPQD.dtype == np.uint8 else np.array(GAP) / 255
    canvas = np.empty((rows * step - gap, columns * step - gap, 3), patches_RCPQD.dtype)
    canvas[:] = colour
    for r in range(rows):
        for c in range(columns):
            canvas[r * step : r * step + patch, c * step : c * step + patch] = patches_RCPQD[r, c]
    return canvas
