"""A grid of images with their predictions; colour and sign tell right from wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxvit.figures import style
from jaxvit.shown import terminal

_LETTERS = 22  # shown characters of a file name


def caption(
    predicted: str, confidence: float, right: bool | None = None, truth: str = "", file: str = ""
) -> tuple[str, bool | None]:
    """Caption of an image: the predicted class, its probability, and the true class if the prediction is wrong.

    Args:
      predicted: name of the predicted class.
      confidence: its probability.
      right: True if the prediction is right; None = unknown.
      truth: name of the true class, needed if the prediction is wrong.
      file: path of the image's file; its name stands below, the middle of a long one left out. '' = none.

    Returns:
      (text, right), an element of `captions` in `draw_predictions`.

    Example:
      >>> caption("cat", 0.875, False, "dog")
      ('cat 88 %\\nit is dog', False)
    """
    text = f"{terminal(predicted)} {100 * confidence:.0f} %"
    text = f"{text}\nit is {terminal(truth)}" if right is False else text
    name = terminal(file.rpartition("/")[2])
    if len(name) > _LETTERS:
        name = f"{name[: _LETTERS // 2]}…{name[-(_LETTERS // 2 - 1) :]}"
    return (f"{text}\n{name}" if name else text), right


def draw_predictions(
    images: Sequence[np.ndarray], captions: Sequence[tuple[str, bool | None]], file: Path, title: str = ""
) -> list[Path]:
    """Draws a grid of images with captions.

    Args:
      images: uint8 images [H, W, C], with C = 1 or 3.
      captions: (text, right) for each image, as `caption` returns it.
      file: path to write to. The suffix sets the format; without one, PNG and SVG are written.
      title: title of the grid; '' = how many predictions are right.
    """
    columns = min(6, math.ceil(math.sqrt(len(images))))
    rows = math.ceil(len(images) / columns)
    figure = style.new_figure(max(5.0, 1.9 * columns), 2.3 * rows + 0.5)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(images) :]:
        axis.set_axis_off()
    for axis, image, (text, right) in zip(axes, images, captions, strict=False):
        axis.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
        axis.set_xticks([])
        axis.set_yticks([])
        colour = style.GREY if right is None else style.GREEN if right else style.VERMILION
        sign = "" if right is None else "✓ " if right else "✗ "
        axis.set_title(sign + text, fontsize=10, color=style.BLACK if right is None else colour, parse_math=False)
        for spine in axis.spines.values():
            spine.set(color=colour, linewidth=1 if right is None else 2.5)
    known = [right for _, right in captions if right is not None]
    counted = f"{sum(known)} of {len(known)} right" if known else ""
    style.entitle(figure, title or counted)
    suffix = file.suffix.lower().removeprefix(".")
    return style.save(figure, file, (suffix,) if suffix in ("png", "svg", "pdf") else style.FORMATS)
