"""results/results.csv, one line for each run of a row, and what these say: results/README.md."""

from __future__ import annotations

import csv
import fcntl
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxvit.errors import UsageError
from jaxvit.rows import Difference, Row, compare, judge
from jaxvit.run_directory import write_text

COLUMNS = (
    *("row", "form", "config_hash", "seed", "n", "top1", "top5", "loss", "epochs", "weights"),
    *("params", "multiply_adds", "compile_seconds", "train_seconds", "eval_seconds", "save_seconds"),
    *("hardware", "versions", "data", "commit", "date"),
)
FULL = "full"


def form_of(row: Row) -> str:
    """How a row is run that is not asked for in a form of fewer epochs."""
    return f"{row.steps} step{'s' * (row.steps > 1)} on random images" if row.steps else FULL


def results_of(file: Path) -> list[dict[str, str]]:
    """The lines of results.csv; [] if there is none.

    Raises:
      UsageError: it is not that file.
    """
    if not file.exists():
        return []
    with file.open(newline="") as stream:
        reader = csv.DictReader(stream)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise UsageError(f"{file}: its columns are not those of this version; move it away")
        lines = list(reader)
    if any(None in line or None in line.values() or not line["seed"].isdecimal() for line in lines):
        raise UsageError(f"{file}: a line is damaged; put a copy of it back, or move it away")
    return lines


def keep(line: dict[str, Any], file: Path) -> None:
    """Adds a line to results.csv, in place of an older one of the same run on the same hardware.

    Several processes may do so at once.
    """
    same = ("row", "form", "seed", "hardware", "config_hash")
    file.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        lines = [old for old in results_of(file) if any(str(line[name]) != old[name] for name in same)]
        lines.append({name: str(line[name]) for name in COLUMNS})
        stream = io.StringIO()
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        write_text(file, stream.getvalue())
    finally:
        os.close(folder)


def newest(lines: Sequence[dict[str, str]], row: Row, form: str = FULL) -> list[dict[str, str]]:
    """A row's lines of one form on one hardware, that of the last line: one a seed, in the order of the seeds."""
    mine = [line for line in lines if line["row"] == row.name and line["form"] == form]
    if not mine:
        return []
    hardware_of_last = mine[-1]["hardware"]
    by_seed = {int(line["seed"]): line for line in mine if line["hardware"] == hardware_of_last}
    return [by_seed[seed] for seed in sorted(by_seed)]


def outcome(row: Row, lines: Sequence[dict[str, str]], rows: dict[str, Row], form: str = "") -> tuple[list[str], bool]:
    """Sentences on what a row's runs of one form, by default the one asked for, say to its targets; are all met?"""
    form = form or form_of(row)
    runs = newest(lines, row, form)
    if not runs:
        return ["not run"], False
    if row.steps:
        found = int(runs[0]["params"])
        right = f"{found:,} parameters, as expected" if found == row.params else f"{found:,}, not {row.params:,}"
        return [f"{form}, loss {float(runs[0]['loss']):.3f}; {right}"], found == row.params
    said, passed = [], True
    for verdict in judge(row, runs):
        between = f"{verdict.measure} {verdict.value:.2%} (95 %: {verdict.low:.2%} to {verdict.high:.2%})"
        between += " with the last step's weights" * (row.weights == "latest" and verdict.measure == "top1")
        if form != FULL:
            said.append(between)
            continue
        passed &= verdict.passed
        end = "passes" if verdict.passed else f"misses it by {100 * verdict.missing:.2f} points"
        if verdict.passed and verdict.missing > 1e-9:
            below, tolerance = 100 * verdict.missing, 100 * row.tolerance
            end = f"{below:.2f} points below it, within the tolerance of {tolerance:.2f}: passes"
        said.append(f"{between} against {verdict.target:.2%}: {end}")
    if row.pair:
        found = compare(row, runs, newest(lines, rows[row.pair.row], form))
        asked = form == FULL and (row.pair.ratio > 0 or row.pair.above)
        if found:
            said.append(_compared(row, found))
        elif asked:
            said.append(f"not compared with {row.pair.row}, which was not run with these seeds on this hardware")
        passed &= not asked or (found is not None and found.passed)
    return said, passed


def _compared(row: Row, found: Difference) -> str:
    """A sentence on a row and the one that it is paired with."""
    interval = "" if found.low is None else f" (95 %: {100 * found.low:+.2f} to {100 * found.high:+.2f})"
    end = "" if found.equal is None else ", equal within a point" if found.equal else ", not shown to be equal"
    if found.above:
        end = ", above it: passes" if found.mean > 0 else ", not above it"
    ratio = f"{found.ratio:.2f} times as fast for {found.counted:.2f} times fewer multiply-adds"
    if found.asked:
        ratio += f", {found.asked:g} asked: {'passes' if found.ratio >= found.asked else 'misses it'}"
    return f"{100 * found.mean:+.2f} points to {row.pair.row}{interval}{end}; {ratio}"


def page(rows: dict[str, Row], lines: Sequence[dict[str, str]], curves: Sequence[str] = ()) -> str:
    """results/README.md; `curves` are pictures beside it."""
    text = [
        "# Results",
        "",
        "What the five documents report, what is asked of this project for it, and what was measured. Written by",
        "`jaxvit reproduce` from `rows.toml` and `results.csv`, where every number has its line; a row without a line",
        "says so. Intervals are of 95 %: of one run Wilson's for its test images, of several seeds Student's for their",
        "mean. Where the document's number is of one run, a row passes that is below it by no more than half of the",
        "interval of that number, and says so. Weights are those that the document measured: of the last step where a",
        "row says so, else the best on validation. Ratios of times are of whole trainings, one after another;",
        "`benchmarks/RESULTS.md` has steps, timed in turns. A row that is run again renews its line.",
        "",
        "| row | config | document | asked | runs | measured |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows.values():
        runs = newest(lines, row, form_of(row))
        said, _ = outcome(row, lines, rows)
        count = f"{len(runs)}, n = {runs[0]['n']}" if runs else "none"
        for form in sorted({line["form"] for line in lines if line["row"] == row.name} - {form_of(row)}):
            seeds = len(newest(lines, row, form))
            found = "; ".join(outcome(row, lines, rows, form)[0])
            said.append(f"a short form, {form}, {seeds} run{'s' * (seeds > 1)}: {found}")
        cells = [
            f"`{row.name}`",
            f"`{row.config}`",
            numbers(row.document),
            numbers(row.target),
            count,
            "<br>".join(said),
        ]
        text.append(f"| {' | '.join(cells)} |")
    if curves:
        text += ["", "## Learning curves", "", "Of the runs in full; `metrics/` has their numbers.", ""]
        text += [f"![Validation accuracy over epochs: {curve}]({curve})" for curve in curves]
    text += ["", "## Departures that a row has switched on", ""]
    text += [f"- `{row.name}`: {', '.join(row.quirks)}" for row in rows.values() if row.quirks]
    notes = [f"- `{row.name}`: {row.note}" for row in rows.values() if row.note]
    if notes:
        text += ["", "## Notes", "", *notes]
    if lines:
        text += ["", "## Where", ""]
        text += [f"- {where}" for where in sorted({f"{line['hardware']}; {line['versions']}" for line in lines})]
    return "\n".join(text) + "\n"


def numbers(numbers: Any) -> str:
    shown = [f"{name} {value:.4f}" if name == "loss" else f"{name} {value:.2%}" for name, value in numbers.items()]
    return ", ".join(shown) or "–"
