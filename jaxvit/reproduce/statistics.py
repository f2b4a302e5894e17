"""Compares the runs of a row with its targets, and with its paired row."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxvit.reproduce.rows import Pair, TableRow
from jaxvit.trained.intervals import student, wilson


@dataclass(frozen=True)
class Verdict:
    """One measure of a row against its target.

    Attributes:
      measure: 'top1' or 'top5'.
      value: mean over the runs.
      low, high: 95 % interval, cut to [0, 1]: Wilson's over n images for one run, Student's for the mean of several.
      one_run: 95 % prediction interval for one further run; () if there is only one run.
      target: the target.
      tolerance: how far below the target a row still passes.
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
        """Target minus value; 0 or less = the target is reached."""
        return self.target - self.value

    @property
    def passed(self) -> bool:
        return self.missing <= self.tolerance + 1e-9


def judge(row: TableRow, runs: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """Compares `runs` (one per seed, of one form, with 'top1', 'top5' and 'n') with each target of the row."""
    verdicts = []
    for measure, target in row.target.items():
        values = [float(run[measure]) for run in runs]
        mean, one_run = statistics.fmean(values), ()
        if len(values) > 1:
            low, high = student(values)
            half = (high - mean) * math.sqrt(len(values) + 1)  # for one more run instead of the mean
            one_run = max(mean - half, 0.0), min(mean + half, 1.0)
        else:
            low, high = wilson(values[0], int(runs[0]["n"]))
        tolerance = row.tolerance.get(measure, 0.0)
        verdicts.append(Verdict(measure, mean, max(low, 0.0), min(high, 1.0), one_run, target, tolerance))
    return verdicts


@dataclass(frozen=True)
class Difference:
    """A row compared with its paired row.

    Attributes:
      pair: the paired row and its targets.
      seeds: number of common seeds.
      mean: mean difference of accuracies, this row minus the paired row.
      low, high: its 95 % interval; None with one seed.
      ratios: paired row's training seconds divided by this row's, for each seed.
      counted: paired row's multiply-adds divided by this row's.
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
        """Share of the paired row's multiply-adds that this row saves."""
        return 1 - 1 / self.counted

    def equal(self, within: float) -> bool | None:
        """True if the whole interval lies in [-within, within]; None without an interval."""
        return None if self.low is None else self.low >= -within and self.high <= within

    @property
    def above(self) -> bool | None:
        """True if the whole interval lies above 0; None without an interval."""
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


def compare(row: TableRow, mine: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> Difference | None:
    """Compares common seeds on the same hardware; None if there are none."""
    others = {(run["seed"], run["hardware"]): run for run in theirs}
    pairs = [(run, others[key]) for run in mine if (key := (run["seed"], run["hardware"])) in others]
    if not pairs or row.pair is None:
        return None
    differences = [float(a["top1"]) - float(b["top1"]) for a, b in pairs]
    low, high = student(differences) if len(differences) > 1 else (None, None)
    ratios = tuple(float(b["train_seconds"]) / float(a["train_seconds"]) for a, b in pairs)
    counted = float(pairs[0][1]["multiply_adds"]) / float(pairs[0][0]["multiply_adds"])
    return Difference(row.pair, len(pairs), statistics.fmean(differences), low, high, ratios, counted)
