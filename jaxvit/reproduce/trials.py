"""Trials: short runs on validation images that choose the recipe of a row, before any test image is seen."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from jaxvit.reproduce.rows import TableRow
from jaxvit.reproduce.table import form_of, newest


def trial_sentence(row: TableRow, runs: Sequence[Mapping[str, str]]) -> str:
    """'validation top1 72.10% (seeds 10, 11: 71.90%, 72.30%; n = 5000)' of the runs of a trial."""
    shares = [float(run["top1"]) for run in runs]
    seeds = ", ".join(run["seed"] for run in runs)
    each = ", ".join(f"{share:.2%}" for share in shares)
    plural = "s" * (len(runs) > 1)
    missing = f", {len(row.seeds) - len(runs)} to run" * (len(runs) < len(row.seeds))
    return f"validation top1 {statistics.fmean(shares):.2%} (seed{plural} {seeds}: {each}; n = {runs[0]['n']}{missing})"


def trials_section(rows: Mapping[str, TableRow], lines: Sequence[dict[str, str]]) -> list[str]:
    """Lines of Markdown: a table for each row whose recipe was chosen by trials; [] without trials.

    A trial changes its config by its overrides. The difference is taken over the seeds that a trial has in common with
    the first trial of the table.
    """
    trials: dict[str, list[TableRow]] = {}
    for row in rows.values():
        if row.trial_of:
            trials.setdefault(row.trial_of, []).append(row)
    if not trials:
        return []
    text = [
        "",
        "## Trials",
        "",
        "Recipes are compared by short runs on validation images, with seeds that no row reports.",
    ]
    text += ["Test images are not read. The difference is to the first line, over common seeds."]
    for of, group in trials.items():
        common = ", ".join(f"`{override}`" for override in group[0].overrides)
        text += ["", f"### For `{of}`: {group[0].epochs} epochs" + f", with {common}" * bool(common), ""]
        text += ["| trial | changes to the config | validation top1 of each seed | mean | difference | train s |"]
        text += ["|---|---|---|---|---|---|"]
        base = {run["seed"]: float(run["top1"]) for run in newest(lines, group[0], form_of(group[0]))}
        for row in group:
            changes = [override for override in row.overrides if override not in group[0].overrides]
            text.append(_line(row, changes, newest(lines, row, form_of(row)), base))
    return text


def _line(row: TableRow, changes: Sequence[str], runs: Sequence[Mapping[str, str]], base: Mapping[str, float]) -> str:
    """A line of the table."""
    shares = {run["seed"]: float(run["top1"]) for run in runs}
    common = [100 * (share - base[seed]) for seed, share in shares.items() if seed in base]
    cells = [
        f"`{row.name}`",
        ", ".join(f"`{change}`" for change in changes) or "none",
        ", ".join(f"{share:.2%}" for share in shares.values()) or "not run",
        f"{statistics.fmean(shares.values()):.2%}" if shares else "",
        f"{statistics.fmean(common):+.2f}" if common else "",
        f"{statistics.median(float(run['train_seconds']) for run in runs):.0f}" if runs else "",
    ]
    return f"| {' | '.join(cells)} |"
