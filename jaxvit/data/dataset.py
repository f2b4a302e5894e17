"""`Dataset`: the splits of a stored data set as uint8 images, labels and class names.

Sizes, shapes and names are known without decoding. `Dataset.read` reads a split: decoded once into a cache on disk and
memory-mapped, or, if it is too large for the cache, decoded batch by batch.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from jaxvit.data.cut import Contents, Cut
from jaxvit.data.decoding import Damage, Limits, Records
from jaxvit.data.few import Few, choose_few
from jaxvit.data.fingerprint import ORIGINALS, warning
from jaxvit.data.gathered import Gathered
from jaxvit.data.image_store import ImageStore
from jaxvit.data.notes import warn_once
from jaxvit.data.own import OwnStore
from jaxvit.data.parts import Source, StreamedSource
from jaxvit.data.photo_folder import LeftOut
from jaxvit.data.prepared import PreparedStore
from jaxvit.data.splits import resolve_split
from jaxvit.data.stored import StoredSplits
from jaxvit.errors import UsageError
from jaxvit.shown import terminal

_NO_ROWS = np.zeros(0, np.int64)


class Reading(TypedDict, total=False):
    """The settings of a `Dataset`, whose docstring explains them and whose constructor has the defaults."""

    classes: Sequence[int]
    on_error: str
    side: int
    limits: Limits | None
    white: int
    cut: Cut | None
    few: Few | None


class Dataset:
    """A data set, or its images of some classes.

    Args:
      store: the stored data set.
      classes: indices of the classes to keep, in this order; () = all.
      on_error: 'stop' or 'skip', for images that cannot be decoded.
      side: resize and crop images to [side, side]; 0 = as stored.
      limits: limits on the size of a stored image; None = `Limits()`.
      white: the white value of images with more than 8 bits, see `jaxvit.data.depth.Depth`.
      cut: cuts splits that the store lacks from others; None = only the stored splits.
      few: the split that is read with a few images of each class only; None = none.

    Attributes:
      class_names: K names.
    """

    def __init__(
        self,
        store: PreparedStore | ImageStore | OwnStore,
        *,
        classes: Sequence[int] = (),
        on_error: str = "stop",
        side: int = 0,
        limits: Limits | None = None,
        white: int = 0,
        cut: Cut | None = None,
        few: Few | None = None,
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
        self._cut, self._few = cut, few
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
        """{split: number of images of the kept classes}."""
        return {split: self._size(split) for split in self._pieces}

    @property
    def stored_sizes(self) -> dict[str, int]:
        """{stored split: number of images}, including damaged images and classes that are not kept."""
        return dict(self._store.sizes)

    @property
    def has_files(self) -> bool:
        """Whether names and labels of the images are known without decoding: a folder, a table or shards."""
        return isinstance(self._store, ImageStore)

    @property
    def is_fixed(self) -> bool:
        """Whether all images have the same size, which is known without opening them: false for image files."""
        return not self.has_files and None not in self._store.image_shape

    @property
    def is_grey(self) -> bool:
        """Whether the images are greyscale; for image files, judged by a sample."""
        return self._store.is_grey if isinstance(self._store, ImageStore) else self._store.channels == 1

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Files that do not belong to a set of image files or shards, and images that cannot be decoded."""
        found = self._store.left_out if isinstance(self._store, ImageStore) else ()
        bad = self._whole.skipped
        return (*found, *(LeftOut("images that cannot be decoded", count, names[:3]) for count, names in bad if count))

    def say_left_out(self, *, already: bool = False) -> None:
        """Prints on stderr, once per process, which files of a folder, a table or shards are left out.

        Args:
          already: the caller has printed them in another form, so never print them.
        """
        found = self._store.left_out if isinstance(self._store, ImageStore) else ()
        said = f"note: {self.name}: left out: {'; '.join(map(str, found))}"
        if found:
            warn_once(said, known=already)

    @property
    def understood(self) -> str:
        """How the files of the set were understood, for the first lines of a run; '' = nothing to say."""
        return self._store.understood if isinstance(self._store, ImageStore) else ""

    def sample_sizes(self) -> list[tuple[int, int]]:
        """Returns the (height, width) of all images if the set states it, else of a sample of files; [] if unknown."""
        if isinstance(self._store, ImageStore):
            return self._store.sample_sizes()
        height, width = self._store.image_shape[:2]
        return [(height, width)] if height and width else []

    def can_be_cut(self, split: str) -> bool:
        """Whether a stored split can be cut by content: its images are files, or it fits into the cache."""
        return self.has_files or self._whole.fits(split)

    def changed(self, *, side: int, cut: Cut | None, few: Few | None = None) -> Dataset:
        """Returns the same data set with another side, cut and `few`, without scanning its folder again."""
        options = {"on_error": self._on_error, "limits": self._whole.limits, "white": self._whole.white}
        return Dataset(self._store, classes=self._classes, **options, side=side, cut=cut, few=few)

    @property
    def without_training_images(self) -> tuple[str, ...]:
        """Kept classes of a folder, a table or shards that have images, but none in `train`.

        () for other data sets, whose labels are unknown until their images are read.
        """
        if not isinstance(self._store, ImageStore):
            return ()
        return tuple(name for name in self._store.without_training_images() if name in self.class_names)

    @cached_property
    def _pieces(self) -> dict[str, list[tuple[str, np.ndarray]]]:
        """{split: [(stored split, indices of images in it, ascending), …]}.

        The indices refer to the decoded split, or to the records of a split that is too large for the cache. Without a
        cut, each split is the stored split of that name, and the indices are empty.
        """
        if not self._cut:
            return {split: [(split, _NO_ROWS)] for split in self._store.sizes}
        return self._cut.pieces(self._store.sizes, self.contents, self.name)

    def contents(self, split: str) -> Contents:
        """Returns contents and labels of a stored split; see `jaxvit.data.stored.StoredSplits.contents`."""
        return self._whole.contents(split)

    def count(self, split: str, key: str = "split") -> int:
        """Returns the number of images of a split expression.

        Args:
          split: a split expression, see `jaxvit.data.splits`.
          key: the config key or flag to name in errors.

        Raises:
          UsageError: the split does not exist or is empty.
        """
        ranges = self._ranges(split, key)
        if self._few and split == self._few.split:
            return len(self.read(split))
        return sum(stop - start for _, start, stop in ranges)

    def shared(self, one: str, other: str) -> int:
        """Returns the number of images that two split expressions have in common."""
        pairs = itertools.product(self._ranges(one), self._ranges(other))
        return sum(max(0, min(a[2], b[2]) - max(a[1], b[1])) for a, b in pairs if a[0] == b[0])

    def is_kept(self, split: str) -> bool:
        """Whether `read` returns a `Source`: the split fits into the cache."""
        return all(self._whole.fits(stored) for name, _, _ in self._ranges(split) for stored, _ in self._pieces[name])

    def _ranges(self, split: str, key: str = "split") -> list[tuple[str, int, int]]:
        wanted = {part.split("[")[0].strip() for part in split.split("+")}
        # Counting may require decoding, so count only the splits in the expression.
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
        """Returns the number of kept images of a split; includes damaged ones if it is too large for the cache."""
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
        """Returns [(stored split, indices), …] for the images `start` to `stop` of the kept classes of a split."""
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
        """Returns the arguments of `decode_records` for the first split in an expression, for benchmarks."""
        name, start, stop = self._ranges(split)[0]
        stored, rows = self._pieces[name][0]
        chosen = rows[start:stop] if self._cut else range(start, stop)
        return self._store.records(stored), chosen, self.image_shape, self._side, self._whole.damage()

    def read(self, split: str) -> Source | StreamedSource:
        """Reads the images of a split expression. The same expression returns the same object."""
        if split not in self._sources:
            kept = self.is_kept(split)
            source = self._mapped(split) if kept else self._streamed(split)
            few = self._few if self._few and split == self._few.split else None
            self._sources[split] = choose_few(source, few) if few else source
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
            lambda: self._file_names(ranges),
        )

    def _file_names(self, ranges: list[tuple[str, int, int]]) -> list[str]:
        """Returns the file of each image of these ranges; [] if the images are not stored as files."""
        if not self.has_files:
            return []
        every = {stored: self._whole.file_names(stored) for stored in dict.fromkeys(self._stored_of(ranges))}
        names: list[str] = []
        for name, start, stop in ranges:
            kept = self._cut or self._whole.fits(name)
            pieces = self._rows_of(name, start, stop) if kept else [(name, np.arange(start, stop))]
            names += [every[stored][row] for stored, rows in pieces for row in rows]
        return names

    def _memo(self, ranges: list[tuple[str, int, int]], classes: tuple[int, ...]) -> Path | None:
        """Returns the file that stores the fingerprint of a part, named after the hashes of the arrays."""
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
        """Raises UsageError if files have changed between cutting a split by content and decoding it."""
        if self._cut and self.has_files and len(self._whole.decoded(stored).labels) != len(self.contents(stored).rows):
            raise UsageError(f"{self.name}: its files changed while they were read; start again")

    def _stored_of(self, ranges: list[tuple[str, int, int]]) -> list[str]:
        """Returns the stored split of each piece of these ranges."""
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
        """Returns the warning about a whole stored split, '' if there is none, and prints it once on stderr."""
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
        """Returns the indices, in the decoded split, of the images of the kept classes, ascending."""
        if split not in self._rows:
            labels = self._whole.decoded(split).labels
            self._rows[split] = (
                np.flatnonzero(np.isin(labels, self._classes)) if self._classes else np.arange(len(labels))
            )
        return self._rows[split]

    def _relabel(self, labels: np.ndarray) -> np.ndarray:
        """Maps labels of the store to indices into the kept classes."""
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
            lambda: self._file_names([(name, start, stop)]),
        )
