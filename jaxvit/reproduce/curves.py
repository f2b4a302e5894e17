"""Keeps the metrics of runs in results/metrics and draws their learning curves into results/curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxvit.errors import UsageError
from jaxvit.figures.rows import Curve, draw_rows
from jaxvit.files import make_folder, write_text
from jaxvit.reproduce.rows import TableRow
from jaxvit.reproduce.table import newest
from jaxvit.training.journal import deciding_validations, read_jsonl


def keep_metrics(run: Path, row: TableRow, line: Mapping[str, Any], results: Path) -> None:
    """Copies a run's metrics.jsonl into results/metrics, under the name in its line.

    If the row reports the last weights, which training does not test, their result is appended with split
    'test_latest'.
    """
    text = (run / "metrics.jsonl").read_text()
    if row.weights == "latest":
        last = read_jsonl(run / "metrics.jsonl")[-1]
        found = {name: line[name] for name in ("loss", "top1", "top5", "precision", "recall")}
        place = {"step": last["step"], "epoch": last["epoch"], "split": "test_latest"}
        text += json.dumps({**place, **found, "count": line["n"]}) + "\n"
    folder = results / "metrics"
    make_folder(folder)
    write_text(folder / line["metrics"], text)


def draw_curves(rows: Mapping[str, TableRow], lines: Sequence[dict[str, str]], results: Path) -> list[str]:
    """Draws results/curves/CONFIG_EPOCHS_epochs.png for each config file and duration, from the full runs on the page.

    Returns:
      Names of the files, relative to results/README.md.
    """
    groups: dict[str, list[TableRow]] = {}
    for row in rows.values():
        if row.epochs > 1 and not row.trial_of:  # one epoch gives no curve
            groups.setdefault(f"{row.config.partition('.')[0]}_{row.epochs}_epochs", []).append(row)
    drawn = []
    for name, members in groups.items():
        curves = {row.name: found for row in members if (found := _curves(newest(lines, row), results))}
        if curves:
            documents = {row.name: row.document["top1"] for row in members if "top1" in row.document}
            draw_rows(curves, documents, results / "curves" / name)
            drawn.append(f"curves/{name}.png")
    return drawn


def _curves(runs: Sequence[dict[str, str]], results: Path) -> list[Curve]:
    """(epoch, validation accuracy) of each run; skips damaged files with a message."""
    curves = []
    for run in runs:
        try:
            curves.append(validations(results / "metrics" / run["metrics"]))
        except UsageError as error:
            print(f"curve left out: {error}", flush=True)
    return [curve for curve in curves if curve]


def validations(file: Path) -> Curve:
    """(epoch, accuracy) of each validation in a metrics.jsonl file.

    Raises:
      UsageError: the file has another format.
    """
    curve = [(record.get("epoch"), record.get("top1")) for record in deciding_validations(read_jsonl(file))]
    if not all(isinstance(value, int | float) for point in curve for value in point):
        raise UsageError(f"{file}: a validation in it has no epoch or no top1; put a copy of it back")
    return curve
