"""Intervals of 95 %: of a share of images, of a mean over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy import stats


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of n images (Wilson 1927)."""
    found = stats.binomtest(round(share * n), n).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def student(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of two values or more."""
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values) - half, statistics.fmean(values) + half
