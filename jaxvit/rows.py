"""The rows of results/rows.toml: what the documents report, what is asked for it, and whether a run has it."""

from __future__ import annotations

import dataclasses
import math
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats

from jaxvit.errors import UsageError

JUDGED = ("top1", "top5")  # measures that a target can be set for: more is better


@dataclass(frozen=True)
class Pair:
    """Another row to compare with, seed by seed.

    Attributes:
      row: its name.
      ratio: its training time must be at least so many times this row's; 0 = not asked.
      document: the ratio that the document has; 0 = none.
      above: this row's accuracy must be shown to be above that row's: the interval of the difference must be.
      equal: the whole interval of the difference of accuracies must lie within this of 0; 0 = not asked.
      fewer: least and greatest share of that row's multiply-adds that this row must save; () = not asked.
    """

    row: str
    ratio: float = 0.0
    document: float = 0.0
    above: bool = False
    equal: float = 0.0
    fewer: tuple[float, ...] = ()

    @property
    def asked(self) -> bool:
        """Whether anything is; else the comparison is only told."""
        return bool(self.ratio or self.above or self.equal or self.fewer)


@dataclass(frozen=True)
class Row:
    """One row; see the head of results/rows.toml for its attributes."""

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
    steps: int = 0
    params: int = 0
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """How one measure of a row compares with its target.

    Attributes:
      measure: 'top1' or 'top5'.
      value: mean over the runs.
      low, high: 95 % interval: of one run, Wilson's for n images; of several, Student's for their mean, cut to 0..1.
      one_run: where a further run would be with a probability of 95 %, as several let one say; () of one run.
      target: what was asked.
      tolerance: how far below that still passes.
    """

    measure: str
    value: float
    low: float
    high: float
    one_run: tuple[float, ...]
    target: float
    tolerance: float

    @property
    def missing(self) -> float:
        """By how much the target is missed; 0 or less = it is not."""
        return self.target - self.value

    @property
    def passed(self) -> bool:
        return self.missing <= self.tolerance + 1e-9


def read_rows(file: Path) -> dict[str, Row]:
    """The rows by name.

    Raises:
      UsageError: the file is not there, or a row is not right.
    """
    try:
        found = tomllib.loads(file.read_text())
    except FileNotFoundError:
        raise UsageError(
            f"{file}: there is no such file; run this in the project's folder, or name --results"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UsageError(f"{file}: cannot be read: {error}") from None
    rows: dict[str, Row] = {}
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
            raise UsageError(f"{file}: row '{name}' is there twice")
        rows[name] = row
    for row in rows.values():
        if row.pair and row.pair.row not in rows:
            raise UsageError(f"{file}: row '{row.name}': there is no row '{row.pair.row}' to compare with")
    return rows


_MEASURES = {
    "document": ("top1", "top5", "loss", "precision", "recall", "validation"),
    "target": JUDGED,
    "tolerance": JUDGED,
}


def _row(given: Any) -> Row:
    """Raises TypeError or ValueError, with what is wrong, where it is no row."""
    if not isinstance(given, dict):
        raise TypeError("it is no table; begin it with [[row]]")
    fields = {field.name: field for field in dataclasses.fields(Row)}
    needed = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    wrong = sorted(set(given) - set(fields)) + sorted(needed - set(given))
    if wrong:
        raise ValueError(f"'{wrong[0]}' is {'not known' if wrong[0] in given else 'missing'}")
    for name, kinds in {**dict.fromkeys(("name", "config", "weights", "note"), str), "minutes": (int, float)}.items():
        if not isinstance(given.get(name, ""), kinds) and name in given:
            raise TypeError(f"{name} = {given[name]!r} is of the wrong type")
    for name in ("n", "epochs", "steps", "params"):
        if type(given.get(name, 0)) is not int or given.get(name, 0) < 0:
            raise TypeError(f"{name} = {given[name]!r} is no count")
    for name, measures in _MEASURES.items():
        for measure, value in dict(given[name]).items():
            if measure not in measures or type(value) not in (int, float):
                raise ValueError(f"{name}: {measure} = {value!r}; it holds {', '.join(measures)}, as numbers")
    if given["weights"] not in ("best", "latest"):
        raise ValueError(f"weights = '{given['weights']}': must be 'best' or 'latest'")
    if not given["seeds"] or not all(type(seed) is int and seed >= 0 for seed in given["seeds"]):
        raise ValueError(f"seeds = {given['seeds']!r}: must be a list of numbers, 0 or more")
    pair = None
    if "pair" in given:
        pair = Pair(**{**given["pair"], "fewer": tuple(given["pair"].get("fewer", ()))})
    row = Row(**{**given, "seeds": tuple(given["seeds"]), "quirks": tuple(given["quirks"]), "pair": pair})
    if not (row.params if row.steps else row.target):
        raise ValueError(f"has no {'params' if row.steps else 'target'}")
    if not set(row.tolerance) <= set(row.target):
        raise ValueError("tolerance has more than target")
    return row


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of n images (Wilson 1927)."""
    found = stats.binomtest(round(share * n), n).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def student(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of two values or more."""
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values) - half, statistics.fmean(values) + half


def judge(row: Row, runs: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """What `runs` (of one form, one a seed, with 'top1', 'top5' and 'n') say to the row's targets."""
    verdicts = []
    for measure, target in row.target.items():
        values = [float(run[measure]) for run in runs]
        mean, one_run = statistics.fmean(values), ()
        if len(values) > 1:
            low, high = student(values)
            half = (high - mean) * math.sqrt(len(values) + 1)  # of one more run, not of the mean
            one_run = max(mean - half, 0.0), min(mean + half, 1.0)
        else:
            low, high = wilson(values[0], int(runs[0]["n"]))
        tolerance = row.tolerance.get(measure, 0.0)
        verdicts.append(Verdict(measure, mean, max(low, 0.0), min(high, 1.0), one_run, target, tolerance))
    return verdicts


@dataclass(frozen=True)
class Difference:
    """A row against the one that it is paired with.

    Attributes:
      pair: what is asked.
      seeds: how many both have.
      mean, low, high: difference of accuracies, this minus that, and its 95 % interval; None for one seed alone.
      ratios: that row's training seconds through this row's, of each seed.
      counted: that row's multiply-adds through this row's.
    """

    pair: Pair
    seeds: int
    mean: float
    low: float | None
    high: float | None
    ratios: tuple[float, ...]
    counted: float

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def saved(self) -> float:
        """Share of that row's multiply-adds that this row does without."""
        return 1 - 1 / self.counted

    def equal(self, within: float) -> bool | None:
        """Whether the whole interval lies within so much of 0; None where there is no interval."""
        return None if self.low is None else self.low >= -within and self.high <= within

    @property
    def above(self) -> bool | None:
        """Whether the whole interval lies above 0; None where there is no interval."""
        return None if self.low is None else self.low > 0

    @property
    def saves_as_asked(self) -> bool:
        return not self.pair.fewer or self.pair.fewer[0] <= self.saved <= self.pair.fewer[1]

    @property
    def passed(self) -> bool:
        fast = self.ratio >= self.pair.ratio
        better = bool(self.above) or not self.pair.above
        same = not self.pair.equal or bool(self.equal(self.pair.equal))
        return fast and better and same and self.saves_as_asked


def compare(row: Row, mine: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> Difference | None:
    """The comparison over the seeds that both have, on the same hardware; None where there is none."""
    others = {(run["seed"], run["hardware"]): run for run in theirs}
    pairs = [(run, others[key]) for run in mine if (key := (run["seed"], run["hardware"])) in others]
    if not pairs or row.pair is None:
        return None
    differences = [float(a["top1"]) - float(b["top1"]) for a, b in pairs]
    low, high = student(differences) if len(differences) > 1 else (None, None)
    ratios = tuple(float(b["train_seconds"]) / float(a["train_seconds"]) for a, b in pairs)
    counted = float(pairs[0][1]["multiply_adds"]) / float(pairs[0][0]["multiply_adds"])
    return Difference(row.pair, len(pairs), statistics.fmean(differences), low, high, ratios, counted)
