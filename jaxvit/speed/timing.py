"""Times several functions in turns, so that a slow phase of the machine affects all of them; medians and quartiles."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# count -> seconds: calls a function `count` times, blocks once at the end, and returns the duration.
Runner = Callable[[int], float]

GROUPS = 4  # a turn has at least this many groups of calls, if calls are fast enough
MOST = 1000  # calls in a group, at most
SETTLE = 2  # calls at the start of a turn that are not timed: caches and memory were used by others meanwhile


def stopwatch(run: Callable[[int], Any]) -> Runner:
    """Turns a function that makes `count` calls and blocks into a `Runner`."""

    def timed(count: int) -> float:
        began = time.perf_counter()
        run(count)
        return time.perf_counter() - began

    return timed


def time_in_turns(things: Mapping[str, Runner], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Times functions in rounds; each round starts with another one.

    Args:
      things: {name: runner}. Each is called twice to warm up, and twice untimed at the start of every turn.
      rounds: number of turns for each.
      seconds: duration of a turn; a turn has at least one group of calls.

    Returns:
      {name: seconds per call, a mean for each group}.
    """
    sizes: dict[str, int] = {}
    for name, run in things.items():
        run(1)
        sizes[name] = max(1, min(MOST, int(seconds / GROUPS / max(run(1), 1e-9))))
    times: dict[str, list[float]] = {name: [] for name in things}
    order = list(things)
    for _ in range(rounds):
        for name in order:
            things[name](SETTLE)
            end = time.perf_counter() + seconds
            while True:
                times[name].append(things[name](sizes[name]) / sizes[name])
                if time.perf_counter() >= end:
                    break
        order = order[1:] + order[:1]
    return times


def spread(times: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """Median, first and third quartile, and count.

    Args:
      times: durations in any unit.
      scale: factor for the results, such as 1e3 for milliseconds; they are rounded to four decimals.
    """
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else [*times] * 3
    found = {"median": middle, "q1": low, "q3": high}
    return {**{name: round(scale * value, 4) for name, value in found.items()}, "count": len(times)}
