"""Diagram of TokenLearner and TokenFuser: how a feature map becomes a few tokens, and how they are mapped back."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from jaxvit.figures.diagram import SMALL, arrow, box, cells, circle, new_sheet, tint, write
from jaxvit.figures.style import COLOURS, GREY, ORANGE, SKY, VERMILION, save
from jaxvit.models.summarize import summarize
from jaxvit.models.vit import ViT

_WIDTH, _MARGIN, _HEIGHT, _GAP = 10.0, 0.25, 0.62, 0.22
_PLAIN = {"gelu_tanh": "gelu"}  # the approximation does not matter in a diagram
_SHOWN = 3  # maps drawn, at most


def draw_token_learner(model: ViT, input_shape: tuple[int, ...], file: Path, title: str = "") -> list[Path]:
    """Draws the TokenLearner of a model, and its TokenFuser if it has one, with the model's sizes.

    Args:
      model: a ViT with a TokenLearner.
      input_shape: shape of one image, (H, W, C); it sets the size of the feature map.
      file: path to write to; the suffixes .png and .svg are added.
      title: title of the diagram; '' = 'TokenLearner'.

    Returns:
      The files written.

    Raises:
      ValueError: the model has no TokenLearner, or does not accept images of this shape.
    """
    if getattr(model, "learner", "none") == "none":
        raise ValueError(f"this {type(model).__name__} has no TokenLearner to draw: set learner and learner_at")
    rows = summarize(model, input_shape)["layers"]
    grid = next(tuple(row["output"][:2]) for row in rows if row["path"] == "embed")
    params = next(row["params"] for row in rows if row["type"] == "TokenLearner")
    axis = new_sheet(_WIDTH, 7.75 if model.fuse else 4.5)
    write(axis, _MARGIN, 0.32, title or "TokenLearner", size=15, weight="bold", width=_WIDTH - 2 * _MARGIN)
    places = math.prod(grid)
    where = f"before block{'s' * (len(model.learner_at) > 1)} {_list(model.learner_at)}"
    about = f"{_count(model.learner_tokens, 'token')} learned from {places:,} places, {where}; {params:,} parameters"
    about += f"; {_count(model.prefix, 'leading token')} passed on as they are" if model.prefix else ""
    write(axis, _MARGIN, 0.66, about, color=GREY, width=_WIDTH - 2 * _MARGIN)
    _draw_learner(axis, 1.0, model, grid)
    if model.fuse:
        fuser = next(row["params"] for row in rows if row["type"] == "TokenFuser")
        axis.plot((_MARGIN, _WIDTH - _MARGIN), (4.65, 4.65), color=GREY, linewidth=0.8)
        write(axis, _MARGIN, 4.95, "TokenFuser", size=13, weight="bold")
        after = f"after block{'s' * (len(model.learner_at) > 1)} {_list(model.learner_at)}; {fuser:,} parameters"
        write(axis, _MARGIN + 1.35, 4.96, f"spreads the tokens over the map again, {after}", color=GREY)
        _draw_fuser(axis, 5.3, model, places)
    return save(axis.figure, file)


def scoring_steps(model: ViT) -> list[str]:
    """Text of each box between the C channels of a position and its scores for the S tokens."""
    channels, learned = model.dim, model.learner_tokens
    active = _PLAIN.get(model.learner_activation, model.learner_activation)
    if model.learner == "v11_mlp":
        return [f"dense {channels} → {model.learner_hidden}\n{active}", f"dense\n{model.learner_hidden} → {learned}"]
    if model.learner == "v11_conv":
        grouped = f"1×1 conv in {_count(model.learner_groups, 'group')}\n{channels} → {channels}"
        return [grouped, f"1×1 conv\n{channels} → {learned}"]
    between = model.learner_convs - 2
    if between < 0:
        return [f"3×3 conv\n{channels} → {learned}"]
    times = f", {between} times" if between > 1 else ""
    middle = [f"3×3 conv{times}\n{learned} → {learned}, {active}"] if between else []
    return [f"3×3 conv\n{channels} → {learned}, {active}", *middle, f"3×3 conv\n{learned} → {learned}"]


def _draw_learner(axis: Axes, top: float, model: ViT, grid: tuple[int, int]) -> None:
    """Draws both branches: the attention maps above, the values that they weight below."""
    places, learned, channels = math.prod(grid), model.learner_tokens, model.dim
    upper, lower = top + 0.6, top + 2.6
    size = f"{grid[0]} × {grid[1]}"
    _draw_map(axis, _MARGIN, upper - 0.45, 0.9, grid, GREY)
    write(axis, _MARGIN, upper + 0.68, f"map\n{size} × {channels}", size=SMALL + 0.5)

    texts = (["norm"] if model.learner_norm else []) + scoring_steps(model)
    colours = [GREY] * model.learner_norm + [SKY] * len(scoring_steps(model)) + [ORANGE]
    softmax = model.learner != "v1"
    texts.append(f"softmax over\n{places:,} places" if softmax else "sigmoid for\neach place")
    end = _chain(axis, 1.15, upper, 8.35, texts, colours)
    arrow(axis, [(end, upper), (8.62, upper)])
    for i in range(min(_SHOWN, learned))[::-1]:
        _draw_map(axis, 8.67 + 0.13 * i, upper - 0.45 + 0.1 * i, 0.75, grid, COLOURS[i], spot=i)
    write(axis, _WIDTH - _MARGIN, upper + 0.75, f"{_count(learned, 'map')} of {size}", size=SMALL + 0.5, ha="right")

    # The value branch: from the feature map, below.
    start = _MARGIN + 0.45
    turn = [(start, upper + 0.98), (start, lower)]
    if model.learner == "v11_conv":
        arrow(axis, [*turn, (1.6, lower)])
        box(axis, 1.6, lower - _HEIGHT / 2, 1.9, _HEIGHT, scoring_steps(model)[0], colour=SKY, size=SMALL + 0.5)
        arrow(axis, [(3.5, lower), (5.0, lower)])
        write(axis, 4.2, lower - 0.14, f"{places:,} values", size=SMALL, color=GREY, ha="center")
    else:
        arrow(axis, [*turn, (5.0, lower)])
        note = f"the {places:,} places of the map" + (", without norm" if model.learner_norm else "")
        write(axis, 2.9, lower - 0.14, note, size=SMALL, color=GREY, ha="center")
    kind = "sum" if model.learner_reduce == "sum" else "mean"
    text = f"weighted {kind}\nover {places:,} places"
    box(axis, 5.0, lower - _HEIGHT / 2, 1.85, _HEIGHT, text, colour=VERMILION, size=SMALL + 0.5)
    arrow(axis, [(9.1, upper + 0.93), (9.1, lower - 0.85), (5.92, lower - 0.85), (5.92, lower - _HEIGHT / 2)])
    write(axis, 9.0, lower - 0.99, "each map: one token's weights (made up here)", size=SMALL, color=GREY, ha="right")
    arrow(axis, [(6.85, lower), (7.55, lower)])
    _draw_tokens(axis, 7.62, lower, learned)
    write(
        axis,
        7.62 + 0.85,
        lower + 0.11 * min(learned, 8) / 2 + 0.2,
        f"{_count(learned, 'token')} × {channels}",
        ha="center",
        weight="bold",
    )


def _draw_fuser(axis: Axes, top: float, model: ViT, places: int) -> None:
    """Draws both branches: the mixing weights of the positions above, the tokens below, and the residual connection."""
    learned, channels, hidden = model.learner_tokens, model.dim, model.learner_hidden
    active = _PLAIN.get(model.learner_activation, model.learner_activation)
    upper, lower, meet = top + 0.7, top + 1.95, 7.0
    words = {"size": SMALL + 0.5}
    write(axis, _MARGIN, upper, f"map before\nTokenLearner\n{places:,} × {channels}", **words)
    texts = ["norm", f"dense {channels} → {hidden}\n{active}", f"dense\n{hidden} → {learned}", "sigmoid"]
    axis.plot((1.4, 1.6), (upper, upper), color=GREY, linewidth=1.4)
    axis.plot((1.5,), (upper,), "o", color=GREY, markersize=5)
    end = _chain(axis, 1.6, upper, meet - 0.45, texts, [GREY, SKY, SKY, ORANGE])
    arrow(axis, [(end, upper), (meet + 0.1, upper), (meet + 0.1, lower - _HEIGHT / 2)])
    write(axis, meet + 0.2, (upper + lower) / 2 - 0.03, f"mix {places:,} × {learned}", **words)
    write(axis, _MARGIN, lower, f"tokens after\nthe block\n{learned} × {channels}", **words)
    texts = ["norm", f"dense between tokens\n{learned} → {learned}, starts at 0", "norm"]
    axis.plot((1.4, 1.6), (lower, lower), color=GREY, linewidth=1.4)
    end = _chain(axis, 1.6, lower, meet - 0.95, texts, [GREY, SKY, GREY])
    arrow(axis, [(end, lower), (meet - 0.72, lower)])
    box(
        axis,
        meet - 0.72,
        lower - _HEIGHT / 2,
        1.62,
        _HEIGHT,
        "each place: sum\nof tokens by mix",
        colour=ORANGE,
        **words,
    )
    arrow(axis, [(meet + 0.9, lower), (meet + 1.2, lower)])
    circle(axis, meet + 1.34, lower, "+")
    # Residual connection: the mixed tokens are added to the map before TokenLearner.
    over = upper - 0.5
    arrow(axis, [(1.5, upper), (1.5, over), (meet + 1.34, over), (meet + 1.34, lower - 0.14)])
    arrow(axis, [(meet + 1.48, lower), (meet + 1.78, lower)])
    write(axis, meet + 1.84, lower, f"map\n{places:,} × {channels}", weight="bold", **words)


def _chain(axis: Axes, x: float, y: float, end: float, texts: list[str], colours: list[str]) -> float:
    """Draws boxes between x and `end`, an arrow before each, as wide as their texts; returns their right end."""
    lengths = [max(len(line) for line in text.split("\n")) + 3 for text in texts]
    share = (end - x - _GAP * len(texts)) / sum(lengths)
    for text, colour, length in zip(texts, colours, lengths, strict=True):
        width = min(share, 0.115) * length
        arrow(axis, [(x, y), (x + _GAP, y)])
        x += _GAP
        box(axis, x, y - _HEIGHT / 2, width, _HEIGHT, text, colour=colour, size=SMALL + 0.5)
        x += width
    return x


def _draw_map(axis: Axes, x: float, y: float, side: float, grid: tuple[int, int], colour: str, spot: int = -1) -> None:
    """Draws a feature map within a square; with `spot`, as an attention map with a made-up peak."""
    rows, columns = grid
    place = [(0.3, 0.3), (0.65, 0.6), (0.4, 0.75)][spot] if spot >= 0 else None
    faces = []
    for i in range(rows * columns):
        row, column = (i // columns + 0.5) / rows, (i % columns + 0.5) / columns
        weight = 0.25 if place is None else math.exp(-((row - place[0]) ** 2 + (column - place[1]) ** 2) / 0.05)
        faces.append(tint(colour, 0.9 * weight))
    cells(axis, x, y, side / max(grid), rows, columns, faces, edge=colour)


def _draw_tokens(axis: Axes, x: float, y: float, count: int) -> None:
    """Draws tokens as stripes centred at y, the first in the colours of their maps; at most 7 of more than 8 tokens."""
    shown = count if count <= 8 else 7
    pitch = 0.11
    for i in range(shown):
        colour = COLOURS[i] if i < _SHOWN else GREY
        top = y + (i - shown / 2) * pitch
        axis.add_patch(Rectangle((x, top), 1.7, 0.075, facecolor=tint(colour, 0.7)))
    if shown < count:
        write(axis, x + 1.75, y, f"… {count}", size=SMALL, color=GREY)


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'s' * (number != 1)}"


def _list(numbers: tuple[int, ...]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} and {last}" if first else last
