"""A GIF of what a shift does to small numbered maps, one for each group of channels.

The last frame shows what `jaxvit.ops` computes; the frames before it slide the first one's cells there.
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
from jaxvit.files import replaced
from jaxvit.ops import mask_borders, shift_channels

# In the order of the channels: name, sign, colour, and where a cell goes in rows and columns.
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
    """A cell of a map while it slides.

    Attributes:
      number: what it holds.
      row, column: where its top left corner is, in cells; outside of 0 … size - 1 it has left the map at least partly.
      opacity: 0 … 1.
    """

    number: int
    row: float
    column: float
    opacity: float = 1.0


def numbered_map(size: int) -> np.ndarray:
    """1 … size² row by row, (size, size): what every group holds before the shift."""
    return np.arange(1, size * size + 1).reshape(size, size)


def shifted_maps(*, groups: int, pixels: int, border: bool = False, size: int = 6) -> np.ndarray:
    """What the operation makes of the numbered map.

    Args:
      groups, pixels: of `jaxvit.ops.shift_channels`.
      border: `jaxvit.ops.mask_borders` instead.
      size: rows and columns.

    Returns:
      (5, size, size), or 4 where four groups are all channels: left, right, up, down, and the rest.

    Raises:
      ValueError: fewer than four groups, or a negative number of pixels.
    """
    before = jnp.asarray(numbered_map(size))[None, :, :, None]
    move = mask_borders if border else shift_channels
    # A group of one channel each; one channel of the rest stands for all of it.
    after = move(jnp.broadcast_to(before, (1, size, size, max(groups, 1))), groups=groups, pixels=pixels)
    return np.moveaxis(np.asarray(after)[0], -1, 0)[:5]


def cells_at(progress: float, after: np.ndarray, *, pixels: int, border: bool = False) -> list[list[Cell]]:
    """The cells of every map at a moment, 0 … 1.

    Args:
      progress: of the slide; from 1 on, the cells are those of `after`.
      after: (maps, size, size) of `shifted_maps`.
      pixels, border: as there.
    """
    maps = []
    for (_, _, _, (down, right)), result in zip(GROUPS, after, strict=False):
        size = len(result)
        cells = []
        for (row, column), number in np.ndenumerate(result if progress >= 1 else numbered_map(size)):
            if progress >= 1:
                cells.append(Cell(int(number), row, column))
            elif border:  # nothing slides: what will be zero fades where it is
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
    """Writes a GIF, repeated for ever, of a map of each group of channels as it slides by some pixels.

    What enters is zero and stays white; what leaves fades at the edge.

    Args:
      file: written with the ending .gif.
      groups: into which the channels are cut; four of them move.
      pixels: how far.
      border: draw `jaxvit.ops.mask_borders`, where nothing moves and a border becomes zero.
      size: rows and columns of the maps, 3 … 8.
      frames: pictures in all, the still ones before and after included; at least 3.

    Returns:
      The file. The same arguments and the same libraries make the same bytes.

    Raises:
      ValueError: fewer than four groups, a negative number of pixels, too few frames, or an unreadable size.
    """
    if not 3 <= size <= 8:
        raise ValueError(f"size={size} of the maps does not lie between 3 and 8: their numbers could not be read")
    if frames < 3:
        raise ValueError(f"frames={frames} leaves none for the way: at least 3")
    after = shifted_maps(groups=groups, pixels=pixels, border=border, size=size)
    moments = [i / (frames - 1) for i in range(frames)]
    pictures = []
    for moment in moments:
        smooth = moment * moment * (3 - 2 * moment)  # starts and stops gently
        axis = draw_frame(smooth, after, groups=groups, pixels=pixels, border=border)
        axis.figure.canvas.draw()
        pictures.append(Image.fromarray(np.asarray(axis.figure.canvas.buffer_rgba())[..., :3]))
    # One palette for all frames, or colours would flicker.
    strip = Image.fromarray(np.concatenate([np.asarray(picture) for picture in pictures]))
    palette = strip.quantize(255, method=Image.Quantize.MAXCOVERAGE)
    pictures = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    times = [_HOLD_FIRST, *[_SLIDE] * (frames - 2), _HOLD_LAST]
    target = file.with_name(f"{file.name.removesuffix('.gif')}.gif")
    target.parent.mkdir(parents=True, exist_ok=True)
    with replaced(target, unique=True) as beside:
        pictures[0].save(beside, format="GIF", save_all=True, append_images=pictures[1:], duration=times, loop=0)
    return target


def draw_frame(progress: float, after: np.ndarray, *, groups: int, pixels: int, border: bool = False) -> Axes:
    """One picture of the animation; arguments as `cells_at` and `draw_shift_animation`.

    Returns:
      The axis, in inches. The texts of a map's cells have its place among the maps as their `gid`, 'map 0' …
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
        # Above the cells, which it cuts off.
        looks = {"fill": False, "edgecolor": ink(colour), "linewidth": 1.6, "zorder": 4}
        frame = Rectangle((left, _MAPS_TOP), _SIDE, _SIDE, **looks)
        axis.add_patch(frame)
        for cell in cells:
            _draw_cell(axis, cell, (left, _MAPS_TOP), side, colour, frame, f"map {i}")
    return axis


def _draw_cell(
    axis: Axes, cell: Cell, corner: tuple[float, float], side: float, colour: str, frame: Rectangle, gid: str
) -> None:
    """A cell, cut off at the frame of its map; zero has no colour."""
    x, y = corner[0] + cell.column * side, corner[1] + cell.row * side
    face = tint(colour, 0.4 * cell.opacity) if cell.number else "white"
    square = Rectangle((x, y), side, side, facecolor=face, edgecolor=tint(colour, 0.7), linewidth=0.6)
    axis.add_patch(square)
    square.set_clip_path(frame)
    looks = {"ha": "center", "alpha": cell.opacity, "color": BLACK if cell.number else GREY, "gid": gid}
    number = write(axis, x + side / 2, y + side / 2, str(cell.number), size=9, **looks)
    number.set_clip_path(frame)
    number.set_clip_on(True)
