"""Reads typed values of a config, checks their ranges, and parses durations."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeVar, cast

from ml_collections import ConfigDict

from jaxvit.errors import UsageError, nearest

LONGEST = 10**9  # steps; JAX counts them in an int32

T = TypeVar("T")
Number = TypeVar("Number", int, float)


class ConfigReader:
    """Reads values of a config and records which keys were read.

    Attributes:
      read: the keys read so far.
    """

    def __init__(self, config: ConfigDict):
        self._config = config
        self.read: set[str] = set()

    def __call__(self, path: str, kind: type[T]) -> T:
        """Reads a value of type `kind`. `check_keys` has checked the types."""
        self.read.add(path)
        value: object = self._config
        for part in path.split("."):
            value = cast(ConfigDict, value)[part]
        return cast(T, value)

    def peek(self, path: str, kind: type[T]) -> T:
        """Reads a value without recording that it was read."""
        unread = path not in self.read
        value = self(path, kind)
        if unread:
            self.read.discard(path)
        return value

    def at_least(self, path: str, low: Number) -> Number:
        """Reads a number of the type of `low`, and checks that it is `low` or more."""
        value = self(path, type(low))
        if not value >= low:
            raise UsageError(f"config.{path}={value}: must be {low} or more")
        return value

    def between(self, path: str, low: float, high: float) -> float:
        """Reads a number, and checks that it is at least `low` and below `high`."""
        value = self(path, float)
        if not low <= value < high:
            raise UsageError(f"config.{path}={value}: must be at least {low} and below {high}")
        return value

    def share(self, path: str) -> float:
        """Reads a number, and checks that it is from 0 to 1."""
        value = self(path, float)
        if not 0 <= value <= 1:
            raise UsageError(f"config.{path}={value}: must be from 0 to 1")
        return value

    def factor(self, path: str) -> float:
        """Reads a number, and checks that it is above 0 and at most 1."""
        value = self(path, float)
        if not 0.0 < value <= 1.0:
            raise UsageError(f"config.{path}={value}: must be above 0 and at most 1")
        return value

    def one_of(self, path: str, choices: Iterable[str]) -> str:
        """Reads a string, and checks that it is one of the choices."""
        value, choices = self(path, str), tuple(choices)
        if value not in choices:
            raise UsageError(f"config.{path}='{value}': must be one of {', '.join(choices)}{nearest(value, choices)}")
        return value


def parse_duration(text: str, *, key: str, steps_per_epoch: int, whole: int = 0) -> int:
    """Converts a duration to steps, rounded down.

    Args:
      text: a duration such as '30 epochs', '0.5 epochs', '2000 steps' or, if `whole` is not 0, '15%'.
      key: config key to name in the error.
      steps_per_epoch: steps of one epoch.
      whole: steps that '100%' stands for; 0 = the key takes no share.

    Raises:
      UsageError: the text is not a duration.

    Example:
      >>> parse_duration("2.5 epochs", key="train.duration", steps_per_epoch=100)
      250
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(epochs?|steps?|%)\s*", text)
    forms = "'30 epochs', '2000 steps'" + (" or '15%'" if whole else "")
    if not match:
        none = "; write '0 steps' for none" if text.strip() == "0" else ""
        raise UsageError(f"config.{key}='{text}': not a duration; write it as {forms}{none}")
    number, unit = float(match[1]), match[2]
    if unit == "%":
        if not whole:
            raise UsageError(f"config.{key}='{text}': this key takes no share; write it as {forms}")
        steps = number * whole / 100
    else:
        steps = number * steps_per_epoch if unit.startswith("epoch") else number
    if steps > LONGEST:
        raise UsageError(f"config.{key}='{text:.40}': more than {LONGEST:,} steps cannot be counted; write fewer")
    return int(steps)
