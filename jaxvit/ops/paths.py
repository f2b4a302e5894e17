"""Patterns of parameters, by paths such as 'encoder/block_0/mlp/dense_0/kernel'."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase


def split_patterns(text: str) -> tuple[str, ...]:
    """The patterns in a config key, which '|' separates.

    Example:
      >>> split_patterns("*/embed*|head/*"), split_patterns("")
      (('*/embed*', 'head/*'), ())
    """
    return tuple(pattern for pattern in text.split("|") if pattern)


def matches(path: str, pattern: str) -> bool:
    """Whether a pattern matches a path, also as if it began with '/'; '!' in front = all paths that it does not match.

    Args:
      path: names joined by '/'.
      pattern: as in `fnmatch`: '*' also stands for '/'.

    Example:
      >>> matches("embed/projection/kernel", "*/embed*"), matches("head/logits/bias", "!head/*")
      (True, False)
    """
    if pattern.startswith("!"):
        return not matches(path, pattern[1:])
    return fnmatchcase(path, pattern) or fnmatchcase(f"/{path}", pattern)


def matches_any(path: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns matches a path."""
    return any(matches(path, pattern) for pattern in patterns)


def without_match(patterns: Iterable[str], paths: Sequence[str]) -> str:
    """The first pattern whose names, after '!' if it has one, are those of no path: probably misspelt; '' = none.

    Example:
      >>> without_match(("head/*", "!haed/*"), ["head/logits/bias"])
      '!haed/*'
    """
    return next((p for p in patterns if not any(matches(path, p.removeprefix("!")) for path in paths)), "")
