"""Split expressions in TFDS notation, such as 'train[:80%]', 'train[-10000:]' or 'train+validation'.

TFDS's own parser is not used, because it counts in the stored order of the whole set. Here, indices count in the
original order, and after a class subset has been taken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from jaxvit.errors import UsageError, nearest

_PART = re.compile(r"\s*([\w.\-]+)\s*(?:\[\s*(-?\d+%?)?\s*:\s*(-?\d+%?)?\s*\])?\s*")


def resolve_split(expression: str, sizes: Mapping[str, int], *, owner: str, key: str) -> list[tuple[str, int, int]]:
    """Parses a split expression into ranges.

    Args:
      expression: names of splits, each with an optional [from:to], joined by '+'. Bounds are numbers of images or
        integer percentages (rounded to the nearest image); negative bounds count from the end.
      sizes: {split: number of images}.
      owner: the data set's name, for errors.
      key: the config key, for errors.

    Returns:
      [(split, from, to), …], without empty ranges.

    Raises:
      UsageError: invalid expression, unknown split, a bound out of range, or no image in any range.
    """
    have = ", ".join(f"{split} ({size:,})".replace(",", "") for split, size in sizes.items())
    ranges = []
    for part in expression.split("+"):
        match = _PART.fullmatch(part)
        if not match:
            raise UsageError(
                f"{key}='{expression}': not a split of {owner} (write it as 'train', 'train[:80%]' or "
                f"'train[-10000:]'); it has {have}"
            )
        name, low, high = match.groups()
        if name not in sizes:
            raise UsageError(f"{key}='{expression}': not a split of {owner}{nearest(name, sizes)}; it has {have}")
        size = sizes[name]
        for bound in (low, high):
            if bound and bound.endswith("%") and abs(int(bound[:-1])) > 100:
                raise UsageError(f"{key}='{expression}': {bound} of {name} is more than there is; it has {have}")
            if bound and not bound.endswith("%") and abs(int(bound)) > size:
                raise UsageError(f"{key}='{expression}': {name} of {owner} has only {size} images; it has {have}")
        start, stop = _bound(low, size, 0), _bound(high, size, size)
        if start < stop:
            ranges.append((name, start, stop))
    if not ranges:
        raise UsageError(f"{key}='{expression}': this part of {owner} holds no image; it has {have}")
    return ranges


def _bound(text: str | None, size: int, default: int) -> int:
    if text is None:
        return default
    value = round(int(text[:-1]) * size / 100) if text.endswith("%") else int(text)
    return min(max(value + size if value < 0 or text.startswith("-") else value, 0), size)
