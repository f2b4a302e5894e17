"""A map of images by their features: a mark for each, coloured by class, and thumbnails where there is room."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from jaxvit.figures import style

# With the colours, 49 pairs before one comes again.
_MARKS = ("o", "s", "^", "D", "v", "P", "X")
_NAMED = 24  # classes in the legend
_INCHES = 0.34  # side of a thumbnail


def draw_map(
    places_N2: np.ndarray,
    classes: Sequence[str],
    thumbnails: Sequence[np.ndarray],
    file: Path,
    title: str = "",
) -> list[Path]:
    """Draws the map.

    Args:
      places_N2: coordinates [N, 2] on the map.
      classes: the class of each image, which gives its colour and mark.
      thumbnails: uint8 [h, w, 1 or 3], of each image. One is drawn where it does not cover another.
      file: path to write to. The suffix sets the format; without one, PNG and SVG are written.
      title: title of the figure.
    """
    width, height = 10.0, 8.5
    figure = style.new_figure(width, height)
    axis = figure.subplots()
    names = sorted({*classes})
    own = np.array([names.index(name) for name in classes])
    looks = [(style.COLOURS[i % 7], _MARKS[(i // 7 + i) % 7]) for i in range(len(names))]
    for i, (name, (colour, mark)) in enumerate(zip(names, looks, strict=True)):
        label = name if i < _NAMED else "_nolegend_"
        axis.scatter(*places_N2[own == i].T, s=22, color=colour, marker=mark, label=label, linewidths=0)
    low, high = places_N2.min(axis=0), places_N2.max(axis=0)
    span = np.maximum(high - low, 1e-9)
    axis.set_xlim(low[0] - 0.06 * span[0], high[0] + 0.06 * span[0])
    axis.set_ylim(low[1] - 0.06 * span[1], high[1] + 0.06 * span[1])
    step = 1.35 * _INCHES / np.array([0.75 * width, 0.85 * height])
    for i in spread_out((places_N2 - low) / span, step):
        image = thumbnails[i]
        shown = image.repeat(3, axis=-1) if image.shape[-1] == 1 else image
        picture = OffsetImage(shown, zoom=72 * _INCHES / max(shown.shape[:2]), interpolation="nearest")
        frame = {"edgecolor": looks[own[i]][0], "linewidth": 1.5}
        axis.add_artist(AnnotationBbox(picture, places_N2[i], pad=0.08, bboxprops=frame))
    axis.set_xticks([])
    axis.set_yticks([])
    legend = axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    if len(names) > _NAMED:
        legend.set_title(f"the first {_NAMED} of {len(names)} classes")
    style.entitle(figure, title)
    suffix = file.suffix.lower().removeprefix(".")
    return style.save(figure, file, (suffix,) if suffix in ("png", "svg", "pdf") else style.FORMATS)


def spread_out(places_N2: np.ndarray, step: np.ndarray) -> list[int]:
    """Indices of places of which no two are nearer than `step` (x, y) in both directions; the first come first.

    Example:
      >>> spread_out(np.array([[0.0, 0.0], [0.01, 0.02], [0.5, 0.0]]), np.array([0.1, 0.1]))
      [0, 2]
    """
    chosen: list[int] = []
    for i, place in enumerate(places_N2):
        if not chosen or (np.abs(places_N2[chosen] - place) >= step).any(axis=1).all():
            chosen.append(i)
    return chosen
