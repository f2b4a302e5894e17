"""Where images come from: a name and a directory in; uint8 images, labels and class names out. No TensorFlow.

`open_dataset` looks (sizes, shapes, names: cheap); `Dataset.read` gives one split, decoded once into a cache on disk
and mapped from there, or, where it is too large for that, decoded anew as it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxvit.data.cache import FORMAT, Decoded, cache_folder, decoded_split
from jaxvit.data.decoding import Damage, Records, decode_records
from jaxvit.data.fingerprint import fingerprint, warning
from jaxvit.data.image_folder import PREFIX, FolderStore
from jaxvit.data.prepared import PreparedStore, open_prepared
from jaxvit.data.splits import resolve_split
from jaxvit.errors import UsageError

CACHE_BYTES = 4 << 30  # decoded splits up to this size are cached on disk


@dataclass(frozen=True)
class Source:
    """A split, or a part of one, decoded.

    Attributes:
      name: data set and split, such as 'digits: train[:1257]'.
      images: uint8 [N, H, W, C]; a view of the mapped cache wherever that is possible.
      labels: int32 [N].
      class_names: K names; ``class_names[label]``.
      notes: what else environment.json should tell: the order, damaged records.
      memo: where the fingerprint is kept; None = nowhere.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    notes: dict[str, Any] = field(default_factory=dict)
    memo: Path | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self.images.shape[1:]

    def batch(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(images uint8 [n, H, W, C], labels int32 [n]) of these rows."""
        return self.images[rows], self.labels[rows]

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """See `jaxvit.data.fingerprint.fingerprint`; worked out once for a cached split."""
        if self.memo and self.memo.exists():
            return json.loads(self.memo.read_text())
        found = fingerprint(self.images, self.labels, len(self.class_names))
        if self.memo:
            beside = self.memo.with_name(f".{self.memo.name}.{os.getpid()}")
            beside.write_text(json.dumps(found))
            os.replace(beside, self.memo)
        return found


@dataclass(frozen=True)
class StreamedSource:
    """A split, or a part of one, that is too large to keep: each batch is decoded when it is asked for.

    Attributes:
      rows: [N] numbers of the records.
      labels_as: new label of each stored label, -1 for a class that is not taken.
    """

    name: str
    records: Records
    rows: np.ndarray
    labels_as: np.ndarray
    shape: tuple[int, int, int]
    side: int
    class_names: tuple[str, ...]
    damage: Damage
    notes: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self.shape

    def batch(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(images uint8 [n, H, W, C], labels int32 [n]) of these rows.

        An image that cannot be decoded and is to be skipped is replaced by another of the same batch.
        """
        images, labels = [], []
        for some, some_labels, _ in decode_records(
            self.records, self.rows[rows], self.shape, self.side, self.damage, 1
        ):
            images.extend(some)
            labels.extend(some_labels)
        if not images:
            raise UsageError(f"{self.name}: a whole batch of images cannot be decoded")
        chosen = np.resize(np.arange(len(images)), len(rows))
        return np.stack(images)[chosen], self.labels_as[np.array(labels)][chosen].astype(np.int32)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Of an evenly spread sample of 1,000 images: the whole would take a pass over the set."""
        rows = np.unique(np.linspace(0, len(self) - 1, min(len(self), 1000)).astype(int))
        images, labels = self.batch(rows)
        return {**fingerprint(images, labels, len(self.class_names)), "count": len(self), "sampled": len(rows)}


class Dataset:
    """A data set, or the part of it that belongs to some classes.

    Args:
      store: the data set as it is stored.
      classes: numbers of the classes to keep, in this order; () = all.
      on_error: 'stop' or 'skip', for images that cannot be decoded.
      side: images are brought to [side, side] when they are decoded; 0 = as stored.

    Attributes:
      class_names: K names.
      image_shape: [H, W, C] as decoded; None where it varies and no side is given.
      order: 'id' (the original order) or 'stored'.
    """

    def __init__(
        self,
        store: PreparedStore | FolderStore,
        *,
        classes: Sequence[int] = (),
        on_error: str = "stop",
        side: int = 0,
    ):
        self._store, self._side, self._on_error = store, side, on_error
        self.name, self.version = store.name, store.version
        for number in classes:
            if not isinstance(number, int) or not 0 <= number < len(store.class_names):
                raise UsageError(
                    f"config.data.classes={tuple(classes)}: {store.name} has the classes 0 to "
                    f"{len(store.class_names) - 1}"
                )
        if len(set(classes)) != len(classes):
            raise UsageError(f"config.data.classes={tuple(classes)}: a class is named twice")
        self._classes = tuple(classes)
        self.class_names = tuple(store.class_names[i] for i in classes) if classes else store.class_names
        shape = store.image_shape
        self.image_shape: tuple[int | None, ...] = (side, side, shape[-1]) if side else shape
        self.order = "id" if store.has_ids else "stored"
        self._decoded: dict[str, Decoded] = {}
        self._rows: dict[str, np.ndarray] = {}

    @property
    def split_sizes(self) -> dict[str, int]:
        """Images in each split, of the classes kept."""
        if not self._classes and self._on_error == "stop":
            return dict(self._store.sizes)
        return {split: len(self._kept(split)) if size else 0 for split, size in self._store.sizes.items()}

    def count(self, split: str, key: str = "split") -> int:
        """Number of images of a split expression.

        Raises:
          UsageError: the split does not exist or is empty; `key` names the config key at fault.
        """
        return sum(stop - start for _, start, stop in self._ranges(split, key))

    def _ranges(self, split: str, key: str = "split") -> list[tuple[str, int, int]]:
        wanted = {part.split("[")[0].strip() for part in split.split("+")}
        sizes = dict(self._store.sizes)
        if self._classes or self._on_error != "stop":  # counting takes decoding: only what is asked for
            sizes |= {name: len(self._kept(name)) for name in wanted & set(sizes) if sizes[name]}
        return resolve_split(split, sizes, owner=self.name, key=key)

    def stored(self, split: str) -> tuple[Records, tuple[int, int, int], int]:
        """(records, shape, side) of a whole split, as it is decoded: for measuring."""
        return self._store.records(split), self._shape(), self._side

    def read(self, split: str) -> Source | StreamedSource:
        """A split, or the part of it that an expression names."""
        ranges = self._ranges(split)
        if not self._fits(ranges):
            return self._streamed(split, ranges)
        images, labels = [], []
        for name, start, stop in ranges:
            kept, whole = self._kept(name), self._decode(name)
            rows: Any = slice(start, stop) if len(kept) == len(whole.labels) else kept[start:stop]
            images.append(whole.images[rows])  # of a slice: a view of the file
            labels.append(self._relabel(whole.labels[rows]))
        notes, memo = self._notes(ranges), None
        folder = self._decode(ranges[0][0]).folder
        if folder:
            key = hashlib.blake2b(repr((ranges, self._classes)).encode(), digest_size=8).hexdigest()
            memo = folder / f"fingerprint-{key}.json"
        source = Source(
            f"{self.name}: {split}",
            images[0] if len(images) == 1 else np.concatenate(images),
            labels[0] if len(labels) == 1 else np.concatenate(labels),
            self.class_names,
            notes,
            memo,
        )
        self._warn(split, source)
        return source

    def _warn(self, split: str, source: Source) -> None:
        if split in self._store.sizes and not self._classes:
            said = warning(self.name, split, source.fingerprint)
            if said:
                source.notes["warning"] = said
                print(f"warning: {said}", file=sys.stderr, flush=True)

    def _notes(self, ranges: list[tuple[str, int, int]]) -> dict[str, Any]:
        decoded = [self._decoded[name] for name, _, _ in ranges if name in self._decoded]
        order = "original order, by id" if self.order == "id" else "stored order: the set has no ids"
        notes: dict[str, Any] = {"order": order}
        skipped = sum(d.skipped[0] for d in decoded)
        if skipped:
            notes |= {"skipped": skipped, "skipped_names": [name for d in decoded for name in d.skipped[1]]}
        return notes

    def _shape(self) -> tuple[int, int, int]:
        if not all(self.image_shape):
            raise UsageError(
                f"config.data.side=0: the images of {self.name} vary in size; set config.data.side to the side, in "
                "pixels, that they are brought to when they are decoded, such as 256"
            )
        return self.image_shape  # type: ignore[return-value]

    def _fits(self, ranges: list[tuple[str, int, int]]) -> bool:
        largest = max(self._store.sizes[name] for name, _, _ in ranges)
        return largest * int(np.prod(self._shape())) <= CACHE_BYTES

    def _decode(self, split: str) -> Decoded:
        """The whole split, from the cache."""
        if split not in self._decoded:
            shape, store = self._shape(), self._store
            settings = f"{store.content(split)}-{self._side}-{self._on_error}"
            label = "".join(c if c.isalnum() else "_" for c in store.name)[-60:]
            folder = cache_folder(store.directory) / f"{label}-{store.version}-{split}-{_digest(settings)}"
            damage = Damage(self.name, self._on_error)
            self._decoded[split] = decoded_split(_Lazy(store, split), folder, shape, self._side, damage)
            skipped, names = self._decoded[split].skipped
            if skipped:
                print(
                    f"warning: {self.name} {split}: {skipped} damaged images are left out: {', '.join(names[:5])}"
                    + (", …" if skipped > 5 else ""),
                    file=sys.stderr,
                )
        return self._decoded[split]

    def _kept(self, split: str) -> np.ndarray:
        """Numbers of the images of a split whose class is kept, in order."""
        if split not in self._rows:
            if not self._classes and self._on_error == "stop":
                self._rows[split] = np.arange(self._store.sizes[split])
            else:
                labels = self._decode(split).labels
                kept = np.isin(labels, self._classes) if self._classes else np.ones(len(labels), bool)
                self._rows[split] = np.flatnonzero(kept)
        return self._rows[split]

    def _labels_as(self) -> np.ndarray:
        table = np.full(len(self._store.class_names), -1, np.int32)
        table[list(self._classes) or slice(None)] = np.arange(len(self.class_names), dtype=np.int32)
        return table

    def _relabel(self, labels: np.ndarray) -> np.ndarray:
        return self._labels_as()[labels] if self._classes else np.asarray(labels, np.int32)

    def _streamed(self, split: str, ranges: list[tuple[str, int, int]]) -> StreamedSource:
        if len(ranges) > 1 or self._classes:
            raise UsageError(
                f"'{split}' of {self.name}: a set that is too large to be kept decoded can be cut into parts, but "
                "neither joined from several splits nor reduced to some classes"
            )
        name, start, stop = ranges[0]
        return StreamedSource(
            f"{self.name}: {split}",
            self._store.records(name),
            np.arange(start, stop),
            self._labels_as(),
            self._shape(),
            self._side,
            self.class_names,
            Damage(self.name, self._on_error),
            {"order": "stored order: decoded as it is read"},
        )


class _Lazy:
    """Opens the records only when the cache has to be built."""

    def __init__(self, store: PreparedStore | FolderStore, split: str):
        self._store, self._split = store, split

    @cached_property
    def _records(self) -> Records:
        return self._store.records(self._split)

    def __len__(self) -> int:
        return len(self._records)

    def read(self, rows: Sequence[int]) -> list[Any]:
        return self._records.read(rows)


def _digest(text: str) -> str:
    return hashlib.blake2b(f"{FORMAT}/{text}".encode(), digest_size=8).hexdigest()


def open_dataset(
    name: str, directory: Path, *, classes: Sequence[int] = (), on_error: str = "stop", side: int = 0
) -> Dataset:
    """Opens a data set by its TFDS name, or as 'image_folder:PATH'; `digits` is prepared on first use.

    Args:
      name: TFDS name, or 'image_folder:PATH'.
      directory: the TFDS directory.
      classes, on_error, side: see `Dataset`.

    Raises:
      UsageError: it is not prepared in `directory`, or the name is unknown.
    """
    if name.startswith(PREFIX):
        store: Any = FolderStore(Path(name.removeprefix(PREFIX)).expanduser(), directory)
    else:
        store = open_prepared(name, directory)
    return Dataset(store, classes=classes, on_error=on_error, side=side)
