"""An animated GIF of ShiftViT's shift: small numbered maps, one for each group of channels.

The last frame is the output of `jaxvit.ops`; the frames before it slide the cells from their first to their last
position.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from PIL import Image

from jaxvit.figures.diagram import SMALL, ink, new_sheet, tint, write
from jaxvit.figures.style import BLACK, BLUE, GREEN, GREY, PURPLE, VERMILION
from jaxvit.files import make_folder, replaced
from jaxvit.ops import mask_borders, shift_channels

# In channel order: name, sign, colour, and the direction in (rows, columns).
GROUPS = (
    ("left", "←", BLUE, (0, -1)),
    ("right", "→", VERMILION, (0, 1)),
    ("up", "↑", GREEN, (-1, 0)),
    ("down", "↓", PURPLE, (1, 0)),
    ("the rest", "", GREY, (0, 0)),
)
_LOST = {"left": "right", "right": "left", "up": "bottom", "down": "top"}
_SIDE, _GAP, _MARGIN, _MAPS_TOP = 1.68, 0.28, 0.25, 1.42
_DPI = 90
_HOLD_FIRST, _HOLD_LAST, _SLIDE = 1200, 2200, 70  # milliseconds


@dataclass(frozen=True)
class Cell:
    """A cell of a map in one frame.

    Attributes:
      number: number in the cell.
      row, column: position of its top left corner, in cells; outside [0, size - 1] it has partly left the map.
      opacity: in [0, 1].
    """

    number: int
    row: float
    column: float
    opacity: float = 1.0


def numbered_map(size: int) -> np.ndarray:
    """The numbers 1 to size², row by row, [size, size]: the map of every group before the shift."""
    return np.arange(1, size * size + 1).reshape(size, size)


def shifted_maps(*, groups: int, pixels: int, border: bool = False, size: int = 6) -> np.ndarray:
    """Applies the shift to the numbered map.

    Args:
      groups, pixels: arguments of `jaxvit.ops.shift_channels`.
      border: use `jaxvit.ops.mask_borders` instead.
      size: rows and columns of the map.

    Returns:
      [5, size, size]: the groups that shift left, right, up and down, and the rest. With groups=4 there is no rest:
      [4, size, size].

    Raises:
      ValueError: fewer than four groups, or a negative number of pixels.
    """
    before = jnp.asarray(numbered_map(size))[None, :, :, None]
    move = mask_borders if border else shift_channels
    # One channel for each group; one channel of the rest stands for all of them.
    after = move(jnp.broadcast_to(before, (1, size, size, max(groups, 1))), groups=groups, pixels=pixels)
    return np.moveaxis(np.asarray(after)[0], -1, 0)[:5]


def cells_at(progress: float, after: np.ndarray, *, pixels: int, border: bool = False) -> list[list[Cell]]:
    """The cells of each map at a point of the animation.

    Args:
      progress: 0 = start; from 1 on, the cells are exactly `after`.
      after: output of `shifted_maps`, [maps, size, size].
      pixels, border: the arguments given to `shifted_maps`.
    """
    maps = []
    for (_, _, _, (down, right)), result in zip(GROUPS, after, strict=False):
        size = len(result)
        cells = []
        for (row, column), number in np.ndenumerate(result if progress >= 1 else numbered_map(size)):
            if progress >= 1:
                cells.append(Cell(int(number), row, column))
            elif border:  # nothing slides: cells that become zero fade in place
                cells.append(Cell(int(number), row, column, 1.0 if result[row, column] else 1 - progress))
            else:
                step = progress * min(pixels, size)
                new_row, new_column = row + step * down, column + step * right
                outside = max(-new_row, -new_column, new_row - size + 1, new_column - size + 1, 0.0)
                if outside < 1:
                    cells.append(Cell(int(number), new_row, new_column, 1 - outside))
        maps.append(cells)
    return maps


def draw_shift_animation(
    file: Path, *, groups: int = 12, pixels: int = 1, border: bool = False, size: int = 6, frames: int = 16
) -> Path:
    """Writes a looping GIF of the shift, with one map for each group of channels.

    Cells that enter a map are zero and white; cells that leave it fade out at the edge.

    Args:
      file: path to write to; the suffix .gif is added if missing.
      groups: number of channel groups; four of them shift.
      pixels: distance of the shift.
      border: draw `jaxvit.ops.mask_borders`, where nothing moves and a border becomes zero.
      size: rows and columns of the maps, 3 to 8.
      frames: number of frames, including the first and the last; at least 3.

    Returns:
      The file. Its bytes depend only on the arguments and the versions of the libraries.

    Raises:
      ValueError: fewer than four groups, negative pixels, fewer than three frames, or a size outside 3 to 8.
    """
    if not 3 <= size <= 8:
        raise ValueError(f"size={size}: must be 3 to 8, otherwise the numbers are unreadable")
    if frames < 3:
        raise ValueError(f"frames={frames}: at least 3 are needed")
    after = shifted_maps(groups=groups, pixels=pixels, border=border, size=size)
    moments = [i / (frames - 1) for i in range(frames)]
    pictures = []
    for moment in moments:
        smooth = moment * moment * (3 - 2 * moment)  # ease in and out
        axis = draw_frame(smooth, after, groups=groups, pixels=pixels, border=border)
        axis.figure.canvas.draw()
        pictures.append(Image.fromarray(np.asarray(axis.figure.canvas.buffer_rgba())[..., :3]))
    # One palette for all frames: otherwise colours flicker.
    strip = Image.fromarray(np.concatenate([np.asarray(picture) for picture in pictures]))
    palette = strip.quantize(255, method=Image.Quantize.MAXCOVERAGE)
    pictures = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    times = [_HOLD_FIRST, *[_SLIDE] * (frames - 2), _HOLD_LAST]
    target = file.with_name(f"{file.name.removesuffix('.gif')}.gif")
    make_folder(target.parent)
    with replaced(target, unique=True) as beside:
        pictures[0].save(beside, format="GIF", save_all=True, append_images=pictures[1:], duration=times, loop=0)
    return target


def draw_frame(progress: float, after: np.ndarray, *, groups: int, pixels: int, border: bool = False) -> Axes:
    """Draws one frame; arguments as in `cells_at` and `draw_shift_animation`.

    Returns:
      The axis, in inches. The text in the cells of map i has the `gid` 'map i'.
    """
    side = _SIDE / after.shape[-1]
    width = 2 * _MARGIN + len(after) * _SIDE + (len(after) - 1) * _GAP
    axis = new_sheet(width, _MAPS_TOP + _SIDE + 0.25)
    many = f"{pixels} pixel{'s' * (pixels != 1)}"
    title = f"A border of {many} becomes zero; nothing moves" if border else f"Channels shift by {many}"
    write(axis, _MARGIN, 0.3, title, size=14, weight="bold")
    state = "before" if progress <= 0 else "after" if progress >= 1 else ""
    write(axis, width - _MARGIN, 0.3, state, size=14, ha="right", color=GREY)
    for i, cells in enumerate(cells_at(progress, after, pixels=pixels, border=border)):
        name, sign, colour, _ = GROUPS[i]
        left = _MARGIN + i * (_SIDE + _GAP)
        label = "the rest stays" if not sign else f"{_LOST[name]} border → 0" if border else f"{sign} {name}"
        write(axis, left, 0.78, label, weight="bold", color=ink(colour), width=_SIDE)
        share = f"1/{groups}" if sign else f"{groups - 4}/{groups}"
        write(axis, left, 1.08, f"{share} of the channels", size=SMALL, color=GREY)
        # Drawn above the cells, and clips them.
        looks = {"fill": False, "edgecolor": ink(colour), "linewidth": 1.6, "zorder": 4}
        frame = Rectangle((left, _MAPS_TOP), _SIDE, _SIDE, **looks)
        axis.add_patch(frame)
        for cell in cells:
            _draw_cell(axis, cell, (left, _MAPS_TOP), side, colour, frame, f"map {i}")
    return axis


def _draw_cell(
    axis: Axes, cell: Cell, corner: tuple[float, float], side: float, colour: str, frame: Rectangle, gid: str
) -> None:
    """Draws a cell, clipped to the frame of its map; cells with 0 are white."""
    x, y = corner[0] + cell.column * side, corner[1] + cell.row * side
    face = tint(colour, 0.4 * cell.opacity) if cell.number else "white"
    square = Rectangle((x, y), side, side, facecolor=face, edgecolor=tint(colour, 0.7), linewidth=0.6)
    axis.add_patch(square)
    square.set_clip_path(frame)
    looks = {"ha": "center", "alpha": cell.opacity, "color": BLACK if cell.number else GREY, "gid": gid}
    number = write(axis, x + side / 2, y + side / 2, str(cell.number), size=9, **looks)
    number.set_clip_path(frame)
    number.set_clip_on(True)
