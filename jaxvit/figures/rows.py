"""Learning curves of several experiments, over one or more seeds, with the accuracies reported for them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.ticker import MaxNLocator

from jaxvit.figures import style

Curve = Sequence[tuple[float, float]]


def draw_rows(curves: Mapping[str, Sequence[Curve]], documents: Mapping[str, float], file: Path) -> list[Path]:
    """Draws validation accuracy over epochs: a thin line for each seed, a thick line for their mean.

    Args:
      curves: {experiment: a curve for each seed}; a curve is a list of (epoch, accuracy as a fraction).
      documents: {experiment: reported test accuracy}, drawn as dotted lines in the experiments' colours.
      file: path to write to, as PNG.
    """
    figure = style.new_figure(10, 5.5)
    axis = figure.subplots()
    for i, (name, seeds) in enumerate(curves.items()):
        colour = style.COLOURS[i % len(style.COLOURS)]
        line = {"color": colour, "linestyle": ("-", "--", "-.")[i // len(style.COLOURS) % 3]}
        mean = _mean(seeds)
        if len(seeds) > 1:
            for curve in seeds:
                axis.plot(*_in_percent(curve), linewidth=0.7, alpha=0.6, **line)
        label = f"{name}: {mean[-1][1]:.2%}" + (f", mean of {len(seeds)} seeds" if len(seeds) > 1 else "")
        if name in documents:
            label += f" (dotted: the document's test accuracy, {documents[name]:.2%})"
        axis.plot(*_in_percent(mean), linewidth=2, marker="o", markersize=4, label=label, **line)
        if name in documents:
            axis.axhline(100 * documents[name], color=colour, linestyle=":", linewidth=1.4)
    axis.set(xlabel="epoch", ylabel="validation accuracy (%)")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    figure.legend(frameon=False, title="after the last epoch", loc="outside lower center")
    return style.save(figure, file, formats=("png",), dpi=100)


def _mean(seeds: Sequence[Curve]) -> Curve:
    """Mean over seeds, for the epochs that all seeds have."""
    return [(points[0][0], statistics.fmean(value for _, value in points)) for points in zip(*seeds, strict=False)]


def _in_percent(curve: Curve) -> tuple[list[float], list[float]]:
    return [epoch for epoch, _ in curve], [100 * value for _, value in curve]
