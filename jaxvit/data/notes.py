"""Lines on stderr that are printed once in a process, because a start opens a data set several times."""

from __future__ import annotations

import sys

from jaxvit.shown import terminal

_said: set[str] = set()


def warn_once(said: str, *, known: bool = False) -> None:
    """Prints a line on stderr once per process; never if it is `known` to the user already."""
    if said not in _said:
        _said.add(said)
        if not known:
            print(terminal(said), file=sys.stderr, flush=True)
