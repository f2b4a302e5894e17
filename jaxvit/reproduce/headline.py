"""The first table of results/README.md: the documents' accuracies, ours, and published ones, at a glance."""

from __future__ import annotations

import statistics
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxvit.errors import UsageError
from jaxvit.files import packaged
from jaxvit.reproduce.rows import TableRow
from jaxvit.reproduce.table import form_of, newest

_PUBLISHED = {"model": str, "top1": float, "parameters": float, "epochs": int, "source": str}


@dataclass(frozen=True)
class Headline:
    """A line of the table; the head of results/headline.toml explains the attributes."""

    task: str
    as_is: str
    ours: str
    published: tuple[Mapping[str, Any], ...]


def read_headlines(folder: Path, rows: Mapping[str, TableRow]) -> list[Headline]:
    """Reads headline.toml of a folder of results, or else the one that comes with jaxvit.

    Lines about rows that are not in `rows` are left out, since a folder may have its own rows.toml.

    Raises:
      UsageError: the file is not valid.
    """
    own = folder / "headline.toml"
    file = own if own.exists() else packaged("results") / "headline.toml"
    try:
        found = [
            Headline(**{**line, "published": tuple(line["published"])})
            for line in tomllib.loads(file.read_text())["line"]
        ]
        for published in (published for line in found for published in line.published):
            if {key: type(value) for key, value in published.items()} != _PUBLISHED:
                raise ValueError(f"published = {published}: needs {', '.join(_PUBLISHED)}")
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file}: cannot be read: {error}") from None
    return [line for line in found if line.as_is in rows and line.ours in rows]


def headline_table(
    headlines: Sequence[Headline], rows: Mapping[str, TableRow], lines: Sequence[dict[str, str]]
) -> list[str]:
    """Lines of Markdown; [] without headlines."""
    if not headlines:
        return []
    text = [
        "| top-1 test accuracy, % | document | its recipe, here | better recipe, here | published, for comparison |"
    ]
    text.append("|---|---|---|---|---|")
    for line in headlines:
        as_is, ours = rows[line.as_is], rows[line.ours]
        document = f"{100 * as_is.document['top1']:.2f}" if "top1" in as_is.document else "–"
        published = "; ".join(
            f"{one['model']} {100 * one['top1']:.2f} ({one['parameters']:g} M, {one['epochs']} epochs; {one['source']})"
            for one in line.published
        )
        text.append(f"| {line.task} | {document} | {_mean(as_is, lines)} | {_mean(ours, lines)} | {published or '–'} |")
    return [*text, ""]


def _mean(row: TableRow, lines: Sequence[dict[str, str]]) -> str:
    """'85.03 (1 seed; 30 epochs)', the mean and standard deviation of the full runs of a row."""
    runs = newest(lines, row, form_of(row))
    if not runs:
        return "not run"
    shares = [100 * float(run["top1"]) for run in runs]
    spread = f" ± {statistics.stdev(shares):.2f}" if len(shares) > 1 else ""
    params = int(runs[0]["params"]) / 1e6
    of = f" of {len(row.seeds)}" * (len(runs) < len(row.seeds))
    seeds = f"{len(runs)}{of} seed{'s' * (len(row.seeds) > 1)}"
    return f"**{statistics.fmean(shares):.2f}**{spread} ({params:.2f} M, {row.epochs} epochs, {seeds})"
