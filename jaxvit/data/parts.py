"""A split, or a part of one, as a run reads it: decoded and mapped, or decoded anew for each batch."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
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
    """A split, or a part of one, decoded.

    Attributes:
      name: data set and split, such as 'digits: train[:1257]'.
      images: uint8 [N, H, W, C]; a view of the mapped cache, or rows of it that are gathered when they are asked for.
      labels: int32 [N].
      class_names: K names; ``class_names[label]``.
      notes: what else environment.json should tell: the order, damaged records.
      memo: where the fingerprint is kept; None = nowhere.
      list_files: lists the file of each image; None = the images are no files.
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
        """The file of each image, relative to the data set's folder; [] = the images are no files."""
        return self.list_files() if self.list_files else []

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self.images.shape[1:]

    def batch(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(images uint8 [n, H, W, C], labels int32 [n], good bool [n]: all of them) of these rows."""
        return self.images[rows], self.labels[rows], np.ones(len(rows), bool)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """See `jaxvit.data.fingerprint.fingerprint`; worked out once for a cached split."""
        if self.memo:
            with contextlib.suppress(OSError, ValueError):
                return checked_json(read_regular(self.memo, 1 << 20))
        found = fingerprint(self.images, self.labels, len(self.class_names))
        if self.memo:
            # Another user's cache cannot be written: then it is worked out anew next time.
            with contextlib.suppress(OSError), replaced(self.memo, unique=True) as beside:
                beside.write_text(json.dumps({**found, CHECKSUM: checksum(found)}))
        return found


@dataclass(frozen=True)
class StreamedSource:
    """A split, or a part of one, that is too large to keep: each batch is decoded when it is asked for.

    Attributes:
      rows: [N] numbers of the records.
      damage: takes note of what cannot be decoded.
      list_files: as in `Source`.
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
        """As `Source.files`."""
        return self.list_files() if self.list_files else []

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def labels(self) -> np.ndarray:
        """int32 [N].

        Raises:
          UsageError: the labels are stored with the images, and to know them all would be to read these.
        """
        known = getattr(self.records, "labels", None)
        if known is None:
            raise UsageError(
                f"{self.name}: too large to be kept decoded, and its labels are not known before its images are read; "
                "set config.data.balance='none'"
            )
        return known[self.rows]

    @property
    def notes(self) -> dict[str, Any]:
        """As `Source.notes`; of the damage, what has been met so far."""
        return {"order": "stored order: decoded as it is read", **self.damage.notes}

    def batch(self, rows: np.ndarray, threads: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(images uint8 [n, H, W, C], labels int32 [n], good bool [n]) of these rows.

        An image that cannot be decoded and is to be skipped is black and not good.
        """
        images = np.zeros((len(rows), *self.shape), np.uint8)
        labels, good = np.zeros(len(rows), np.int32), np.zeros(len(rows), bool)
        for chunk in decode_records(self.records, self.rows[rows], self.shape, self.side, self.damage, threads):
            images[chunk.places], labels[chunk.places], good[chunk.places] = chunk.images, chunk.labels, True
        if not good.any() and len(np.unique(rows)) > 1:  # a folder that went away, rather than damage
            raise RunFailedError(
                f"{self.name}: not one image of a whole batch can be decoded, such as {self.damage.names[0]}; "
                "is the folder still there?"
            )
        return images, labels, good

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Of an evenly spread sample of 1,000 images: the whole would take a pass over the set."""
        rows = np.unique(np.linspace(0, len(self) - 1, min(len(self), 1000)).astype(int))
        images, labels, good = self.batch(rows, threads=0)
        found = fingerprint(images[good], labels[good], len(self.class_names))
        if said := hint(self.damage.depth.notes, self.damage.depth.white):
            print(terminal(f"warning: {self.name}: {said}"), file=sys.stderr)
        return {**found, "count": len(self), "sampled": int(good.sum())}
