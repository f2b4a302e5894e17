"""Images in a grid, each under what a model said of it; what is wrong is told from what is right by colour and sign."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxvit.figures import style


def caption(predicted: str, confidence: float, right: bool | None = None, truth: str = "") -> tuple[str, bool | None]:
    """What stands over an image: the predicted class, how sure the model is of it, and where it is wrong, the true one.

    Args:
      predicted: the class's name.
      confidence: its probability.
      right: whether it is the true class; None = not known.
      truth: the true class's name, where the prediction is wrong.

    Returns:
      (text, `right`), as `draw_predictions` takes it.

    Example:
      >>> caption("cat", 0.875, False, "dog")
      ('cat 88 %\\nit is dog', False)
    """
    text = f"{predicted} {100 * confidence:.0f} %"
    return (f"{text}\nit is {truth}" if right is False else text), right


def draw_predictions(
    images: Sequence[np.ndarray], captions: Sequence[tuple[str, bool | None]], file: Path, title: str = ""
) -> list[Path]:
    """Draws the grid.

    Args:
      images: uint8 [H, W, C] each, C 1 or 3.
      captions: for each image, its text and whether that is right; None = not known. See `caption`.
      file: to write. Its ending says the format; without one, PNG and SVG.
      title: above the grid; '' = how many are right.
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
