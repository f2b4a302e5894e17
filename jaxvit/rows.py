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


@dataclass(frozen=True)
class Pair:
    """Another row to compare with, seed by seed.

    Attributes:
      row: its name.
      ratio: its training time must be at least so many times this row's; 0 = not asked.
      document: the ratio that the document has; 0 = none.
      above: this row's accuracy must be above it.
    """

    row: str
    ratio: float = 0.0
    document: float = 0.0
    above: bool = False


@dataclass(frozen=True)
class Row:
    """One row; see the head of results/rows.toml for its attributes."""

    name: str
    config: str
    weights: str
    document: Mapping[str, float]
    target: Mapping[str, float]
    tolerance: float
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
      target, passed: what was asked, and whether it is there, the row's tolerance allowed for.
    """

    measure: str
    value: float
    low: float
    high: float
    target: float
    passed: bool

    @property
    def missing(self) -> float:
        """By how much the target is missed; 0 or less = it is not."""
        return self.target - self.value


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
    known = {f.name for f in dataclasses.fields(Row)}
    needed = known - {"pair", "steps", "params", "note"}
    listed = found.get("row", [])
    if not isinstance(listed, list):
        raise UsageError(f"{file}: each row begins with [[row]]")
    for given in listed:
        name = given.get("name", "?")
        wrong = sorted(set(given) - known) + sorted(needed - set(given))
        if wrong:
            raise UsageError(f"{file}: row '{name}': '{wrong[0]}' is {'not known' if wrong[0] in given else 'missing'}")
        if name in rows:
            raise UsageError(f"{file}: row '{name}' is there twice")
        try:
            pair = Pair(**given["pair"]) if "pair" in given else None
            given = given | {"seeds": tuple(given["seeds"]), "quirks": tuple(given["quirks"]), "pair": pair}
            rows[name] = Row(**given)
        except TypeError as error:
            raise UsageError(f"{file}: row '{name}': {error}") from None
        if not (rows[name].params if rows[name].steps else rows[name].target):
            raise UsageError(f"{file}: row '{name}' has no {'params' if rows[name].steps else 'target'}")
    for row in rows.values():
        if row.pair and row.pair.row not in rows:
            raise UsageError(f"{file}: row '{row.name}': there is no row '{row.pair.row}' to compare with")
    return rows


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
        low, high = student(values) if len(values) > 1 else wilson(values[0], int(runs[0]["n"]))
        mean = statistics.fmean(values)
        passed = mean >= target - row.tolerance - 1e-9
        verdicts.append(Verdict(measure, mean, max(low, 0.0), min(high, 1.0), target, passed))
    return verdicts


@dataclass(frozen=True)
class Difference:
    """A row against the one that it is paired with.

    Attributes:
      seeds: how many both have.
      mean, low, high: difference of accuracies, this minus that, and its 95 % interval; None for one seed alone.
      ratio: that row's training seconds through this row's.
      counted: that row's multiply-adds through this row's.
      asked: the least ratio; 0 = none.
      above: whether the accuracy is to be above that row's.
    """

    seeds: int
    mean: float
    low: float | None
    high: float | None
    ratio: float
    counted: float
    asked: float = 0.0
    above: bool = False

    @property
    def passed(self) -> bool:
        return self.ratio >= self.asked and (self.mean > 0 or not self.above)

    @property
    def equal(self) -> bool | None:
        """Whether the whole interval lies within a point of 0; None where there is no interval."""
        return None if self.low is None else self.low >= -0.01 and self.high <= 0.01


def compare(row: Row, mine: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> Difference | None:
    """The comparison over the seeds that both have, on the same hardware; None where there is none."""
    others = {(run["seed"], run["hardware"]): run for run in theirs}
    pairs = [(run, others[key]) for run in mine if (key := (run["seed"], run["hardware"])) in others]
    if not pairs:
        return None
    differences = [float(a["top1"]) - float(b["top1"]) for a, b in pairs]
    low, high = student(differences) if len(differences) > 1 else (None, None)
    ratios = [float(b["train_seconds"]) / float(a["train_seconds"]) for a, b in pairs]
    counted = float(pairs[0][1]["multiply_adds"]) / float(pairs[0][0]["multiply_adds"])
    found = len(pairs), statistics.fmean(differences), low, high, statistics.median(ratios), counted
    return Difference(*found, *((row.pair.ratio, row.pair.above) if row.pair else ()))
