"""Compares the training cost of a row with its document's recipe: multiply-adds, images and updates."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxvit.errors import UsageError
from jaxvit.reproduce.rows import TableRow
from jaxvit.reproduce.table import newest
from jaxvit.training.journal import read_jsonl

_MORE = 1.005  # smallest ratio that is shown: below it, 1.00 would be printed


@dataclass(frozen=True)
class TrainingCost:
    """Training cost of one run.

    Attributes:
      multiply_adds: multiply-adds of one image's forward pass.
      images: training images, counted as often as they were seen.
      updates: optimizer updates.
    """

    multiply_adds: float
    images: float
    updates: float


def costs_of(lines: Sequence[Mapping[str, str]], results: Path) -> dict[str, TrainingCost]:
    """{name in results/metrics: cost} of the runs with metrics; skips damaged files with a message."""
    found = {}
    for line in lines:
        if not line["metrics"]:
            continue
        try:
            epochs = [one for one in read_jsonl(results / "metrics" / line["metrics"]) if one["split"] == "train"]
            if epochs:
                images = sum(one["count"] for one in epochs)
                found[line["metrics"]] = TrainingCost(float(line["multiply_adds"]), images, epochs[-1]["step"])
        except (UsageError, KeyError, TypeError) as error:
            print(f"images and updates left out: metrics/{line['metrics']}: {error}", flush=True)
    return found


def cost_sentence(
    row: TableRow,
    runs: Sequence[dict[str, str]],
    lines: Sequence[dict[str, str]],
    document_row: TableRow,
    form: str,
    costs: Mapping[str, TrainingCost],
) -> str:
    """A sentence on the cost of `runs`, if it exceeds that of the document's row; else ''.

    Ratios compare means over runs of the same form. If one ratio is above 1, all are given.
    """
    others = newest(lines, document_row, form)
    mine = [costs[run["metrics"]] for run in runs if run["metrics"] in costs]
    theirs = [costs[run["metrics"]] for run in others if run["metrics"] in costs]
    if not mine:
        return ""
    if not theirs:
        return f"multiply-adds, images and updates are not compared with {document_row.name}, which has no such run"

    def ratio(name: str) -> float:
        return statistics.fmean(getattr(e, name) for e in mine) / statistics.fmean(getattr(e, name) for e in theirs)

    counted, images, updates = map(ratio, ("multiply_adds", "images", "updates"))
    if max(counted, images, updates) < _MORE:
        return ""
    return (
        f"cost relative to {document_row.name}: {counted:.2f} times the multiply-adds per image, {images:.2f} times "
        f"the images, {updates:.2f} times the updates; {counted * images:.2f} times the multiply-adds in total"
    )
