"""Timing several things turn by turn, so that a machine that slows down slows all of them; medians and quartiles."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# count -> seconds: does something so many times one after the other, waits once, at the end, and says how long it took.
Runner = Callable[[int], float]

GROUPS = 4  # at least so many waits in a round, where things are quick enough
MOST = 1000  # of a thing between two waits
SETTLE = 2  # of a turn, which do not count: what a thing works in may have gone to others meanwhile, memory above all


def stopwatch(run: Callable[[int], Any]) -> Runner:
    """A Runner of what does something so many times and waits for it."""

    def timed(count: int) -> float:
        began = time.perf_counter()
        run(count)
        return time.perf_counter() - began

    return timed


def time_in_turns(things: Mapping[str, Runner], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Times things in rounds; the first one changes from round to round.

    Args:
      things: by name. Each is run two times for warming up, and as often at the start of a turn, which does not count.
      rounds: how often each has its turn.
      seconds: of a turn, which is at least one group.

    Returns:
      For each thing, the seconds of one, as the mean of each group that was waited for.
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
    """Median, first and third quartile, and how many there were.

    Args:
      times: in any unit.
      scale: what they are multiplied by: 1e3 makes milliseconds of seconds. Results are rounded to four decimals.
    """
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else [*times] * 3
    found = {"median": middle, "q1": low, "q3": high}
    return {**{name: round(scale * value, 4) for name, value in found.items()}, "count": len(times)}
