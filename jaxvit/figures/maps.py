"""Figures of what a model looks at: weights overlaid on images, position embeddings, receptive fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm

from jaxvit.figures.style import entitle, new_figure, save

HEAT = "inferno"  # lightness rises steadily: readable in grey and for colour-blind readers


def draw_maps(
    pictures_BHWC: np.ndarray,
    maps_BKhw: np.ndarray,
    names: Sequence[str],
    file: Path,
    *,
    covered: tuple[int, int],
    rows: Sequence[str] = (),
    title: str = "",
    scale: str = "weight, relative to the largest of the row",
) -> list[Path]:
    """Draws a row for each image: the image, then the image overlaid with each map.

    Args:
      pictures_BHWC: images in [0, 1], as the model sees them before normalization.
      maps_BKhw: K maps for each image, in [0, 1].
      names: titles of the K columns.
      file: path to write to, as PNG and SVG.
      covered: (H, W) in pixels, the part of an image, from its upper left corner, that a map covers.
      rows: names of the B images.
      title: title of the figure.
      scale: label of the colour bar, which goes from 0 to 1.
    """
    images, maps = maps_BKhw.shape[:2]
    figure = new_figure(1.45 * (maps + 1) + 0.5, 1.6 * images + 0.7)
    axes = figure.subplots(images, maps + 1, squeeze=False)
    shown = None
    extent = (-0.5, covered[1] - 0.5, covered[0] - 0.5, -0.5)
    for b in range(images):
        for k in range(maps + 1):
            axis = axes[b, k]
            _picture(axis, pictures_BHWC[b], dim=k > 0)
            if k:
                shown = axis.imshow(maps_BKhw[b, k - 1], cmap=HEAT, vmin=0, vmax=1, extent=extent, alpha=0.7)
                height, width = pictures_BHWC.shape[1:3]
                axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
            if b == 0:
                axis.set_title("image" if k == 0 else names[k - 1], fontsize=10)
        if rows:
            axes[b, 0].set_ylabel(rows[b], fontsize=10, parse_math=False)
    figure.colorbar(shown, ax=axes, shrink=min(1.0, 2 / images), ticks=(0, 1), label=scale)
    entitle(figure, title)
    return save(figure, file)


def _picture(axis: Any, picture_HWC: np.ndarray, *, dim: bool) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    if dim:  # dark grey, so that nobody reads bright or coloured pixels as heat
        axis.imshow(0.1 + 0.5 * picture_HWC.mean(axis=-1), cmap="gray", vmin=0, vmax=1)
    elif picture_HWC.shape[-1] == 1:
        axis.imshow(picture_HWC[..., 0], cmap="gray", vmin=0, vmax=1)
    else:
        axis.imshow(picture_HWC, vmin=0, vmax=1)


def draw_positions(similarities_NN: np.ndarray, grid: tuple[int, int], file: Path, title: str = "") -> list[Path]:
    """Draws, for each patch, a small map of the cosine similarity of its position embedding to all others.

    Args:
      similarities_NN: cosine similarities, in [-1, 1].
      grid: (rows, columns) of patches; N = rows × columns.
      file: path to write to, as PNG and SVG.
      title: title of the figure.
    """
    rows, columns = grid
    side = min(0.85, 10 / max(grid)) if max(grid) > 3 else 1.6
    figure = new_figure(side * columns + 1.8, side * rows + 1.1)
    axes = figure.subplots(rows, columns, squeeze=False)
    shown = None
    for n, axis in enumerate(axes.ravel()):
        shown = axis.imshow(similarities_NN[n].reshape(grid), cmap="cividis", vmin=-1, vmax=1)
        axis.set_xticks([])
        axis.set_yticks([])
    for r in range(rows):
        axes[r, 0].set_ylabel(r + 1, fontsize=9, rotation=0, va="center", labelpad=9)
    for c in range(columns):
        axes[-1, c].set_xlabel(c + 1, fontsize=9)
    figure.colorbar(shown, ax=axes, shrink=0.7, label="cosine similarity")
    figure.get_layout_engine().set(rect=(0.03, 0, 0.97, 1))  # otherwise the row numbers touch the edge
    entitle(figure, title or "similarity of position embeddings, by row and column of patches")
    return save(figure, file)


def draw_receptive_fields(fields: Mapping[str, np.ndarray], file: Path, title: str = "") -> list[Path]:
    """Draws, for each stage, how strongly each pixel influences the centre of its feature map.

    Args:
      fields: {name of the stage: gradient magnitude [H, W], scaled to a maximum of 1}.
      file: path to write to, as PNG and SVG.
      title: title of the figure.
    """
    figure = new_figure(2.9 * len(fields) + 0.9, 3.4)
    axes = figure.subplots(1, len(fields), squeeze=False)[0]
    shown = None
    for axis, (name, field_HW) in zip(axes, fields.items(), strict=True):
        scale = LogNorm(1e-3, 1, clip=True)
        shown = axis.imshow(np.maximum(field_HW, 1e-3), cmap=HEAT, norm=scale)
        share = 100 * (field_HW >= 0.01).mean()
        axis.set_title(name, fontsize=11)
        axis.set_xlabel(f"{share:.0f} % of the pixels above .01", fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.colorbar(shown, ax=axes, shrink=0.8, label="mean gradient, relative")
    entitle(figure, title)
    return save(figure, file)
