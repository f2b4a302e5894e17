"""Figure of a sweep: test accuracy against the first key, and against multiply-adds."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxvit.figures.style import COLOURS, new_figure, save

MARKERS = "osD^vPX"


def draw_sweep(rows: Sequence[dict[str, Any]], keys: Sequence[str], file: Path) -> list[Path]:
    """Draws the accuracies of a sweep.

    Args:
      rows: one dict for each finished cell of the grid: the values of the keys as text, `top1`, `macs`, and `top1_std`
        if the cell has several seeds.
      keys: keys of the grid; the first is the horizontal axis, the others distinguish the lines.
      file: path to write to, as PNG and SVG.
    """
    figure = new_figure(13, 5.2)
    by_value, by_cost = figure.subplots(1, 2)
    first, others = keys[0], keys[1:]
    values = list(dict.fromkeys(row[first] for row in rows))
    numbers = [_number(value) for value in values]
    scaled = all(number is not None for number in numbers)
    places = dict(zip(values, numbers if scaled else range(len(values)), strict=True))

    lines: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        lines.setdefault(tuple(row[key] for key in others), []).append(row)
    for i, (setting, members) in enumerate(lines.items()):
        style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i // len(COLOURS) % len(MARKERS)]}
        label = ", ".join(f"{_leaf(key)} = {value}" for key, value in zip(others, setting, strict=True))
        accuracy = [100 * row["top1"] for row in members]
        spread = [100 * row.get("top1_std", 0.0) for row in members]
        spread = spread if any(spread) else None
        by_value.errorbar(
            [places[row[first]] for row in members], accuracy, spread, label=label, linewidth=1.8, capsize=4, **style
        )
        by_cost.errorbar(
            [row["macs"] / 1e6 for row in members], accuracy, spread, label=label, linestyle="none", capsize=4, **style
        )
        for row, height in zip(members, accuracy, strict=True):
            by_cost.annotate(row[first], (row["macs"] / 1e6, height), (6, 5), textcoords="offset points", fontsize=9)
    if scaled and min(numbers) > 0 and max(numbers) / min(numbers) >= 10:
        by_value.set_xscale("log")
    by_value.set_xticks(list(places.values()), values)
    by_value.minorticks_off()
    what = "test accuracy (%)" + (", mean ± standard deviation over seeds" if any("n" in row for row in rows) else "")
    by_value.set(xlabel=first, ylabel=what)
    by_cost.set(xlabel="multiply-adds of one image (millions)", ylabel="test accuracy (%)")
    by_cost.set_title(f"labels: {_leaf(first)}", fontsize=10)
    by_cost.margins(x=0.12)
    for axis in (by_value, by_cost):
        axis.grid(alpha=0.3)
    if others:
        by_value.legend(frameon=False)
    return save(figure, file)


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


def _number(text: str) -> float | None:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
