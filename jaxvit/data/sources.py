"""Where images come from: a name and a directory in; uint8 images, labels and class names out. No TensorFlow.

`open_dataset` looks (sizes, shapes, names: cheap); `Dataset.read` gives one split, decoded once into a cache on disk
and mapped from there, or, where it is too large for that, decoded anew as it is read.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxvit.data.cut import Contents, Cut
from jaxvit.data.decoding import Damage, Limits, Records
from jaxvit.data.fingerprint import ORIGINALS, warning
from jaxvit.data.gathered import Gathered
from jaxvit.data.image_folder import PREFIX, FolderStore, open_image_files
from jaxvit.data.label_table import TABLE_PREFIX
from jaxvit.data.own import OwnStore
from jaxvit.data.parts import Source, StreamedSource
from jaxvit.data.photo_folder import LeftOut
from jaxvit.data.prepared import PreparedStore, open_prepared
from jaxvit.data.splits import resolve_split
from jaxvit.data.stored import StoredSplits, warn_once
from jaxvit.errors import UsageError
from jaxvit.files import local_path
from jaxvit.own_code import is_own_module, load_function
from jaxvit.shown import terminal

_NO_ROWS = np.zeros(0, np.int64)


class Dataset:
    """A data set, or the part of it that belongs to some classes.

    Args:
      store: the data set as it is stored.
      classes: numbers of the classes to keep, in this order; () = all.
      on_error: 'stop' or 'skip', for images that cannot be decoded.
      side: images are brought to [side, side] when they are decoded; 0 = as stored.
      limits: on the size of a stored image; None = the usual ones.
      white: the value that is white in images of more than 8 bits, see `jaxvit.data.depth.Depth`.
      cut: how splits are cut that the store does not have; None = there are only its own.

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
        white: int = 0,
        cut: Cut | None = None,
    ):
        self._store, self._side, self._on_error = store, side, on_error
        self._whole = StoredSplits(store, on_error=on_error, side=side, limits=limits, white=white)
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
        self._cut = cut
        self._rows: dict[str, np.ndarray] = {}
        self._sources: dict[str, Source | StreamedSource] = {}
        self._warnings: dict[str, str] = {}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[H, W, C] as decoded.

        Raises:
          UsageError: the images vary in size, and no side is given.
        """
        return self._whole.image_shape

    @property
    def split_sizes(self) -> dict[str, int]:
        """Images in each split, of the classes kept."""
        return {split: self._size(split) for split in self._pieces}

    @property
    def stored_sizes(self) -> dict[str, int]:
        """Images of each split as it is stored, all classes and damaged ones included."""
        return dict(self._store.sizes)

    @property
    def has_files(self) -> bool:
        """Whether each image is a file of its own: a folder or a table."""
        return isinstance(self._store, FolderStore)

    @property
    def is_fixed(self) -> bool:
        """Whether the images are used as they are stored, or all have the size that the set states."""
        return not self.has_files and None not in self._store.image_shape

    @property
    def is_grey(self) -> bool:
        """Whether the images have no colour; of files, a sample of them."""
        return self._store.is_grey if isinstance(self._store, FolderStore) else self._store.channels == 1

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """What a folder or a table holds that is no part of the set, and images that cannot be decoded."""
        found = self._store.found.left_out if isinstance(self._store, FolderStore) else ()
        bad = self._whole.skipped
        return (*found, *(LeftOut("images that cannot be decoded", count, names[:3]) for count, names in bad if count))

    def say_left_out(self, *, already: bool = False) -> None:
        """Prints what a folder or a table holds that is left out, on stderr, once a process.

        Args:
          already: it has been printed in another way.
        """
        found = self._store.found.left_out if isinstance(self._store, FolderStore) else ()
        said = f"note: {self.name}: left out: {'; '.join(map(str, found))}"
        if found:
            warn_once(said, known=already)

    def sample_sizes(self) -> list[tuple[int, int]]:
        """(height, width) of all images where the set states it, else of a sample of files; [] = not known."""
        if isinstance(self._store, FolderStore):
            return self._store.sample_sizes()
        height, width = self._store.image_shape[:2]
        return [(height, width)] if height and width else []

    def can_be_cut(self, split: str) -> bool:
        """Whether a stored split can be cut by content: it has files, or is small enough to be kept decoded."""
        return self.has_files or self._whole.fits(split)

    def changed(self, *, side: int, cut: Cut | None) -> Dataset:
        """The same data set with another side and cut; its folder is not looked through again."""
        options = {"on_error": self._on_error, "limits": self._whole.limits, "white": self._whole.white}
        return Dataset(self._store, classes=self._classes, **options, side=side, cut=cut)

    @property
    def without_training_images(self) -> tuple[str, ...]:
        """Classes of a folder or a table that are kept, and have images, but none in `train`.

        () for other sets, whose labels are not known before their images are read.
        """
        if not isinstance(self._store, FolderStore):
            return ()
        return tuple(name for name in self._store.found.without_training_images() if name in self.class_names)

    @cached_property
    def _pieces(self) -> dict[str, list[tuple[str, np.ndarray]]]:
        """{split: [(stored split, indices of images in it, ascending), …]}.

        The indices count the images of the decoded split, or the records of a split that is too large to be kept
        decoded. Without a cut, each split is the stored split of that name, and the indices are empty.
        """
        if not self._cut:
            return {split: [(split, _NO_ROWS)] for split in self._store.sizes}
        return self._cut.pieces(self._store.sizes, self.contents, self.name)

    def contents(self, split: str) -> Contents:
        """Contents and labels of a stored split; see `jaxvit.data.stored.StoredSplits.contents`."""
        return self._whole.contents(split)

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
        return all(self._whole.fits(stored) for name, _, _ in self._ranges(split) for stored, _ in self._pieces[name])

    def _ranges(self, split: str, key: str = "split") -> list[tuple[str, int, int]]:
        wanted = {part.split("[")[0].strip() for part in split.split("+")}
        # Counting may take decoding: only what is asked for.
        sizes = {
            name: self._size(name) if name in wanted or self._cut else self._store.sizes[name] for name in self._pieces
        }
        ranges = resolve_split(split, sizes, owner=self.name, key=key)
        stored = [piece for name, _, _ in ranges for piece, _ in self._pieces[name]]
        if len(stored) > 1 and not all(map(self._whole.fits, stored)):
            raise UsageError(
                f"{key}='{split}': a split of {self.name} that is too large to be kept decoded cannot be joined with "
                "another; name one split or a part of one"
            )
        return ranges

    def _size(self, split: str) -> int:
        """Images of a split that are kept. Of one too large to be decoded beforehand, damaged ones count."""
        if self._cut:
            return sum(len(rows) for _, rows in self._rows_of(split))
        stored = self._store.sizes[split]
        if not stored or self._takes_all:
            return stored
        if self._whole.fits(split):
            return len(self._kept(split))
        if self._classes:
            raise UsageError(
                f"config.data.classes={self._classes}: the {split} split of {self.name} is too large to be kept "
                "decoded, and only a set that is kept can be reduced to some classes; set config.data.classes=()"
            )
        return stored

    def _rows_of(self, split: str, start: int = 0, stop: int | None = None) -> list[tuple[str, np.ndarray]]:
        """[(stored split, indices), …] of the images from `start` to `stop` of a split, of the chosen classes."""
        found = []
        for stored, rows in self._pieces[split]:
            if not self._cut:
                rows = self._kept(stored)
            elif self._classes:
                rows = rows[np.isin(rows, self._kept(stored))]
            found.append((stored, rows[max(start, 0) : None if stop is None else max(stop, 0)]))
            start, stop = start - len(rows), None if stop is None else stop - len(rows)
        return [(stored, rows) for stored, rows in found if len(rows)]

    @property
    def _takes_all(self) -> bool:
        return not self._classes and self._on_error == "stop"

    def stored(self, split: str) -> tuple[Records, range, tuple[int, int, int], int, Damage]:
        """What `decode_records` takes, of the first split that an expression names: for measuring."""
        name, start, stop = self._ranges(split)[0]
        stored, rows = self._pieces[name][0]
        chosen = rows[start:stop] if self._cut else range(start, stop)
        return self._store.records(stored), chosen, self.image_shape, self._side, self._whole.damage()

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
            for stored, rows in self._rows_of(name, start, stop):
                self._check_unchanged(stored)
                parts.append((self._whole.decoded(stored).images, rows))
                labels.append(self._relabel(self._whole.decoded(stored).labels[rows]))
        _, start, stop = ranges[0]
        contiguous = len(ranges) == 1 and not self._cut and len(self._kept(ranges[0][0])) == len(parts[0][0])
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
        decoded = [self._whole.decoded(stored) for stored in self._stored_of(ranges)]
        folders = [d.folder for d in decoded]
        if not all(folders):
            return None
        cut = self._cut and [
            rows.tobytes() for name, start, stop in ranges for _, rows in self._rows_of(name, start, stop)
        ]
        text = repr((ranges, classes, [d.digest for d in decoded], *([cut] if cut else [])))
        return folders[0] / f"fingerprint-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}.json"

    def _check_unchanged(self, stored: str) -> None:
        """Raises UsageError if files of a split that was cut by content have changed before they were decoded."""
        if self._cut and self.has_files and len(self._whole.decoded(stored).labels) != len(self.contents(stored).rows):
            raise UsageError(f"{self.name}: its files changed while they were read; start again")

    def _stored_of(self, ranges: list[tuple[str, int, int]]) -> list[str]:
        """The stored splits that ranges lie in, one for each piece of each."""
        return [stored for name, _, _ in ranges for stored, _ in self._pieces[name]]

    def _notes(self, ranges: list[tuple[str, int, int]]) -> dict[str, Any]:
        names = list(dict.fromkeys(self._stored_of(ranges)))
        decoded = [self._whole.decoded(name) for name in names]
        by_id = all(d.order == "id" for d in decoded)
        notes: dict[str, Any] = {
            "order": "original order, by id" if by_id else "stored order: the set has no ids",
        }
        skipped = sum(d.skipped[0] for d in decoded)
        if skipped:
            notes |= {"skipped": skipped, "skipped_names": [name for d in decoded for name in d.skipped[1]]}
        depths = {name: each.depth for name, each in zip(names, decoded, strict=True) if each.depth}
        notes |= {"sixteen_bits": depths} if depths else {}
        warnings = [said for name in names if (said := self._warning(name))]
        return {**notes, "warning": "; ".join(warnings)} if warnings else notes

    def _warning(self, split: str) -> str:
        """What is known against a split as a whole, whatever part of it is used; said on stderr once."""
        if (self.name, split) not in ORIGINALS or self.image_shape != tuple(self._store.image_shape):
            return ""
        if split not in self._warnings:
            whole = self._whole.decoded(split)
            memo = self._memo([(split, 0, len(whole.labels))], ()) if not self._cut else None
            source = Source(self.name, whole.images, whole.labels, self._store.class_names, memo=memo)
            said = self._warnings[split] = warning(self.name, split, source.fingerprint)
            if said:
                print(terminal(f"warning: {said}"), file=sys.stderr, flush=True)
        return self._warnings[split]

    def _kept(self, split: str) -> np.ndarray:
        """Numbers, in the decoded split, of the images whose class is kept, in order."""
        if split not in self._rows:
            labels = self._whole.decoded(split).labels
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
        stored, rows = self._pieces[name][0]
        return StreamedSource(
            f"{self.name}: {split}",
            self._store.records(stored),
            rows[start:stop] if self._cut else np.arange(start, stop),
            self.image_shape,
            self._side,
            self.class_names,
            self._whole.damage(announced=5),
        )


def is_own(name: str) -> bool:
    """Whether a data set's name is that of a function of somebody's own, 'package.module:function'."""
    return ":" in name and not name.startswith((PREFIX, TABLE_PREFIX))


def located(name: str) -> str:
    """A data set's name that is right in whatever folder it is used: a path in it is absolute.

    Example:
      >>> located("cifar10"), located("image_folder:/data/../pets")
      ('cifar10', 'image_folder:/pets')
    """
    if "://" in name:
        local_path(name)  # says what to do in place of a URL
    prefix, _, path = name.partition(":")
    if not path or is_own(name):
        return name
    return f"{prefix}:{os.path.abspath(local_path(path))}"


def open_dataset(
    name: str,
    directory: Path,
    *,
    classes: Sequence[int] = (),
    on_error: str = "stop",
    side: int = 0,
    limits: Limits | None = None,
    white: int = 0,
    cut: Cut | None = None,
) -> Dataset:
    """Opens a data set by its TFDS name, or as 'image_folder:PATH'; `digits` is prepared on first use.

    Args:
      name: TFDS name, 'image_folder:PATH', 'image_table:FILE', or 'package.module:function' (see `jaxvit.data.own`).
      directory: the TFDS directory.
      classes, on_error, side, limits, white, cut: see `Dataset`.

    Raises:
      UsageError: it is not prepared in `directory`, or the name is unknown.
    """
    located(name)  # refuses a URL
    if name in (PREFIX, TABLE_PREFIX):
        raise UsageError(f"config.data.name='{name}': the path is missing; write it as {name}PATH")
    if name.startswith((PREFIX, TABLE_PREFIX)):
        store: Any = open_image_files(name, directory, limits, skip_missing=on_error == "skip")
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
    return Dataset(store, classes=classes, on_error=on_error, side=side, limits=limits, white=white, cut=cut)
