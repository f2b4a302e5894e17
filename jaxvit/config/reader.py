"""Reading a config's values: which were read, whether they lie in their range, and what a duration means."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from jaxvit.errors import UsageError, nearest

LONGEST = 10**9  # steps; jax counts them by an int32


class ConfigReader:
    """Reads config values and remembers which."""

    def __init__(self, config: ConfigDict):
        self._config = config
        self.read: set[str] = set()

    def __call__(self, path: str) -> Any:
        self.read.add(path)
        value: Any = self._config
        for part in path.split("."):
            value = value[part]
        return value

    def peek(self, path: str) -> Any:
        """A value that is looked at to find out whether this run reads it."""
        unread = path not in self.read
        value = self(path)
        if unread:
            self.read.discard(path)
        return value

    def at_least(self, path: str, low: float) -> Any:
        """A value of `low` or more."""
        value = self(path)
        if not value >= low:
            raise UsageError(f"config.{path}={value}: must be {low} or more")
        return value

    def between(self, path: str, low: float, high: float) -> Any:
        """A value in [low, high)."""
        value = self(path)
        if not low <= value < high:
            raise UsageError(f"config.{path}={value}: must be at least {low} and below {high}")
        return value

    def share(self, path: str) -> float:
        """A value in [0, 1]."""
        value = self(path)
        if not 0 <= value <= 1:
            raise UsageError(f"config.{path}={value}: must be from 0 to 1")
        return value

    def factor(self, path: str) -> float:
        """A value in (0, 1]."""
        value = self(path)
        if not 0.0 < value <= 1.0:
            raise UsageError(f"config.{path}={value}: must be above 0 and at most 1")
        return value

    def one_of(self, path: str, choices: Iterable[str]) -> str:
        """A value that is one of the choices."""
        value = self(path)
        if value not in choices:
            raise UsageError(f"config.{path}='{value}': must be one of {', '.join(choices)}{nearest(value, choices)}")
        return value


def parse_duration(text: str, *, key: str, steps_per_epoch: int, whole: int = 0) -> int:
    """Steps that a duration stands for, rounded down.

    Args:
      text: such as '30 epochs', '0.5 epochs', '2000 steps' or, where `whole` is given, '15%'.
      key: config key, for the error.
      steps_per_epoch: steps of one pass over the training images.
      whole: steps that 100 % means; 0 = a share makes no sense for this key.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(epochs?|steps?|%)\s*", text)
    forms = "'30 epochs', '2000 steps'" + (" or '15%'" if whole else "")
    if not match:
        none = "; '0 steps' is none at all" if text.strip() == "0" else ""
        raise UsageError(f"config.{key}='{text}': not a duration; write it as {forms}{none}")
    number, unit = float(match[1]), match[2]
    if unit == "%":
        if not whole:
            raise UsageError(f"config.{key}='{text}': a share has no meaning here; write it as {forms}")
        steps = number * whole / 100
    else:
        steps = number * steps_per_epoch if unit.startswith("epoch") else number
    if steps > LONGEST:
        raise UsageError(f"config.{key}='{text:.40}': that is more than {LONGEST:,} steps, and so far is not counted")
    return int(steps)
