"""Pictures of what a model is fed: an augmented batch with its targets, and an image cut into patches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxvit.figures.style import new_figure, save

GAP = (150, 190, 230)


def draw_batch(
    images_BHWC: np.ndarray, targets_BK: np.ndarray, class_names: Sequence[str], path: Path, title: str = ""
) -> list[Path]:
    """Images in a grid, each with its largest targets.

    Args:
      images_BHWC: 0..1.
      targets_BK: distributions over the classes.
      class_names: K names.
      path: file to write, PNG and SVG.
      title: above the grid.
    """
    columns = min(8, math.ceil(math.sqrt(len(images_BHWC))))
    rows = math.ceil(len(images_BHWC) / columns)
    figure = new_figure(1.7 * columns, 2.05 * rows + 0.4)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    for axis, image, target in zip(axes.ravel(), images_BHWC, targets_BK, strict=False):
        axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(_describe(target, class_names), fontsize=7)
    figure.suptitle(f"{title}: a training batch as the model sees it, with its targets", fontsize=9)
    return save(figure, path)


def _describe(target_K: np.ndarray, class_names: Sequence[str]) -> str:
    """Up to two classes, with their shares unless there is only one."""
    order = np.argsort(-target_K, kind="stable")[:2]
    floor = 1.5 * float(np.min(target_K)) + 0.02  # smoothing gives every class a little
    named = [(class_names[i], float(target_K[i])) for i in order if i < len(class_names) and target_K[i] > floor]
    if len(named) == 1 and named[0][1] > 0.995:
        return named[0][0]
    return "\n".join(f"{name} {share:.2f}" for name, share in named)


def draw_patches(image_HWC: np.ndarray, patch: int, path: Path, name: str = "") -> list[Path]:
    """One image, its patches as a grid, and as the row that a transformer reads.

    Args:
      image_HWC: uint8, or 0..1.
      patch: side of a patch; rows and columns that do not fill one are left out, as a VALID cut does.
      path: file to write, PNG and SVG.
      name: the image's class.
    """
    rows, columns = image_HWC.shape[0] // patch, image_HWC.shape[1] // patch
    cut = image_HWC[: rows * patch, : columns * patch]
    patches = cut.reshape(rows, patch, columns, patch, -1).swapaxes(1, 2).reshape(rows * columns, patch, patch, -1)
    high = 255 if image_HWC.dtype == np.uint8 else 1.0
    shown = {"cmap": "gray", "vmin": 0, "vmax": high, "interpolation": "nearest"}
    figure = new_figure(9, 5.6)
    outer = figure.add_gridspec(2, 2, height_ratios=(4, 1))
    whole = figure.add_subplot(outer[0, 0])
    whole.imshow(image_HWC.squeeze(), **shown)
    whole.set_title(f"{name}, {image_HWC.shape[0]}×{image_HWC.shape[1]}", fontsize=9)
    whole.set_axis_off()
    grid = figure.add_subplot(outer[0, 1])
    grid.imshow(_tile(patches.reshape(rows, columns, patch, patch, -1)).squeeze(), **shown)
    grid.set_title(f"{rows}×{columns} patches of {patch}×{patch}", fontsize=9)
    grid.set_axis_off()
    per_line = min(len(patches), 72)
    lines = math.ceil(len(patches) / per_line)
    blank = np.full((lines * per_line - len(patches), *patches.shape[1:]), high, patches.dtype)
    row = figure.add_subplot(outer[1, :])
    row.imshow(_tile(np.concatenate([patches, blank]).reshape(lines, per_line, patch, patch, -1)).squeeze(), **shown)
    row.set_title(f"the same as a sequence of {len(patches)} tokens", fontsize=9)
    row.set_axis_off()
    return save(figure, path)


def _tile(patches_RCPQD: np.ndarray) -> np.ndarray:
    """Patches in rows and columns, RGB, with gaps of a colour that neither black nor white pictures have."""
    rows, columns, patch, _, channels = patches_RCPQD.shape
    gap = max(1, patch // 6)
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
