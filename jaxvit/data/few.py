"""A few images of each class: `data.per_class`."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from jaxvit.data.gathered import Gathered
from jaxvit.data.parts import Source, StreamedSource
from jaxvit.errors import UsageError


class Few(NamedTuple):
    """The images of a split to keep.

    Attributes:
      split: the split expression.
      per_class: number of images of each class.
      draw: number of the draw; each draws other images.
    """

    split: str
    per_class: int
    draw: int


def choose_few(source: Source | StreamedSource, few: Few) -> Source:
    """Draws `few.per_class` images of each class without replacement, and keeps their order.

    The images of a smaller number are among those of a larger one of the same draw.

    Raises:
      UsageError: a class has fewer images, or the split is too large to be kept decoded.
    """
    where = f"config.data.per_class={few.per_class}"
    if not isinstance(source, Source):
        raise UsageError(f"{where}: {source.name} is too large to be kept decoded; set it to 0")
    rng = np.random.default_rng([few.draw, 0xFE3])
    rows = []
    for number, name in enumerate(source.class_names):
        own = np.flatnonzero(source.labels == number)
        if len(own) < few.per_class:
            raise UsageError(
                f"{where}: {source.name} has only {len(own)} images of {name}; set it to {len(own)} or less"
            )
        rows.append(rng.permutation(own)[: few.per_class])
    chosen = np.sort(np.concatenate(rows))
    files = source.list_files
    return dataclasses.replace(
        source,
        name=f"{source.name}, {few.per_class} of each class",
        images=Gathered([(source.images, chosen)]),  # type: ignore[list-item]
        labels=source.labels[chosen],
        memo=None,
        list_files=(lambda: [names[row] for row in chosen] if (names := files()) else []) if files else None,
    )
