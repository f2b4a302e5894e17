"""Learning curves of a run: a panel for each metric, training and validation, and the learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import MaxNLocator

from jaxvit.figures import style
from jaxvit.training.journal import deciding_validations

TRAIN, VALIDATION, BEST = style.BLUE, style.VERMILION, style.GREEN
PANELS = (
    ("loss", "loss"),
    ("top1", "accuracy"),
    ("top5", "top-5 accuracy"),
    ("precision", "precision (probability > ½)"),
    ("recall", "recall (probability > ½)"),
)


def draw_history(
    records: Sequence[dict[str, Any]], file: Path, best_epoch: int = 0, title: str = "", smoothing: float = 0.0
) -> list[Path]:
    """Draws the metrics of a run.

    Args:
      records: lines of `metrics.jsonl`.
      file: path to write to, as PNG and SVG.
      best_epoch: epoch to mark by a vertical line; 0 = none.
      title: title of the figure.
      smoothing: label smoothing of the training loss, named in its panel; the validation loss uses none.
    """
    by_split = {split: [r for r in records if r["split"] == split] for split in ("train", "steps")}
    by_split["validation"] = deciding_validations(records)
    figure = style.new_figure(13, 7)
    axes = figure.subplots(2, 3)
    for axis, (name, label) in zip(axes.flat, PANELS, strict=False):
        for split, colour in (("train", TRAIN), ("validation", VALIDATION)):
            points = [(r["epoch"], r[name]) for r in by_split[split] if r.get(name) is not None]
            if points:
                marker = "o" if len(points) == 1 else None
                axis.plot(*zip(*points, strict=True), color=colour, label=split, linewidth=1.8, marker=marker)
        if name == "loss" and smoothing:
            label = f"loss (train: labels smoothed by {smoothing:g})"
        axis.set(title=label, xlabel="epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))  # epochs are whole numbers
        if best_epoch and by_split["validation"]:
            axis.axvline(best_epoch, color=BEST, linestyle="--", linewidth=1.2, label=f"best: epoch {best_epoch}")
        axis.grid(alpha=0.3)
    rate = axes.flat[-1]
    points = [(r["epoch"], r["learning_rate"]) for r in by_split["steps"]]
    if points:
        marker = "o" if len(points) == 1 else None
        rate.plot(*zip(*points, strict=True), color=style.GREY, linewidth=1.8, marker=marker)
    rate.set(title="learning rate", xlabel="epoch")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    rate.grid(alpha=0.3)
    if axes.flat[0].get_legend_handles_labels()[0]:
        axes.flat[0].legend(frameon=False)
    if title:
        style.entitle(figure, title)
    return style.save(figure, file)
