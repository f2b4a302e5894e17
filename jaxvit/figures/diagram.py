"""Drawing primitives of the diagrams: boxes, arrows and text on a sheet in inches, with the origin at the top left."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.text import Text

from jaxvit.figures.style import BLACK, GREY, new_figure

TEXT, SMALL = 11.0, 9.5


def new_sheet(width: float, height: float) -> Axes:
    """Creates a figure with one axis that fills it, in inches: x points right, y points down."""
    figure = new_figure(width, height, layout=None)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, width), ylim=(height, 0))
    axis.set_axis_off()
    return axis


def tint(colour: str, share: float = 0.22) -> tuple[float, float, float]:
    """Mixes a colour with white; with the default share, black text on it is readable."""
    red, green, blue = (1 - share * (1 - part) for part in to_rgb(colour))
    return red, green, blue


def ink(colour: str) -> tuple[float, float, float]:
    """Darkens a colour for text: the lighter ones are hard to read on white."""
    red, green, blue = (0.75 * part for part in to_rgb(colour))
    return red, green, blue


def circle(axis: Axes, x: float, y: float, sign: str) -> None:
    """Draws a sign, such as '+', in a circle of radius 0.14 inches around (x, y)."""
    axis.plot((x,), (y,), "o", color=GREY, markersize=19, markerfacecolor="white")
    write(axis, x, y, sign, ha="center", size=13)


def write(
    axis: Axes, x: float, y: float, text: str, *, size: float = TEXT, width: float = 0.0, least: float = 9.0, **looks
) -> Text:
    """Draws text, centred vertically at y.

    Args:
      axis: the sheet, from `new_sheet`.
      x, y: position in inches; x is the left end of the text, or what `ha='right'` or `ha='center'` says.
      text: one line or several.
      size: font size in points.
      width: maximum width in inches, 0 = no limit; longer text is shrunk, and then cut with an ellipsis.
      least: smallest font size in points; text that is still too long is cut.
      looks: further properties of matplotlib's `Text`.
    """
    looks = {"va": "center", "color": BLACK, **looks}
    drawn = axis.text(x, y, text, fontsize=size, **looks)
    if width:
        dpi = axis.figure.dpi

        def length() -> float:
            return drawn.get_window_extent().width / dpi

        while length() > width and size > least:  # in small steps: hinting makes widths jump
            size = max(least, size - 0.5)
            drawn.set_fontsize(size)
        while length() > width and len(text) > 1:
            text = text[:-1].rstrip()
            drawn.set_text(text + "…")
    return drawn


def box(
    axis: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    text: str = "",
    *,
    colour: str = GREY,
    size: float = TEXT,
    **looks,
) -> None:
    """Draws a rounded box with its top left corner at (x, y), in inches, and centred text; `looks` style the text."""
    rounding = min(0.06, height / 4)
    shape = FancyBboxPatch(
        (x + rounding, y + rounding),
        width - 2 * rounding,
        height - 2 * rounding,
        boxstyle=f"round,pad={rounding},rounding_size={rounding}",
        facecolor=tint(colour),
        edgecolor=colour,
        linewidth=1.2,
    )
    axis.add_patch(shape)
    if text:
        write(axis, x + width / 2, y + height / 2, text, size=size, ha="center", width=width - 0.08, **looks)


def arrow(axis: Axes, points: Sequence[tuple[float, float]], *, colour: str = GREY, width: float = 1.4) -> None:
    """Draws a line through points, in inches, with an arrow head at the last one."""
    *through, before, end = points
    if through:
        xs, ys = zip(*through, before, strict=True)
        axis.plot(xs, ys, color=colour, linewidth=width, solid_joinstyle="miter")
    style = {"arrowstyle": "-|>", "mutation_scale": 11, "shrinkA": 0, "shrinkB": 0}
    axis.add_patch(FancyArrowPatch(before, end, color=colour, linewidth=width, **style))


def cells(
    axis: Axes,
    x: float,
    y: float,
    side: float,
    rows: int,
    columns: int,
    faces: Sequence[object],
    *,
    edge: str = GREY,
    numbers: Sequence[int] = (),
) -> None:
    """Draws a grid of rows × columns square cells with its top left corner at (x, y).

    Args:
      axis: the sheet, from `new_sheet`.
      x, y: corner in inches.
      side: side of a cell in inches.
      rows, columns: size of the grid.
      faces: colour of each cell, row by row.
      edge: colour of the lines.
      numbers: number in each cell, row by row; empty = no numbers.
    """
    line = 0.4 if side > 0.09 else 0.2  # thicker lines would hide the colours of small cells
    for i, face in enumerate(faces):
        row, column = divmod(i, columns)
        corner = (x + column * side, y + row * side)
        axis.add_patch(Rectangle(corner, side, side, facecolor=face, edgecolor=edge, linewidth=line))
        if len(numbers):
            centre = (corner[0] + side / 2, corner[1] + side / 2)
            write(axis, *centre, str(numbers[i]), size=9, ha="center", color=BLACK if numbers[i] else GREY)
    axis.add_patch(Rectangle((x, y), columns * side, rows * side, fill=False, edgecolor=edge, linewidth=1.2))
