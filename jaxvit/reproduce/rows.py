"""The rows of results/rows.toml: what the documents report, and our targets."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxvit.errors import UsageError, nearest
from jaxvit.files import packaged

JUDGED = ("top1", "top5")  # measures that can have a target; higher is better


@dataclass(frozen=True)
class Pair:
    """A paired row, compared seed by seed.

    Attributes:
      row: name of the paired row.
      ratio: minimum of (its training time / this row's training time); 0 = no target.
      document: the ratio that the document reports; 0 = none.
      above: require this row's accuracy to be above the paired row's: the whole interval of the difference above 0.
      equal: require the whole interval of the difference of accuracies within this distance of 0; 0 = no target.
      fewer: (minimum, maximum) of the share of multiply-adds that this row saves; () = no target.
    """

    row: str
    ratio: float = 0.0
    document: float = 0.0
    above: bool = False
    equal: float = 0.0
    fewer: tuple[float, ...] = ()

    @property
    def asked(self) -> bool:
        """True if the pair has a target; otherwise the comparison is only reported."""
        return bool(self.ratio or self.above or self.equal or self.fewer)


@dataclass(frozen=True)
class TableRow:
    """A row of the table of results; the head of results/rows.toml explains the attributes."""

    name: str
    config: str
    weights: str
    document: Mapping[str, float]
    target: Mapping[str, float]
    tolerance: Mapping[str, float]
    n: int
    epochs: int
    minutes: float
    seeds: tuple[int, ...]
    quirks: tuple[str, ...]
    pair: Pair | None = None
    document_row: str = ""
    steps: int = 0
    params: int = 0
    note: str = ""
    trial_of: str = ""
    overrides: tuple[str, ...] = ()


def rows_file(results: Path) -> Path:
    """The rows.toml of a folder of results: its own if it has one, else the one that comes with jaxvit."""
    own = results / "rows.toml"
    return own if os.path.exists(own) else packaged("results") / "rows.toml"


def read_rows(file: Path) -> dict[str, TableRow]:
    """Reads the rows, by name.

    Raises:
      UsageError: the file does not exist, or a row is not valid.
    """
    try:
        found = tomllib.loads(file.read_text())
    except FileNotFoundError:
        raise UsageError(f"{file}: there is no such file; put a copy of it back") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UsageError(f"{file}: cannot be read: {error}") from None
    rows: dict[str, TableRow] = {}
    listed = found.get("row", [])
    if not isinstance(listed, list):
        raise UsageError(f"{file}: each row begins with [[row]]")
    for given in listed:
        name = given.get("name", "?") if isinstance(given, dict) else "?"
        try:
            row = _row(given)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{file}: row '{name}': {error}") from None
        if name in rows:
            raise UsageError(f"{file}: row '{name}' is listed twice")
        rows[name] = row
    for row in rows.values():
        if row.pair and row.pair.row not in rows:
            raise UsageError(f"{file}: row '{row.name}': there is no row '{row.pair.row}' to compare with")
        for key in ("document_row", "trial_of"):
            if (other := getattr(row, key)) and other not in rows:
                raise UsageError(f"{file}: row '{row.name}': {key}: there is no row '{other}'")
    return rows


_MEASURES = {
    "document": ("top1", "top5", "loss", "precision", "recall", "validation"),
    "target": JUDGED,
    "tolerance": JUDGED,
}


def _row(given: Any) -> TableRow:
    """Parses a row. Raises TypeError or ValueError with a description of the mistake."""
    if not isinstance(given, dict):
        raise TypeError("it is not a table; begin it with [[row]]")
    fields = {field.name: field for field in dataclasses.fields(TableRow)}
    needed = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    wrong = sorted(set(given) - set(fields)) + sorted(needed - set(given))
    if wrong:
        raise ValueError(f"'{wrong[0]}' is {'unknown' if wrong[0] in given else 'missing'}")
    texts = dict.fromkeys(("name", "config", "weights", "note", "document_row", "trial_of"), str)
    for name, kinds in {**texts, "minutes": (int, float), "overrides": list}.items():
        if not isinstance(given.get(name, ""), kinds) and name in given:
            raise TypeError(f"{name} = {given[name]!r} has the wrong type")
    for name in ("n", "epochs", "steps", "params"):
        if type(given.get(name, 0)) is not int or given.get(name, 0) < 0:
            raise TypeError(f"{name} = {given[name]!r} is not a count")
    for name, measures in _MEASURES.items():
        for measure, value in dict(given[name]).items():
            if measure not in measures or type(value) not in (int, float):
                raise ValueError(f"{name}: {measure} = {value!r}; it takes numbers for {', '.join(measures)}")
    if "/" in given["config"]:
        raise ValueError(f"config = '{given['config']}': must be the name of a file in --configs")
    if given["weights"] not in ("best", "latest"):
        raise ValueError(f"weights = '{given['weights']}': must be 'best' or 'latest'")
    if not given["seeds"] or not all(type(seed) is int and seed >= 0 for seed in given["seeds"]):
        raise ValueError(f"seeds = {given['seeds']!r}: must be a list of numbers, 0 or more")
    pair = None
    if "pair" in given:
        pair = Pair(**{**given["pair"], "fewer": tuple(given["pair"].get("fewer", ()))})
    lists = {name: tuple(given.get(name, ())) for name in ("seeds", "quirks", "overrides")}
    if not all(isinstance(one, str) for one in lists["overrides"]):
        raise TypeError("overrides: must be a list of texts such as 'optim.name=muon'")
    row = TableRow(**{**given, **lists, "pair": pair})
    if row.trial_of:
        if row.target or row.steps or row.weights != "best":
            raise ValueError("a trial has no target and no steps, and weights = 'best'")
    elif not (row.params if row.steps else row.target):
        raise ValueError(f"has no {'params' if row.steps else 'target'}")
    if not set(row.tolerance) <= set(row.target):
        raise ValueError("tolerance has a measure without a target")
    return row


def choose(
    every: Mapping[str, TableRow], names: Sequence[str], *, seeds: int = 0, epochs: int = 0, trials: bool = False
) -> list[TableRow]:
    """Selects the rows that a command names.

    Args:
      every: all rows, by name.
      names: names of rows; () = all, without trials unless `trials` is set.
      seeds: number of seeds to run; 0 = all.
      epochs: epochs of a short form; 0 = each row's own.

    Raises:
      UsageError: unknown row, or a named row does not support these seeds or epochs.
    """
    for name in names:
        if name not in every:
            raise UsageError(f"there is no row '{name}'{nearest(name, every)}; see jaxvit reproduce --list")
    rows = [every[name] for name in dict.fromkeys(names)] or [
        row for row in every.values() if trials or not row.trial_of
    ]
    most = max(rows, key=lambda row: len(row.seeds))
    if seeds > len(most.seeds):
        raise UsageError(f"--seeds={seeds}: {most.name} has {len(most.seeds)}; see jaxvit reproduce --list")
    for row in rows if names else ():
        if epochs and row.steps:
            raise UsageError(f"--epochs={epochs}: {row.name} runs single steps; leave --epochs out")
        if epochs > row.epochs:
            raise UsageError(f"--epochs={epochs}: {row.name} has only {row.epochs}")
    return rows


def with_partner(row: TableRow, every: Mapping[str, TableRow]) -> list[TableRow]:
    """A row, preceded by its paired row if the pair has a target.

    Finished runs are not repeated: for a ratio of times, run both on the same quiet machine.
    """
    return [every[row.pair.row], row] if row.pair and row.pair.asked else [row]
