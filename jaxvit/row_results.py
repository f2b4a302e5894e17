"""results/results.csv, one line for each run of a row, and what these say: results/README.md."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import os
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxvit.errors import UsageError
from jaxvit.rows import JUDGED, Difference, Row, Verdict, compare, judge
from jaxvit.run_directory import write_text

COLUMNS = (
    *("row", "form", "recipe", "config_hash", "seed", "n", "top1", "top5", "loss", "precision", "recall", "epochs"),
    "weights",
    *("params", "multiply_adds", "compile_seconds", "train_seconds", "eval_seconds", "save_seconds"),
    *("hardware", "versions", "data", "commit", "date"),
)
FULL = "full"


def form_of(row: Row, epochs: int = 0, dtype: str = "") -> str:
    """How a row is run: in full, or in so many epochs (0 = its own); in a dtype ('' = its config's)."""
    if row.steps:
        return f"{row.steps} step{'s' * (row.steps > 1)} on random images"
    length = f"{epochs} of {row.epochs} epochs" if epochs not in (0, row.epochs) else FULL
    return f"{length}, {dtype}" if dtype else length


def is_full(form: str) -> bool:
    """Whether a run of this form can pass."""
    return form.partition(",")[0] == FULL


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
    if any(None in line or None in line.values() or not _whole(line) for line in lines):
        raise UsageError(f"{file}: a line is damaged; put a copy of it back, or move it away")
    return lines


def _whole(line: dict[str, str]) -> bool:
    """Whether its numbers are numbers; a row of steps has no accuracy."""
    try:
        for name in ("seed", "n", "params", "multiply_adds"):
            int(line[name])
        for name in ("top1", "top5", "loss", "train_seconds"):
            float(line[name] or 0)
    except ValueError:
        return False
    return True


@contextlib.contextmanager
def writing(results: Path) -> Iterator[None]:
    """Within, no other process writes into this folder: each reads what the one before it has left."""
    results.mkdir(parents=True, exist_ok=True)
    folder = os.open(results, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def keep(line: dict[str, Any], file: Path) -> None:
    """Adds a line to results.csv, in place of an older one of the same run on the same hardware; within `writing`."""
    same = ("row", "form", "seed", "hardware", "config_hash")
    lines = [old for old in results_of(file) if any(str(line[name]) != old[name] for name in same)]
    lines.append({name: str(line[name]) for name in COLUMNS})
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_text(file, stream.getvalue())


def newest(lines: Sequence[dict[str, str]], row: Row, form: str = FULL) -> list[dict[str, str]]:
    """A row's lines of one form, recipe and hardware: one a seed, in the order of the seeds.

    The recipe is that of the last line; the hardware that with the most seeds, of several the last.
    """
    mine = [line for line in lines if line["row"] == row.name and line["form"] == form]
    by_hardware: dict[str, dict[int, dict[str, str]]] = {}
    for line in mine:
        if line["recipe"] == mine[-1]["recipe"]:
            found = by_hardware.pop(line["hardware"], {})
            by_hardware[line["hardware"]] = {**found, int(line["seed"]): line}
    if not by_hardware:
        return []
    by_seed = max(reversed(by_hardware.values()), key=len)
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
    verdicts = judge(row, runs)
    said = [_judged(row, verdict, form) for verdict in verdicts]
    passed = all(verdict.passed for verdict in verdicts)
    if len(runs) > 1:
        said.append("top1 of each seed: " + ", ".join(f"{100 * float(run['top1']):.2f}" for run in runs))
    others = {name: statistics.fmean(float(run[name]) for run in runs) for name in row.document if name not in JUDGED}
    if others:
        said.append(numbers(others))
    if any(int(run["n"]) != row.n for run in runs):
        said.append(f"measured on {runs[0]['n']} images in place of {row.n}: another test set")
        passed = False
    if row.pair:
        found = compare(row, runs, newest(lines, rows[row.pair.row], form))
        if found:
            said.append(_compared(found, form))
        elif is_full(form) and row.pair.asked:
            said.append(f"not compared with {row.pair.row}, which was not run with these seeds on this hardware")
        passed &= not row.pair.asked or (found is not None and found.passed)
    return said, passed and is_full(form)


def _judged(row: Row, verdict: Verdict, form: str) -> str:
    """A sentence on one measure."""
    said = f"{verdict.measure} {verdict.value:.2%} (95 %: {verdict.low:.2%} to {verdict.high:.2%})"
    said += " with the last step's weights" * (row.weights == "latest" and verdict.measure == "top1")
    if not is_full(form):
        return said
    said += f" against {verdict.target:.2%}: "
    if verdict.missing <= 1e-9:
        return said + "passes"
    below = f"{100 * verdict.missing:.2f} points"
    if not verdict.passed:
        return said + f"misses it by {below}"
    said += f"{below} below it, within the {100 * verdict.tolerance:.2f} that the one run of the document leaves open"
    if verdict.one_run:
        low, high = verdict.one_run
        said += f" (one more run here would have {low:.2%} to {high:.2%})"
    return said + ": passes"


def _compared(found: Difference, form: str) -> str:
    """A sentence on a row and the one that it is paired with."""
    pair, judged = found.pair, is_full(form)

    def verdict(asked: Any, met: bool | None, words: str) -> str:
        return f", {words}: {'passes' if met else 'misses it'}" if asked and judged else ""

    said = f"{100 * found.mean:+.2f} points to {pair.row}"
    if found.low is not None:
        said += f" (95 %: {100 * found.low:+.2f} to {100 * found.high:+.2f}, {found.seeds} seeds)"
    within = pair.equal or 0.01
    if (equal := found.equal(within)) is not None and not pair.above:
        shown = "equal" if equal else "not shown to be equal"
        said += f", {shown} within {100 * within:g} point{'s' * (within != 0.01)}"
    said += verdict(pair.equal, found.equal(within), f"equality within {100 * within:g} asked")
    if pair.above:
        said += ", above it" if found.above else ", not shown to be above it"
        said += verdict(True, found.above, "an interval above 0 asked")
    fewer = f"{found.saved:.1%} fewer multiply-adds, {found.counted:.2f} times"
    said += f"; {fewer if found.saved else 'as many multiply-adds'}"
    if pair.fewer:
        said += verdict(True, found.saves_as_asked, f"{pair.fewer[0]:.1%} to {pair.fewer[1]:.1%} asked")
    said += f"; trained {found.ratio:.2f} times as fast"
    if len(found.ratios) > 1:
        said += f" (median; {min(found.ratios):.2f} to {max(found.ratios):.2f})"
    return said + verdict(pair.ratio, found.ratio >= pair.ratio, f"{pair.ratio:g} asked")


def page(rows: dict[str, Row], lines: Sequence[dict[str, str]], curves: Sequence[str] = ()) -> str:
    """results/README.md; `curves` are pictures beside it."""
    text = [
        "# Results",
        "",
        "What the five documents report of accuracy, what is asked of this project for it, and what was measured.",
        "Written by `jaxvit reproduce` from `rows.toml` and `results.csv`, where every number has its line; a row",
        "without a line says so.",
        "",
        "- Intervals are of 95 %: of one run Wilson's for its test images, of several seeds Student's for their mean.",
        "- Where the document's number is of one run, a row also passes that is below it by no more than half of that",
        "  number's own interval, and says so. This was settled after the first five Fashion-MNIST runs, for all rows.",
        "- Weights are those that the document measured: of the last step where a row says so, else the best on",
        "  validation.",
        "- Ratios of times are of the training of the same seed, validation left out; `benchmarks/RESULTS.md` has",
        "  steps, timed in turns.",
        "- A row that is run again renews its line.",
        "",
        "| row | config | document | asked | runs | measured |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows.values():
        runs = newest(lines, row, form_of(row))
        said, _ = outcome(row, lines, rows)
        count = f"{len(runs)} of {len(row.seeds)}" + f", n = {runs[0]['n']}" * (not row.steps) if runs else "none"
        for form in sorted({line["form"] for line in lines if line["row"] == row.name} - {form_of(row)}):
            seeds = len(newest(lines, row, form))
            found = "; ".join(outcome(row, lines, rows, form)[0])
            kind = "" if is_full(form) else "a short form, "
            said.append(f"{kind}{form}, {seeds} run{'s' * (seeds > 1)}: {found}")
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
