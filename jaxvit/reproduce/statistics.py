"""How a row's runs compare with what is asked for it, and with the row that it is paired with."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxvit.reproduce.rows import Pair, Row
from jaxvit.trained.intervals import student, wilson


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
