"""Sentences on what a row's runs say, and results/README.md, which is made of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from jaxvit.reproduce.effort import Effort, told_effort
from jaxvit.reproduce.rows import JUDGED, Row
from jaxvit.reproduce.statistics import Difference, Verdict, compare, judge
from jaxvit.reproduce.table import form_of, is_full, newest


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
    rows: Mapping[str, Row],
    lines: Sequence[dict[str, str]],
    curves: Sequence[str] = (),
    outdated: Sequence[dict[str, str]] = (),
    efforts: Mapping[str, Effort] | None = None,
) -> str:
    """results/README.md.

    Args:
      rows: all rows, by name.
      lines: of today's recipes.
      curves: pictures beside the page.
      outdated: lines of `runs.sort_out` that are only named.
      efforts: what runs took, of `effort.efforts_of`.
    """
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
        "- Where a better recipe takes more multiply-adds, images or updates than the document's, the ratios stand",
        "  beside its accuracy.",
        "- A run that is repeated with the same config on the same hardware renews its line. Of several sets of runs",
        "  the one with the most seeds is shown, of equals the last.",
        "",
        "| row | config | document | asked | runs | measured |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows.values():
        runs = newest(lines, row, form_of(row))
        said = _measured(row, runs, lines, form_of(row), rows, efforts or {})
        count = f"{len(runs)} of {len(row.seeds)}" + f", n = {runs[0]['n']}" * (not row.steps) if runs else "none"
        for form in sorted({line["form"] for line in lines if line["row"] == row.name} - {form_of(row)}):
            others = newest(lines, row, form)
            seeds, found = len(others), "; ".join(_measured(row, others, lines, form, rows, efforts or {}))
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


def _measured(
    row: Row,
    runs: Sequence[dict[str, str]],
    lines: Sequence[dict[str, str]],
    form: str,
    rows: Mapping[str, Row],
    efforts: Mapping[str, Effort],
) -> list[str]:
    """The sentences of `outcome`, and after those on the accuracy what it took."""
    said, _ = outcome(row, runs, lines, form)
    took = told_effort(row, runs, lines, rows[row.document_row], form, efforts) if runs and row.document_row else ""
    judged = len(row.target)
    return [*said[:judged], *([took] if took else []), *said[judged:]]


def numbers(numbers: Any) -> str:
    shown = [f"{name} {value:.4f}" if name == "loss" else f"{name} {value:.2%}" for name, value in numbers.items()]
    return ", ".join(shown) or "–"
