"""Describes the results of a row in sentences, and writes results/README.md."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from jaxvit.reproduce.cost import TrainingCost, cost_sentence
from jaxvit.reproduce.headline import Headline, headline_table
from jaxvit.reproduce.rows import JUDGED, TableRow
from jaxvit.reproduce.statistics import Difference, Verdict, compare, judge
from jaxvit.reproduce.table import form_of, is_full, newest
from jaxvit.reproduce.trials import trial_sentence, trials_section


def outcome(
    row: TableRow, runs: Sequence[dict[str, str]], lines: Sequence[dict[str, str]], form: str = ""
) -> tuple[list[str], bool]:
    """Describes the runs of a row: returns (sentences, True if all targets are met).

    `runs` share one form, by default the row's own. The runs of the paired row are looked up in `lines`.
    """
    form = form or form_of(row)
    if not runs:
        return ["not run"], False
    if row.steps:
        found = int(runs[0]["params"])
        right = f"{found:,} parameters, as expected" if found == row.params else f"{found:,}, not {row.params:,}"
        return [f"{form}, loss {float(runs[0]['loss']):.3f}; {right}"], found == row.params
    if row.trial_of:
        return [trial_sentence(row, runs)], True
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
        said.append(f"measured on {runs[0]['n']} images instead of {row.n}: another test set")
        passed = False
    if row.pair:
        found = compare(row, runs, [line for line in lines if (line["row"], line["form"]) == (row.pair.row, form)])
        if found:
            said.append(_compared(found, form))
        elif is_full(form) and row.pair.asked:
            said.append(f"not compared with {row.pair.row}, which was not run with these seeds on this hardware")
        passed &= not row.pair.asked or (found is not None and found.passed)
    return said, passed and is_full(form)


def conclusion(row: TableRow, made: Sequence[dict[str, str]], form: str) -> tuple[str, bool]:
    """Returns (a line on the runs of a row among `made`, True if it misses a target in a form that is judged)."""
    runs = [line for line in made if line["row"] == row.name]
    said, passed = outcome(row, runs, made, form)
    measured = f", n = {runs[0]['n']}, {len(runs)} of {len(row.seeds)} seeds" if runs and not row.steps else ""
    short = "" if is_full(form) or row.steps else f", {form}"  # the sentence on steps names the form
    return f"{row.name}{short}{measured}: {'; '.join(said)}", not passed and (is_full(form) or row.steps > 0)


def _judged(row: TableRow, verdict: Verdict, form: str, so_far: str) -> str:
    """A sentence on one measure; `so_far` is added while seeds are missing."""
    said = f"{verdict.measure} {verdict.value:.2%} (95 %: {verdict.low:.2%} to {verdict.high:.2%})"
    said += " with the last step's weights" * (row.weights == "latest" and verdict.measure == "top1")
    if not is_full(form):
        return said
    said += f", target {verdict.target:.2%}: "
    if verdict.missing <= 1e-9:
        return f"{said}passes{so_far}"
    below = f"{round(100 * verdict.target, 2) - round(100 * verdict.value, 2):.2f} points"  # as printed
    if not verdict.passed:
        return f"{said}missed by {below}{so_far}"
    said += f"{below} below, within the tolerance of {100 * verdict.tolerance:.2f} for the document's single run"
    if verdict.one_run:
        low, high = verdict.one_run
        said += f" (one more run here: {low:.2%} to {high:.2%} expected)"
    return f"{said}: passes{so_far}"


def _compared(found: Difference, form: str) -> str:
    """A sentence that compares a row with its paired row."""
    pair, judged = found.pair, is_full(form)

    def verdict(asked: Any, met: bool | None, words: str) -> str:
        found = "needs two seeds" if met is None else "passes" if met else "missed"
        return f" ({words}: {found})" if asked and judged else ""

    said = f"{100 * found.mean:+.2f} points compared with {pair.row}"
    if found.low is not None:
        said += f" (95 %: {100 * found.low:+.2f} to {100 * found.high:+.2f}, {found.seeds} seeds)"
    within = pair.equal or 0.01
    if (equal := found.equal(within)) is not None and not pair.above:
        shown = "equal" if equal else "not shown to be equal"
        said += f", {shown} within {100 * within:g} point{'s' * (within != 0.01)}"
    said += verdict(pair.equal, found.equal(within), f"target: equal within {100 * within:g}")
    if pair.above:
        if found.above is not None:
            said += ", above it" if found.above else ", not shown to be above it"
        said += verdict(True, found.above, "target: interval above 0")
    fewer = f"{found.saved:.1%} fewer multiply-adds, a factor of {found.counted:.2f}"
    said += f"; {fewer if found.saved else 'as many multiply-adds'}"
    if pair.fewer:
        said += verdict(True, found.saves_as_asked, f"target {pair.fewer[0]:.1%} to {pair.fewer[1]:.1%}")
    said += f"; trained {found.ratio:.2f} times as fast"
    if len(found.ratios) > 1:
        said += f" (median; {min(found.ratios):.2f} to {max(found.ratios):.2f})"
    return said + verdict(pair.ratio, found.ratio >= pair.ratio, f"target {pair.ratio:g}")


def page(
    rows: Mapping[str, TableRow],
    lines: Sequence[dict[str, str]],
    curves: Sequence[str] = (),
    outdated: Sequence[dict[str, str]] = (),
    costs: Mapping[str, TrainingCost] | None = None,
    headlines: Sequence[Headline] = (),
) -> str:
    """The text of results/README.md.

    Args:
      rows: all rows, by name.
      lines: lines of results.csv with current recipes.
      curves: image files to show, relative to the page.
      outdated: outdated lines, of which only the row names are listed.
      costs: training costs, from `cost.costs_of`.
      headlines: lines of the first table.
    """
    text = [
        "# Results",
        "",
        *headline_table(headlines, rows, lines),
        "Accuracies that the five documents report, our target for each, and what we measured. `jaxvit reproduce`",
        "writes this page from `rows.toml` and `results.csv`. Every number in the last two columns comes from",
        "`results.csv`; a row without a run says so. The notes also mention trials whose runs were not kept.",
        "",
        "- Intervals are 95 % confidence intervals, cut to 0 to 100 %: Wilson's over the test images for one run,",
        "  Student's over the mean of several seeds. A row passes if its accuracy reaches the target; the interval may",
        "  extend below.",
        "- If the document reports a single run, a row also passes if it is below the target by at most half of that",
        "  number's own interval, and says so. We set this rule after the first five Fashion-MNIST runs, for all rows.",
        "- The weights are those that the document tested: the last step if the row says so, else the best on",
        "  validation, or the last without validation.",
        "- Speed ratios compare the training time of the same seed, without validation. `benchmarks/RESULTS.md` has",
        "  single steps, timed in turns.",
        "- If a better recipe costs more multiply-adds, images or updates than the document's, the ratios are given",
        "  after its accuracy.",
        "- A repeated run with the same config on the same hardware replaces its line. If there are several sets of",
        "  runs, the table shows the one with the most seeds, or the last of these.",
        "",
        "| row | config | document | target | runs | measured |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows.values():
        if row.trial_of:
            continue
        runs = newest(lines, row, form_of(row))
        said = _measured(row, runs, lines, form_of(row), rows, costs or {})
        count = f"{len(runs)} of {len(row.seeds)}" + f", n = {runs[0]['n']}" * (not row.steps) if runs else "none"
        for form in sorted({line["form"] for line in lines if line["row"] == row.name} - {form_of(row)}):
            others = newest(lines, row, form)
            seeds, found = len(others), "; ".join(_measured(row, others, lines, form, rows, costs or {}))
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
    text += trials_section(rows, lines)
    if curves:
        about = "Full runs with validation. The numbers are in `metrics/`."
        text += ["", "## Learning curves", "", about, ""]
        text += [f"![Validation accuracy over epochs: {curve}]({curve})" for curve in curves]
    text += ["", "## Departures from papers and good practice, by row", ""]
    text += [f"- `{row.name}`: {', '.join(row.quirks)}" for row in rows.values() if row.quirks and not row.trial_of]
    notes = [f"- `{row.name}`: {row.note}" for row in rows.values() if row.note]
    if notes:
        text += ["", "## Notes", "", *notes]
    if outdated:
        names = ", ".join(f"`{name}`" for name in dict.fromkeys(line["row"] for line in outdated))
        text += ["", f"Not shown: runs whose row or config has changed since: {names}."]
    if lines:
        text += ["", "## Hardware and versions", ""]
        text += [f"- {where}" for where in sorted({f"{line['hardware']}; {line['versions']}" for line in lines})]
    return "\n".join(text) + "\n"


def _measured(
    row: TableRow,
    runs: Sequence[dict[str, str]],
    lines: Sequence[dict[str, str]],
    form: str,
    rows: Mapping[str, TableRow],
    costs: Mapping[str, TrainingCost],
) -> list[str]:
    """The sentences of `outcome`, with the training cost after those on accuracy."""
    said, _ = outcome(row, runs, lines, form)
    took = cost_sentence(row, runs, lines, rows[row.document_row], form, costs) if runs and row.document_row else ""
    judged = len(row.target)
    return [*said[:judged], *([took] if took else []), *said[judged:]]


def numbers(numbers: Any) -> str:
    shown = [f"{name} {value:.4f}" if name == "loss" else f"{name} {value:.2%}" for name, value in numbers.items()]
    return ", ".join(shown) or "–"
