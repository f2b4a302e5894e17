"""results/results.csv, one line for each run of a row, and what these say: results/README.md."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import io
import math
import os
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxvit.errors import UsageError
from jaxvit.rows import JUDGED, Difference, Row, Verdict, compare, judge
from jaxvit.run_directory import write_text

COLUMNS = (
    *("row", "form", "recipe", "config_hash", "seed", "n", "top1", "top5", "loss", "precision", "recall"),
    *("validation", "epochs", "weights"),
    *("params", "multiply_adds", "compile_seconds", "train_seconds", "eval_seconds", "save_seconds"),
    *("hardware", "versions", "data", "commit", "date", "metrics"),
)
FULL = "full"
_ON_RANDOM = " on random images"


def form_of(row: Row, epochs: int = 0, dtype: str = "") -> str:
    """How a row is run: in full, or in so many epochs (0 = its own); in a dtype ('' = its config's)."""
    length = f"{epochs} of {row.epochs} epochs" if 0 < epochs < row.epochs else FULL
    if row.steps:
        length = f"{row.steps} step{'s' * (row.steps > 1)}{_ON_RANDOM}"
    return f"{length}, {dtype}" if dtype else length


def how(form: str) -> tuple[int, str]:
    """The epochs (0 = the row's own) and the dtype ('' = its config's) that `form_of` made a form of."""
    length, _, dtype = form.partition(", ")
    short = re.fullmatch(r"(\d+) of \d+ epochs", length)
    return int(short[1]) if short else 0, dtype


def metrics_name(line: Mapping[str, Any]) -> str:
    """The file in results/metrics of a run: each run that has a line of its own has one of its own."""
    form = "" if line["form"] == FULL else f"_{line['form'].replace(' ', '_').replace(',', '')}"
    key = hashlib.sha256(f"{line['config_hash']} {line['hardware']}".encode()).hexdigest()[:6]
    return f"{line['row']}{form}_seed_{line['seed']}_{key}.jsonl"


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
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise UsageError(f"{file}: its columns are not those of this version; move it away")
            lines = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{file}: cannot be read ({error}); put a copy of it back, or move it away") from None
    if any(None in line or None in line.values() or not _whole(line) for line in lines):
        raise UsageError(f"{file}: a line is damaged; put a copy of it back, or move it away")
    return lines


def _whole(line: dict[str, str]) -> bool:
    """Whether its numbers can be those of a run, and its metrics a file beside it; steps have no accuracy."""
    of_steps = line["form"].partition(",")[0].endswith(_ON_RANDOM)
    try:
        counts = [int(line[name]) for name in ("seed", "n", "params", "multiply_adds")]
        amounts = [float(line[name]) for name in ("loss", "train_seconds")]
        shares = [float(line[name]) for name in ("top1", "top5", "precision", "recall") if not of_steps]
        shares.append(float(line["validation"] or 0))
    except ValueError:
        return False
    return (
        min(counts) >= 0
        and (counts[1] == 0) == of_steps
        and all(0 <= amount < math.inf for amount in amounts)
        and all(0 <= share <= 1 for share in shares)
        and line["metrics"] == ("" if of_steps else metrics_name(line))
        and "/" not in line["metrics"]
    )


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
    """A row's lines of one form, recipe, data and hardware: one for each of its seeds, in their order.

    These are the ones with the most seeds, of several the last.
    """
    alike: dict[tuple[str, ...], dict[int, dict[str, str]]] = {}
    for line in lines:
        if (line["row"], line["form"]) == (row.name, form) and int(line["seed"]) in row.seeds:
            key = line["recipe"], line["data"], line["hardware"]
            alike[key] = {**alike.pop(key, {}), int(line["seed"]): line}
    if not alike:
        return []
    by_seed = max(reversed(alike.values()), key=len)
    return [by_seed[seed] for seed in sorted(by_seed)]


def outcome(
    row: Row, runs: Sequence[dict[str, str]], lines: Sequence[dict[str, str]], form: str = ""
) -> tuple[list[str], bool]:
    """Sentences on what a row's `runs` of one form, by default the one asked for, say to its targets; are all met?

    The row that it is paired with is looked for in `lines`.
    """
    form = form or form_of(row)
    if not runs:
        return ["not run"], False
    if row.steps:
        found = int(runs[0]["params"])
        right = f"{found:,} parameters, as expected" if found == row.params else f"{found:,}, not {row.params:,}"
        return [f"{form}, loss {float(runs[0]['loss']):.3f}; {right}"], found == row.params
    verdicts = judge(row, runs)
    so_far = " so far" * (len(runs) < len(row.seeds))
    said = [_judged(row, verdict, form, so_far) for verdict in verdicts]
    passed = all(verdict.passed for verdict in verdicts)
    if len(runs) > 1:
        said.append("top1 of each seed: " + ", ".join(f"{100 * float(run['top1']):.2f}" for run in runs))
    told = [name for name in row.document if name not in JUDGED and all(run[name] for run in runs)]
    others = {name: statistics.fmean(float(run[name]) for run in runs) for name in told}
    if others:
        said.append(numbers(others))
    if any(int(run["n"]) != row.n for run in runs):
        said.append(f"measured on {runs[0]['n']} images in place of {row.n}: another test set")
        passed = False
    if row.pair:
        found = compare(row, runs, [line for line in lines if (line["row"], line["form"]) == (row.pair.row, form)])
        if found:
            said.append(_compared(found, form))
        elif is_full(form) and row.pair.asked:
            said.append(f"not compared with {row.pair.row}, which was not run with these seeds on this hardware")
        passed &= not row.pair.asked or (found is not None and found.passed)
    return said, passed and is_full(form)


def _judged(row: Row, verdict: Verdict, form: str, so_far: str) -> str:
    """A sentence on one measure; `so_far` where seeds are to come."""
    said = f"{verdict.measure} {verdict.value:.2%} (95 %: {verdict.low:.2%} to {verdict.high:.2%})"
    said += " with the last step's weights" * (row.weights == "latest" and verdict.measure == "top1")
    if not is_full(form):
        return said
    said += f" against {verdict.target:.2%}: "
    if verdict.missing <= 1e-9:
        return f"{said}passes{so_far}"
    below = f"{round(100 * verdict.target, 2) - round(100 * verdict.value, 2):.2f} points"  # of what is printed
    if not verdict.passed:
        return f"{said}misses it by {below}{so_far}"
    said += f"{below} below it, within the {100 * verdict.tolerance:.2f} that the one run of the document leaves open"
    if verdict.one_run:
        low, high = verdict.one_run
        said += f" (one more run here would have {low:.2%} to {high:.2%})"
    return f"{said}: passes{so_far}"


def _compared(found: Difference, form: str) -> str:
    """A sentence on a row and the one that it is paired with."""
    pair, judged = found.pair, is_full(form)

    def verdict(asked: Any, met: bool | None, words: str) -> str:
        found = "not tested, which takes two seeds or more" if met is None else "passes" if met else "misses it"
        return f", {words}: {found}" if asked and judged else ""

    said = f"{100 * found.mean:+.2f} points to {pair.row}"
    if found.low is not None:
        said += f" (95 %: {100 * found.low:+.2f} to {100 * found.high:+.2f}, {found.seeds} seeds)"
    within = pair.equal or 0.01
    if (equal := found.equal(within)) is not None and not pair.above:
        shown = "equal" if equal else "not shown to be equal"
        said += f", {shown} within {100 * within:g} point{'s' * (within != 0.01)}"
    said += verdict(pair.equal, found.equal(within), f"equality within {100 * within:g} asked")
    if pair.above:
        if found.above is not None:
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


def page(
    rows: dict[str, Row],
    lines: Sequence[dict[str, str]],
    curves: Sequence[str] = (),
    outdated: Sequence[dict[str, str]] = (),
) -> str:
    """results/README.md; `curves` are pictures beside it, `outdated` lines, of `row_runs.sort_out`, are only named."""
    text = [
        "# Results",
        "",
        "What the five documents report of accuracy, what is asked of this project for it, and what was measured.",
        "Written by `jaxvit reproduce` from `rows.toml` and `results.csv`, where every number of the table has its",
        "line; a row without a line says so. The notes tell also of trials whose runs are not kept.",
        "",
        "- Intervals are of 95 %, cut to 0 to 100 %: of one run Wilson's for its test images, of several seeds",
        "  Student's for their mean. A row passes whose accuracy reaches what is asked; its interval may reach below.",
        "- Where the document's number is of one run, a row also passes that is below it by no more than half of that",
        "  number's own interval, and says so. This was settled after the first five Fashion-MNIST runs, for all rows.",
        "- Weights are those that the document measured: of the last step where a row says so, else the best on",
        "  validation, or the last where there is none.",
        "- Ratios of times are of the training of the same seed, validation left out; `benchmarks/RESULTS.md` has",
        "  steps, timed in turns.",
        "- A run that is repeated with the same config on the same hardware renews its line. Of several sets of runs",
        "  the one with the most seeds is shown, of equals the last.",
        "",
        "| row | config | document | asked | runs | measured |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows.values():
        runs = newest(lines, row, form_of(row))
        said, _ = outcome(row, runs, lines)
        count = f"{len(runs)} of {len(row.seeds)}" + f", n = {runs[0]['n']}" * (not row.steps) if runs else "none"
        for form in sorted({line["form"] for line in lines if line["row"] == row.name} - {form_of(row)}):
            others = newest(lines, row, form)
            seeds, found = len(others), "; ".join(outcome(row, others, lines, form)[0])
            kind = "" if is_full(form) or row.steps else "a short form, "
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
        about = "Of the runs in full that have validation; `metrics/` has their numbers."
        text += ["", "## Learning curves", "", about, ""]
        text += [f"![Validation accuracy over epochs: {curve}]({curve})" for curve in curves]
    text += ["", "## Departures that a row has switched on", ""]
    text += [f"- `{row.name}`: {', '.join(row.quirks)}" for row in rows.values() if row.quirks]
    notes = [f"- `{row.name}`: {row.note}" for row in rows.values() if row.note]
    if notes:
        text += ["", "## Notes", "", *notes]
    if outdated:
        names = ", ".join(f"`{name}`" for name in dict.fromkeys(line["row"] for line in outdated))
        text += ["", f"Not shown are lines whose row or config was changed after the run: {names}."]
    if lines:
        text += ["", "## Where", ""]
        text += [f"- {where}" for where in sorted({f"{line['hardware']}; {line['versions']}" for line in lines})]
    return "\n".join(text) + "\n"


def numbers(numbers: Any) -> str:
    shown = [f"{name} {value:.4f}" if name == "loss" else f"{name} {value:.2%}" for name, value in numbers.items()]
    return ", ".join(shown) or "–"
