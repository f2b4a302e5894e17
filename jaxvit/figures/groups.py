"""A figure of the patches that a model merged or removed, as colours over the image."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxvit.figures.style import entitle, new_figure, save

_TURN = 0.618034  # step on the colour circle: neighbouring groups get hues far apart


def draw_groups(
    pictures_BHWC: np.ndarray,
    places_BKN: np.ndarray,
    grid: tuple[int, int],
    names: Sequence[str],
    file: Path,
    *,
    covered: tuple[int, int],
    rows: Sequence[str] = (),
    title: str = "",
) -> list[Path]:
    """Draws a row for each image: the image, then the patches after each of K blocks.

    Patches that were merged to one token have one colour; a patch that is still by itself is left clear, and a removed
    one is black.

    Args:
      pictures_BHWC: images in [0, 1], as the model sees them before normalization.
      places_BKN: the token of each of the N patches, for each of K blocks; -1 = removed.
      grid: (rows, columns) of patches; N = rows × columns.
      names: titles of the K columns.
      file: path to write to, as PNG and SVG.
      covered: (H, W) in pixels, the part of an image, from its upper left corner, that the grid covers.
      rows: names of the B images.
      title: title of the figure.
    """
    images, blocks = places_BKN.shape[:2]
    figure = new_figure(1.6 * (blocks + 1), 1.65 * images + 0.7)
    axes = figure.subplots(images, blocks + 1, squeeze=False)
    extent = (-0.5, covered[1] - 0.5, covered[0] - 0.5, -0.5)
    for b in range(images):
        for k in range(blocks + 1):
            axis = axes[b, k]
            picture = pictures_BHWC[b] if k == 0 else np.repeat(pictures_BHWC[b].mean(-1, keepdims=True), 3, axis=-1)
            axis.imshow(picture[..., 0] if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=1)
            if k:
                axis.imshow(colours(places_BKN[b, k - 1]).reshape(*grid, 4), extent=extent)
                height, width = pictures_BHWC.shape[1:3]
                axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
                tokens = len(set(places_BKN[b, k - 1].tolist()) - {-1})
                axis.set_xlabel(f"{tokens} tokens", fontsize=9)
            axis.set_xticks([])
            axis.set_yticks([])
            if b == 0:
                axis.set_title("image" if k == 0 else names[k - 1], fontsize=10)
        if rows:
            axes[b, 0].set_ylabel(rows[b], fontsize=10, parse_math=False)
    entitle(figure, title)
    return save(figure, file)


def colours(places_N: np.ndarray) -> np.ndarray:
    """Colours (N, 4) of patches, by the token that each is in: see `draw_groups`.

    Groups are numbered by their first patch, so the colours do not depend on the order of the tokens.
    """
    shades_N4 = np.zeros((len(places_N), 4))
    shades_N4[places_N < 0] = (0, 0, 0, 1)
    groups = dict.fromkeys(int(place) for place in places_N if place >= 0 and np.sum(places_N == place) > 1)
    for number, place in enumerate(groups):
        rgb = colorsys.hsv_to_rgb(number * _TURN % 1, 0.85, 0.95)
        shades_N4[places_N == place] = (*rgb, 0.65)
    return shades_N4
