"""Where images come from: a name and a directory in; uint8 images, labels and class names out. No TensorFlow.

`open_dataset` looks (sizes, shapes, names: cheap); `Dataset.read` gives one split, decoded once into a cache on disk
and mapped from there, or, where it is too large for that, decoded anew as it is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxvit.data.cache import FORMAT, Decoded, cache_folder, decoded_split
from jaxvit.data.decoding import Damage, Limits, Records, decode_records
from jaxvit.data.fingerprint import ORIGINALS, fingerprint, warning
from jaxvit.data.gathered import Gathered
from jaxvit.data.image_folder import PREFIX, FolderStore
from jaxvit.data.own import OwnStore
from jaxvit.data.prepared import PreparedStore, open_prepared
from jaxvit.data.splits import resolve_split
from jaxvit.errors import RunFailedError, UsageError
from jaxvit.files import CHECKSUM, checked_json, checksum, local_path, replaced
from jaxvit.own_code import is_own_module, load_function
from jaxvit.shown import terminal

CACHE_BYTES = 4 << 30  # decoded splits up to this size are cached on disk


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
    """

    name: str
    images: np.ndarray | Gathered
    labels: np.ndarray
    class_names: tuple[str, ...]
    notes: dict[str, Any] = field(default_factory=dict)
    memo: Path | None = None

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
                return checked_json(self.memo.read_bytes())
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
    """

    name: str
    records: Records
    rows: np.ndarray
    shape: tuple[int, int, int]
    side: int
    class_names: tuple[str, ...]
    damage: Damage

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self.shape

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
        return {**found, "count": len(self), "sampled": int(good.sum())}


class Dataset:
    """A data set, or the part of it that belongs to some classes.

    Args:
      store: the data set as it is stored.
      classes: numbers of the classes to keep, in this order; () = all.
      on_error: 'stop' or 'skip', for images that cannot be decoded.
      side: images are brought to [side, side] when they are decoded; 0 = as stored.
      limits: on the size of a stored image; None = the usual ones.

    Attributes:
      class_names: K names.
    """

    def __init__(
        self,
        store: PreparedStore | FolderStore | OwnStore,
        *,
        classes: Sequence[int] = (),
        on_error: str = "stop",
        side: int = 0,
        limits: Limits | None = None,
    ):
        self._store, self._side, self._on_error, self._limits = store, side, on_error, limits or Limits()
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
        self._decoded: dict[str, Decoded] = {}
        self._rows: dict[str, np.ndarray] = {}
        self._sources: dict[str, Source | StreamedSource] = {}
        self._warnings: dict[str, str] = {}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[H, W, C] as decoded.

        Raises:
          UsageError: the images vary in size, and no side is given.
        """
        if self._side and isinstance(self._store, OwnStore):
            raise UsageError(
                f"config.data.side={self._side}: the images of {self.name} are used as they are; set it to 0"
            )
        if self._side:
            return self._side, self._side, self._store.channels
        height, width = self._store.image_shape[:2]
        if not (height and width):
            raise UsageError(
                f"config.data.side=0: the images of {self.name} vary in size; set config.data.side to the side, in "
                "pixels, that they are brought to when they are decoded, such as 256"
            )
        return height, width, self._store.channels

    @property
    def split_sizes(self) -> dict[str, int]:
        """Images in each split, of the classes kept."""
        return {split: self._size(split) for split in self._store.sizes}

    def count(self, split: str, key: str = "split") -> int:
        """Number of images of a split expression.

        Raises:
          UsageError: the split does not exist or is empty; `key` names the config key at fault.
        """
        return sum(stop - start for _, start, stop in self._ranges(split, key))

    def shared(self, one: str, other: str) -> int:
        """Number of images that two split expressions have in common."""
        pairs = itertools.product(self._ranges(one), self._ranges(other))
        return sum(max(0, min(a[2], b[2]) - max(a[1], b[1])) for a, b in pairs if a[0] == b[0])

    def is_kept(self, split: str) -> bool:
        """Whether `read` gives a `Source`: the split is small enough to be kept decoded."""
        return all(self._fits(name) for name, _, _ in self._ranges(split))

    def _ranges(self, split: str, key: str = "split") -> list[tuple[str, int, int]]:
        wanted = {part.split("[")[0].strip() for part in split.split("+")}
        # Counting may take decoding: only what is asked for.
        sizes = {name: self._size(name) if name in wanted else size for name, size in self._store.sizes.items()}
        ranges = resolve_split(split, sizes, owner=self.name, key=key)
        if len(ranges) > 1 and not all(self._fits(name) for name, _, _ in ranges):
            raise UsageError(
                f"{key}='{split}': a split of {self.name} that is too large to be kept decoded cannot be joined with "
                "another; name one split or a part of one"
            )
        return ranges

    def _size(self, split: str) -> int:
        """Images of a split that are kept. Of one too large to be decoded beforehand, damaged ones count."""
        stored = self._store.sizes[split]
        if not stored or self._takes_all:
            return stored
        if self._fits(split):
            return len(self._kept(split))
        if self._classes:
            raise UsageError(
                f"config.data.classes={self._classes}: the {split} split of {self.name} is too large to be kept "
                "decoded, and only a set that is kept can be reduced to some classes; set config.data.classes=()"
            )
        return stored

    @property
    def _takes_all(self) -> bool:
        return not self._classes and self._on_error == "stop"

    def stored(self, split: str) -> tuple[Records, range, tuple[int, int, int], int, Damage]:
        """What `decode_records` takes, of the first split that an expression names: for measuring."""
        name, start, stop = self._ranges(split)[0]
        damage = Damage(self.name, self._on_error, limits=self._limits)
        return self._store.records(name), range(start, stop), self.image_shape, self._side, damage

    def read(self, split: str) -> Source | StreamedSource:
        """A split, or the part of it that an expression names; asked for again, it is the same object."""
        if split not in self._sources:
            kept = self.is_kept(split)
            self._sources[split] = self._mapped(split) if kept else self._streamed(split)
        return self._sources[split]

    def _mapped(self, split: str) -> Source:
        ranges = self._ranges(split)
        parts, labels = [], []
        for name, start, stop in ranges:
            rows = self._kept(name)[start:stop]
            parts.append((self._decode(name).images, rows))
            labels.append(self._relabel(self._decode(name).labels[rows]))
        _, start, stop = ranges[0]
        contiguous = len(ranges) == 1 and len(self._kept(ranges[0][0])) == len(parts[0][0])
        return Source(
            f"{self.name}: {split}",
            parts[0][0][start:stop] if contiguous else Gathered(parts),
            labels[0] if len(labels) == 1 else np.concatenate(labels),
            self.class_names,
            self._notes(ranges),
            self._memo(ranges, self._classes),
        )

    def _memo(self, ranges: list[tuple[str, int, int]], classes: tuple[int, ...]) -> Path | None:
        """Where the fingerprint of a part is kept: by the hash of the arrays that were read, not by their place."""
        decoded = [self._decode(name) for name, _, _ in ranges]
        folders = [d.folder for d in decoded]
        if not all(folders):
            return None
        text = repr((ranges, classes, [d.digest for d in decoded]))
        return folders[0] / f"fingerprint-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}.json"

    def _notes(self, ranges: list[tuple[str, int, int]]) -> dict[str, Any]:
        names = list(dict.fromkeys(name for name, _, _ in ranges))
        decoded = [self._decode(name) for name in names]
        by_id = all(d.order == "id" for d in decoded)
        notes: dict[str, Any] = {
            "order": "original order, by id" if by_id else "stored order: the set has no ids",
        }
        skipped = sum(d.skipped[0] for d in decoded)
        if skipped:
            notes |= {"skipped": skipped, "skipped_names": [name for d in decoded for name in d.skipped[1]]}
        warnings = [said for name in names if (said := self._warning(name))]
        return {**notes, "warning": "; ".join(warnings)} if warnings else notes

    def _warning(self, split: str) -> str:
        """What is known against a split as a whole, whatever part of it is used; said on stderr once."""
        if (self.name, split) not in ORIGINALS or self.image_shape != tuple(self._store.image_shape):
            return ""
        if split not in self._warnings:
            whole = self._decode(split)
            memo = self._memo([(split, 0, len(whole.labels))], ())
            source = Source(self.name, whole.images, whole.labels, self._store.class_names, memo=memo)
            said = self._warnings[split] = warning(self.name, split, source.fingerprint)
            if said:
                print(terminal(f"warning: {said}"), file=sys.stderr, flush=True)
        return self._warnings[split]

    def _fits(self, split: str) -> bool:
        if isinstance(self._store, OwnStore):
            return True  # it is in memory already
        return self._store.sizes[split] * math.prod(self.image_shape) <= CACHE_BYTES

    def _decode(self, split: str) -> Decoded:
        """The whole split, from the cache."""
        if split not in self._decoded:
            store = self._store
            if isinstance(store, OwnStore):
                self._decoded[split] = store.decoded(split)
                return self._decoded[split]
            settings = f"{store.content(split)}-{self._side}-{self._on_error}"
            if self._on_error == "skip" and self._limits != Limits():
                settings += f"-{self._limits}"  # others are left out
            label = "".join(c if c.isalnum() else "_" for c in store.name)[-60:]
            folder = cache_folder(store.directory) / f"{label}-{store.version}-{split}-{_digest(settings)}"
            damage = Damage(self.name, self._on_error, limits=self._limits)
            self._decoded[split] = decoded_split(_Lazy(store, split), folder, self.image_shape, self._side, damage)
            skipped, names = self._decoded[split].skipped
            if skipped:
                shown = ", ".join(names[:5]) + (", …" if skipped > 5 else "")
                said = f"warning: {self.name} {split}: {skipped} damaged images are left out: {shown}"
                print(terminal(said), file=sys.stderr)
        return self._decoded[split]

    def _kept(self, split: str) -> np.ndarray:
        """Numbers, in the decoded split, of the images whose class is kept, in order."""
        if split not in self._rows:
            labels = self._decode(split).labels
            self._rows[split] = (
                np.flatnonzero(np.isin(labels, self._classes)) if self._classes else np.arange(len(labels))
            )
        return self._rows[split]

    def _relabel(self, labels: np.ndarray) -> np.ndarray:
        """The numbers that the classes kept have among themselves."""
        if not self._classes:
            return np.asarray(labels, np.int32)
        numbers = np.full(len(self._store.class_names), -1, np.int32)
        numbers[list(self._classes)] = np.arange(len(self._classes), dtype=np.int32)
        return numbers[labels]

    def _streamed(self, split: str) -> StreamedSource:
        [(name, start, stop)] = self._ranges(split)
        return StreamedSource(
            f"{self.name}: {split}",
            self._store.records(name),
            np.arange(start, stop),
            self.image_shape,
            self._side,
            self.class_names,
            Damage(self.name, self._on_error, announced=5, limits=self._limits),
        )


class _Lazy:
    """Opens the records only when the cache has to be built."""

    def __init__(self, store: PreparedStore | FolderStore | OwnStore, split: str):
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


def is_own(name: str) -> bool:
    """Whether a data set's name is that of a function of somebody's own, 'package.module:function'."""
    return ":" in name and not name.startswith(PREFIX)


def open_dataset(
    name: str,
    directory: Path,
    *,
    classes: Sequence[int] = (),
    on_error: str = "stop",
    side: int = 0,
    limits: Limits | None = None,
) -> Dataset:
    """Opens a data set by its TFDS name, or as 'image_folder:PATH'; `digits` is prepared on first use.

    Args:
      name: TFDS name, 'image_folder:PATH', or 'package.module:function' (see `jaxvit.data.own`).
      directory: the TFDS directory.
      classes, on_error, side, limits: see `Dataset`.

    Raises:
      UsageError: it is not prepared in `directory`, or the name is unknown.
    """
    if name == PREFIX:
        raise UsageError(f"config.data.name='{name}': names no folder; write it as {PREFIX}PATH")
    if name.startswith(PREFIX):
        store: Any = FolderStore(Path(local_path(name.removeprefix(PREFIX))), directory, limits)
    elif is_own(name):
        store = OwnStore(name, directory)
    elif {"", ".", ".."} & {*name.split("/")}:
        raise UsageError(f"config.data.name='{name}': is not the name of a data set, such as 'cifar10'")
    else:
        try:
            store = open_prepared(name, directory)
        except UsageError:
            from jaxvit.data.preparable import PREPARABLE

            if name not in PREPARABLE and is_own_module(name):
                load_function(name, "data.name")  # says what the name lacks
            raise
    return Dataset(store, classes=classes, on_error=on_error, side=side, limits=limits)
