"""The images of a split or a part of one, either decoded and memory-mapped or decoded batch by batch."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxvit.data.decoding import Damage, Records, decode_records
from jaxvit.data.depth import hint
from jaxvit.data.fingerprint import fingerprint
from jaxvit.data.gathered import Gathered
from jaxvit.errors import RunFailedError, UsageError
from jaxvit.files import CHECKSUM, checked_json, checksum, read_regular, replaced
from jaxvit.shown import terminal


@dataclass(frozen=True)
class Source:
    """A decoded split, or a part of one.

    Attributes:
      name: data set and split, such as 'digits: train[:1257]'.
      images: uint8 [N, H, W, C]; a view of the memory-mapped cache, or a lazy selection of its rows.
      labels: int32 [N].
      class_names: K names; ``class_names[label]``.
      notes: further entries for environment.json: the order, damaged records.
      memo: file that stores the fingerprint; None = none.
      list_files: function that lists the file of each image; None = the images are not stored as files.
    """

    name: str
    images: np.ndarray | Gathered
    labels: np.ndarray
    class_names: tuple[str, ...]
    notes: dict[str, Any] = field(default_factory=dict)
    memo: Path | None = None
    list_files: Callable[[], list[str]] | None = None

    @cached_property
    def files(self) -> list[str]:
        """The file of each image, relative to the data set's folder; [] = the images are not stored as files."""
        return self.list_files() if self.list_files else []

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self.images.shape[1:]

    def batch(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns (images uint8 [n, H, W, C], labels int32 [n], good bool [n], all true) of these rows."""
        return self.images[rows], self.labels[rows], np.ones(len(rows), bool)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """See `jaxvit.data.fingerprint.fingerprint`; computed once for a cached split."""
        if self.memo:
            with contextlib.suppress(OSError, ValueError):
                return checked_json(read_regular(self.memo, 1 << 20))
        found = fingerprint(self.images, self.labels, len(self.class_names))
        if self.memo:
            # If the cache cannot be written, the next process computes the fingerprint again.
            with contextlib.suppress(OSError), replaced(self.memo, unique=True) as beside:
                beside.write_text(json.dumps({**found, CHECKSUM: checksum(found)}))
        return found


@dataclass(frozen=True)
class StreamedSource:
    """A split, or a part of one, that is too large to cache: `batch` decodes its images.

    Attributes:
      name: data set and split, such as 'imagenet2012: train'.
      records: the stored split.
      rows: [N], numbers of the records.
      shape: [H, W, C] of every decoded image.
      side: resize and crop images to [side, side]; 0 = as stored.
      class_names: K names; ``class_names[label]``.
      damage: collects images that cannot be decoded.
      list_files: see `Source`.
    """

    name: str
    records: Records
    rows: np.ndarray
    shape: tuple[int, int, int]
    side: int
    class_names: tuple[str, ...]
    damage: Damage
    list_files: Callable[[], list[str]] | None = None

    @cached_property
    def files(self) -> list[str]:
        """See `Source.files`."""
        return self.list_files() if self.list_files else []

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self.shape

    def __getstate__(self) -> dict[str, Any]:
        """The state for another process, which decodes and needs no file names."""
        return {own.name: getattr(self, own.name) for own in fields(self)} | {"list_files": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    @property
    def labels(self) -> np.ndarray:
        """int32 [N].

        Raises:
          UsageError: the labels are stored with the images, so listing them would read the whole split.
        """
        known = getattr(self.records, "labels", None)
        if known is None:
            raise UsageError(
                f"{self.name}: too large to be kept decoded, and its labels are unknown until its images are read; "
                "set config.data.balance='none'"
            )
        return known[self.rows]

    @property
    def notes(self) -> dict[str, Any]:
        """See `Source.notes`; lists only the damaged records found so far."""
        return {"order": "stored order: decoded as it is read", **self.damage.notes}

    def batch(self, rows: np.ndarray, threads: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns (images uint8 [n, H, W, C], labels int32 [n], good bool [n]) of these rows.

        A skipped image, which cannot be decoded, is black and has good = False.
        """
        images = np.zeros((len(rows), *self.shape), np.uint8)
        labels, good = np.zeros(len(rows), np.int32), np.zeros(len(rows), bool)
        for chunk in decode_records(self.records, self.rows[rows], self.shape, self.side, self.damage, threads):
            images[chunk.places], labels[chunk.places], good[chunk.places] = chunk.images, chunk.labels, True
        if not good.any() and len(np.unique(rows)) > 1:  # more likely a missing folder than damaged images
            raise RunFailedError(
                f"{self.name}: not one image of a whole batch can be decoded, such as {self.damage.names[0]}; "
                "is the folder still there?"
            )
        return images, labels, good

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """The fingerprint of 1,000 evenly spaced images: that of all images would take a pass over the set."""
        rows = np.unique(np.linspace(0, len(self) - 1, min(len(self), 1000)).astype(int))
        images, labels, good = self.batch(rows, threads=0)
        found = fingerprint(images[good], labels[good], len(self.class_names))
        if said := hint(self.damage.depth.notes, self.damage.depth.white):
            print(terminal(f"warning: {self.name}: {said}"), file=sys.stderr)
        return {**found, "count": len(self), "sampled": int(good.sum())}
