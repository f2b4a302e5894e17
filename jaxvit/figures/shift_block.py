"""Diagram of ShiftViT's block: which channels shift where, and the MLP that follows."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from jaxvit.figures.diagram import SMALL, TEXT, arrow, box, cells, circle, ink, new_sheet, tint, write
from jaxvit.figures.style import BLUE, GREEN, GREY, PURPLE, SKY, VERMILION, save
from jaxvit.models.shiftvit import ShiftViT
from jaxvit.ops import mask_borders, shift_channels

# In channel order.
DIRECTIONS = (("left", "←", BLUE), ("right", "→", VERMILION), ("up", "↑", GREEN), ("down", "↓", PURPLE))
_LOST = {
    "left": "right",
    "right": "left",
    "up": "bottom",
    "down": "top",
}  # the border that this shift would fill with zeros
_WORDS = {"true": "shift", "border": "zeroed borders"}
_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu", "relu": "relu", "tanh": "tanh"}
_WIDTH, _MARGIN = 10.0, 0.25
_BAR, _BAR_WIDTH = 1.55, 5.9


def shift_widths(channels: int, *, groups: str, divisions: int) -> tuple[int, int, int, int, int]:
    """Number of channels that a `ShiftBlock` shifts left, right, up and down, and number that stay.

    Args:
      channels: channels of the block.
      groups, divisions: attributes of the block.

    Raises:
      ValueError: `groups` is neither 'count' nor 'width', or four groups need more channels.
    """
    if groups not in ("count", "width"):
        raise ValueError(f"groups={groups!r} is neither 'count' nor 'width'")
    width = channels // divisions if groups == "count" else divisions
    if width < 1 or 4 * width > channels:
        raise ValueError(f"divisions={divisions} with groups={groups!r} do not make four groups of {channels} channels")
    return width, width, width, width, channels - 4 * width


def draw_shift_block(model: ShiftViT, file: Path, title: str = "") -> list[Path]:
    """Draws the shift block of a ShiftViT: the order of its layers, the effect of the shift, the channels per stage.

    Args:
      model: the model; its attributes define the block.
      file: path to write to; the suffixes .png and .svg are added.
      title: title of the diagram; '' = 'The shift block'.

    Returns:
      The files written.

    Raises:
      ValueError: a stage has too few channels for four groups.
    """
    shifts = model.shift != "none"
    stages = [(depth, model.dim * 2**i) for i, depth in enumerate(model.depths)]
    rows_top = 4.75 if shifts else 2.95
    axis = new_sheet(_WIDTH, rows_top + 0.95 * len(stages) + 0.1)
    write(axis, _MARGIN, 0.32, title or "The shift block", size=15, weight="bold", width=_WIDTH - 2 * _MARGIN)
    write(axis, _MARGIN, 0.66, _claim(model), color=GREY, width=_WIDTH - 2 * _MARGIN)
    _draw_flow(axis, 1.0, model)
    if shifts:
        _draw_maps(axis, 2.55, model)
    small = {"size": SMALL, "color": GREY}
    write(axis, _MARGIN, rows_top - 0.28, "stage", **small)
    write(axis, _BAR, rows_top - 0.28, "its channels, to scale", **small)
    write(axis, _BAR + _BAR_WIDTH + 0.25, rows_top - 0.28, "channels in the MLP", **small)
    axis.plot((_MARGIN, _WIDTH - _MARGIN), (rows_top - 0.12,) * 2, color=GREY, linewidth=0.8)
    for i, (depth, channels) in enumerate(stages):
        top = rows_top + 0.95 * i
        write(axis, _MARGIN, top + 0.2, f"stage {i}", weight="bold")
        write(axis, _MARGIN, top + 0.48, f"{depth} block{'s' * (depth > 1)}", size=SMALL, color=GREY)
        _draw_channels(axis, top, channels, model)
        hidden = int(channels * model.mlp_ratio)
        write(axis, _BAR + _BAR_WIDTH + 0.25, top + 0.48, f"{channels:,} → {hidden:,} → {channels:,}")
    return save(axis.figure, file)


def _claim(model: ShiftViT) -> str:
    pixels = f"{model.pixels} pixel{'s' * (model.pixels != 1)}"
    return {
        "true": f"Four groups of channels move by {pixels}, each in its direction; what enters from outside is zero.",
        "border": f"shift='border': nothing moves. In each of four groups, a border of {pixels} becomes zero.",
        "none": "shift='none': no channel moves; every place is worked on by itself.",
    }[model.shift]


def _draw_flow(axis: Axes, top: float, model: ShiftViT) -> None:
    """Draws the layers of the block in order; the residual branch starts after the shift."""
    over = {"sample": "per image", "channels": "per place"}[model.norm]
    middle, height, shortcut = top + 0.85, 0.62, top + 0.2
    write(axis, _MARGIN, middle, "map\nh × w × C", size=SMALL + 0.5)
    if model.shift == "none":
        arrow(axis, [(1.15, middle), (3.75, middle)])
    else:
        box(axis, 1.5, middle - height / 2, 1.35, height, _WORDS[model.shift], colour=BLUE)
        arrow(axis, [(1.15, middle), (1.5, middle)])
        arrow(axis, [(2.85, middle), (3.75, middle)])
    box(axis, 3.75, middle - height / 2, 1.15, height, f"norm\n{over}", colour=GREY, size=SMALL + 0.5)
    ratio = f"{model.mlp_ratio:g}"
    text = f"MLP: C → {ratio}C → C\ndense, {_ACTIVATIONS[model.activation]}, dense"
    box(axis, 5.2, middle - height / 2, 2.25, height, text, colour=SKY, size=SMALL + 0.5)
    arrow(axis, [(4.9, middle), (5.2, middle)])
    arrow(axis, [(7.45, middle), (7.98, middle)])
    axis.plot((3.3,), (middle,), "o", color=GREY, markersize=5)
    arrow(axis, [(3.3, middle), (3.3, shortcut), (8.12, shortcut), (8.12, middle - 0.14)])
    label = "shortcut" if model.shift == "none" else f"shortcut: starts after the {_WORDS[model.shift]}"
    write(axis, 5.7, shortcut - 0.14, label, size=SMALL, color=GREY, ha="center")
    circle(axis, 8.12, middle, "+")
    arrow(axis, [(8.26, middle), (8.75, middle)])
    write(axis, 8.82, middle, "map\nh × w × C", size=SMALL + 0.5)


def _draw_maps(axis: Axes, top: float, model: ShiftViT) -> None:
    """Draws a small numbered map for each group, before and after; the values come from `jaxvit.ops`."""
    size = 3 if model.pixels < 2 else 4
    whole, gap = 0.81, 0.22
    move = shift_channels if model.shift == "true" else mask_borders
    before = np.arange(1, size * size + 1)
    maps = jnp.broadcast_to(jnp.asarray(before.reshape(1, size, size, 1)), (1, size, size, 5))
    after = np.asarray(move(maps, groups=5, pixels=model.pixels))[0].reshape(-1, 5)
    for i, (name, sign, colour) in enumerate([*DIRECTIONS, ("rest stays", "", GREY)]):
        left = _MARGIN + 2.17 * i
        label = f"{sign} {name}" if model.shift == "true" or i == 4 else f"{_LOST[name]} border → 0"
        write(axis, left, top + 0.1, label.strip(), weight="bold", color=ink(colour), size=TEXT - 0.5)
        for x, numbers in ((left, before), (left + whole + gap, after[:, i]))[: 1 if i == 4 else 2]:
            faces = [tint(colour, 0.3) if number else "white" for number in numbers]
            cells(axis, x, top + 0.32, whole / size, size, size, faces, edge=colour, numbers=numbers)
        if i < 4:
            middle = top + 0.32 + whole / 2
            arrow(axis, [(left + whole + 0.02, middle), (left + whole + gap - 0.02, middle)], width=1.0)
    note = {
        "true": "numbers show where a value came from; 0 entered from outside",
        "border": "numbers show where a value came from: every value is where it was, or zero",
    }[model.shift]
    write(axis, _MARGIN, top + 1.36, note, size=SMALL, color=GREY)


def _draw_channels(axis: Axes, top: float, channels: int, model: ShiftViT) -> None:
    """Draws the channels of a stage as a bar of groups; labels of narrow groups are moved apart."""
    widths = (0, 0, 0, 0, channels)
    if model.shift != "none":
        widths = shift_widths(channels, groups=model.groups, divisions=model.divisions)
    bar, height = top + 0.34, 0.28
    x, label_end = _BAR, 0.0
    for (_, sign, colour), width in zip(DIRECTIONS, widths[:4], strict=True):
        length = _BAR_WIDTH * width / channels
        if width:
            axis.add_patch(Rectangle((x, bar), length, height, facecolor=tint(colour, 0.7), edgecolor=colour))
            centre = max(x + length / 2, label_end + 0.3)
            text = f"{sign} {width}" if model.shift == "true" else f"{width}"
            write(axis, centre, top + 0.14, text, ha="center", color=ink(colour), weight="bold", size=TEXT - 1)
            axis.plot((centre, x + length / 2), (top + 0.24, bar), color=colour, linewidth=0.8)
            label_end = centre + 0.3
        x += length
    stay = widths[4]
    if stay:
        length = _BAR_WIDTH * stay / channels
        axis.add_patch(Rectangle((x, bar), length, height, facecolor=tint(GREY), edgecolor=GREY))
        write(axis, x + length / 2, bar + height / 2, f"{stay:,} stay", ha="center", width=length)
    if model.shift != "none":
        what = "move" if model.shift == "true" else "lose a border"
        share = f"{100 * (channels - stay) / channels:.4g} %, {100 * widths[0] / channels:.4g} % in each group"
        text = f"{channels - stay:,} of {channels:,} {what}: {share}"
        write(axis, _BAR + _BAR_WIDTH, top + 0.76, text, size=SMALL, color=GREY, ha="right")
