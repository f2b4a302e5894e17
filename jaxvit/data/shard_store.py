"""`tar:PATTERN` and `parquet:PATTERN`: images in shards as a data set, each of them a place in a file.

The order, the splits and the cache are those of a folder with the same images: `CLASS/NAME` decides an image's place.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxvit.data.decoding import Limits, Record, Unreadable
from jaxvit.data.image_files import PassedOver
from jaxvit.data.image_store import ImageStore
from jaxvit.data.notes import warn_once
from jaxvit.data.parquet_shard import copy_images
from jaxvit.data.photo_folder import LeftOut
from jaxvit.data.shard_index import NO_LABEL, Listing, ShardIndex, is_class_name, open_index
from jaxvit.data.shards import PARQUET_PREFIX, TAR_PREFIX, Shards, find_shards
from jaxvit.data.tar_shard import list_tar
from jaxvit.errors import UsageError
from jaxvit.files import local_path, read_regular

CLASSES = "classes.txt"  # beside the shards: the class names of whole-number labels from 0, each on its line
_MANY = 1 << 30  # bytes of shards from which on a line announces the reading


def open_shards(
    name: str, directory: Path, limits: Limits | None = None, *, skip_unlabelled: bool = False
) -> ShardStore:
    """Opens 'tar:PATTERN' or 'parquet:PATTERN'.

    Args:
      name: name of the data set.
      directory: the TFDS directory, which holds the cache of decoded images.
      limits: limits on the size of an image; None = `Limits()`.
      skip_unlabelled: leave out images without a label, instead of an error.

    Raises:
      UsageError: a shard is missing or cannot be used, or a label does not fit the others.
    """
    limits = limits or Limits()
    prefix = TAR_PREFIX if name.startswith(TAR_PREFIX) else PARQUET_PREFIX
    pattern = os.path.abspath(local_path(name.removeprefix(prefix)))
    name = f"{prefix}{pattern}"
    where = f"config.data.name='{name}'"
    shards = find_shards(pattern, where)
    copies = prefix == PARQUET_PREFIX

    def list_shard(shard: Path, copy: Path) -> Listing:
        size = sum(found.stat().st_size for part in shards.parts.values() for found in part)
        if size > _MANY:
            doing = "copying the images out of" if copies else "indexing"
            warn_once(f"note: {name}: {doing} {size / 1e9:,.1f} GB of shards, once")
        return copy_images(shard, copy, where) if copies else list_tar(shard, where)

    indexes = {
        part: [open_index(shard, list_shard, copies=copies, where=where) for shard in found]
        for part, found in shards.parts.items()
    }
    return ShardStore(name, shards, indexes, directory, limits, skip_unlabelled=skip_unlabelled)


class ShardStore(ImageStore):
    """A data set of images in shards.

    Args:
      name: name of the data set, such as 'tar:/data/pets/*.tar'.
      shards: the shards.
      indexes: {part: the index of each of its shards}.
      directory: the TFDS directory, which holds the cache of decoded images.
      limits: limits on the size of an image; None = `Limits()`.
      skip_unlabelled: leave out images without a label, instead of an error.

    Raises:
      UsageError: there are no images, or a label does not fit the others.
    """

    def __init__(
        self,
        name: str,
        shards: Shards,
        indexes: dict[str, list[ShardIndex]],
        directory: Path,
        limits: Limits | None = None,
        *,
        skip_unlabelled: bool = False,
    ):
        where = f"config.data.name='{name}'"
        every = [index for found in indexes.values() for index in found]
        listed = _class_names(every, where)
        unlabelled: list[str] = []
        left_out = [*shards.left_out, *_left_out(every)]
        places, classes = {}, {}
        for part, found in indexes.items():
            numbers = [_numbers(index, listed, where) for index in found]
            number = np.repeat(np.arange(len(found), dtype=np.int32), [len(index) for index in found])
            row = np.concatenate([np.arange(len(index)) for index in found])
            label = np.concatenate(numbers)
            if part != "train" and "train" in indexes and (label == NO_LABEL).all():
                without = f"images of {part} without a label"
                few = [(found[n], r) for n, r in zip(number[:3], row[:3], strict=True)]
                first = tuple(f"{index.shard.name}: {index.name(r)}" for index, r in few)
                left_out.append(LeftOut(without, len(label), first))
                label = label[:0]
            for i in np.flatnonzero(label == NO_LABEL):
                said = f"{found[number[i]].shard}: {found[number[i]].name(row[i])}"
                if not skip_unlabelled:
                    raise UsageError(
                        f"{where}: {said} has no label; each image needs one, as KEY.cls or in KEY.json (tar), or in "
                        "the column label (Parquet); --config.data.on_error=skip leaves such images out"
                    )
                unlabelled.append(said)
            good = np.flatnonzero(label != NO_LABEL)
            order = _order([found[i] for i in number[good]], row[good], [listed[c] for c in label[good]])
            places[part] = (number[good][order], row[good][order])
            classes[part] = label[good][order]
        present = np.unique(np.concatenate([*classes.values(), np.zeros(0, np.int32)]))
        if not len(present):
            raise UsageError(f"{where}: the shards hold no images with labels{_why_none(every)}")
        renumbered = np.cumsum(np.isin(np.arange(len(listed)), present)) - 1
        labels = {part: renumbered[each].astype(np.int32) for part, each in classes.items() if len(each)}
        absent = [listed[i] for i in range(len(listed)) if i not in present]
        for what, names in (("images without a label", unlabelled), ("classes without an image", absent)):
            left_out += [LeftOut(what, len(names), tuple(names[:3]))] if names else []
        super().__init__(
            name, directory, tuple(listed[i] for i in present), labels, tuple(left_out), str(shards), limits
        )
        self._root, self._indexes, self._places = shards.root, indexes, places

    def records(self, split: str) -> ShardRecords:
        return ShardRecords(self._indexes[split], *self._places[split], self._labels[split], self.limits.bytes)

    def content(self, split: str) -> str:
        total = hashlib.blake2b(digest_size=16)
        for index in self._indexes[split]:
            total.update(f"{os.path.relpath(index.shard, self._root)!r} {index.state} {index.digest}\n".encode())
        for array in (*self._places[split], self._labels[split]):
            total.update(np.ascontiguousarray(array))
        return total.hexdigest()

    def names(self, split: str) -> list[str]:
        return self._named(split, [os.path.relpath(index.shard, self._root) + "/" for index in self._indexes[split]])

    def record_names(self, split: str) -> list[str]:
        return self._named(split, [f"{index.shard}: " for index in self._indexes[split]])

    def _named(self, split: str, starts: list[str]) -> list[str]:
        indexes = self._indexes[split]
        return [starts[i] + indexes[i].name(row) for i, row in zip(*self._places[split], strict=True)]

    def states(self, split: str) -> list[list[int]]:
        indexes = self._indexes[split]
        return [[*indexes[i].state, int(indexes[i].offsets[row])] for i, row in zip(*self._places[split], strict=True)]

    def identity(self) -> bytes:
        return os.fsencode(self.name)


class ShardRecords:
    """The images of one split, as `jaxvit.data.decoding.Records`; read at random, without keeping files open.

    Args:
      indexes: the shards of the split.
      shards, rows: int [N], the shard of each image and its number in the shard.
      labels: int32 [N], class indices.
      most_bytes: larger images are not read.
    """

    def __init__(
        self, indexes: Sequence[ShardIndex], shards: np.ndarray, rows: np.ndarray, labels: np.ndarray, most_bytes: int
    ):
        self._indexes, self._shards, self._rows = indexes, shards, rows
        self.labels, self._most = labels, most_bytes

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, rows: Sequence[int]) -> list[Record | Unreadable]:
        rows = np.asarray(rows, np.int64)
        found: dict[int, Record | Unreadable] = {}
        shards, own = self._shards[rows], self._rows[rows]
        order = np.lexsort((own, shards))  # by shard, and in each from its start to its end
        for shard in np.unique(shards):
            index, places = self._indexes[shard], order[shards[order] == shard].tolist()
            try:
                # A pipe may have replaced the shard: opening one waits for a writer. Its state then differs.
                descriptor = os.open(index.file, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))
            except OSError as error:
                reason = OSError(error.strerror)
                found |= {place: Unreadable(self._name(rows[place]), reason) for place in places}
                continue
            try:
                state = os.fstat(descriptor)
                changed = index.file == index.shard and (state.st_size, state.st_mtime_ns) != index.state
                for place in places:
                    found[place] = self._read_one(descriptor, int(rows[place]), changed)
            finally:
                os.close(descriptor)
        return [found[place] for place in range(len(rows))]

    def _read_one(self, descriptor: int, number: int, changed: bool) -> Record | Unreadable:
        index, row, name = self._indexes[self._shards[number]], int(self._rows[number]), self._name(number)
        size = int(index.sizes[row])
        if changed:
            return Unreadable(name, OSError("its shard has changed since the start"))
        if size > self._most:
            return Unreadable(name, OSError(f"it has {size:,} bytes, and max_bytes allows {self._most:,}"))
        try:
            data = os.pread(descriptor, size, int(index.offsets[row]))
        except OSError as error:
            return Unreadable(name, OSError(error.strerror))
        if len(data) < size or (index.sums[row] and zlib.crc32(data) != index.sums[row]):
            return Unreadable(name, OSError("its bytes have changed since they were indexed"))
        return Record(data, int(self.labels[number]), "", name)

    def _name(self, number: int) -> str:
        index = self._indexes[self._shards[number]]
        return f"{index.shard}: {index.name(int(self._rows[number]))}"


def _class_names(indexes: Sequence[ShardIndex], where: str) -> tuple[str, ...]:
    """The names of all classes: those that the shards list, else of classes.txt, else the labels themselves, sorted."""
    listed = {index.class_names: index for index in indexes if index.class_names}
    if len(listed) > 1:
        one, other = list(listed.values())[:2]
        raise UsageError(f"{where}: {one.shard} and {other.shard} list different classes; name only shards of one set")
    folders = dict.fromkeys(index.shard.parent for index in indexes)
    files = [folder / CLASSES for folder in folders if (folder / CLASSES).is_file()]
    if listed:
        names, source = next(iter(listed)), f"the metadata of {next(iter(listed.values())).shard}"
    elif files:
        names, source = _read_classes(files[0], where), str(files[0])
        for file in files[1:]:
            if _read_classes(file, where) != names:
                raise UsageError(f"{where}: {files[0]} and {file} differ; the shards of a set have the same classes")
    else:
        return _of_labels(indexes, where)
    if len(set(names)) < len(names) or not all(names):
        raise UsageError(f"{where}: {source} names a class twice, or has an empty line")
    if strange := next((name for name in names if not is_class_name(name)), ""):
        raise UsageError(
            f"{where}: {source} has the class name {strange!r:.60}; a name is printable text of at most 200 characters"
        )
    return names


def _read_classes(file: Path, where: str) -> tuple[str, ...]:
    try:
        return tuple(line.strip() for line in read_regular(file, 1 << 24).decode("utf-8-sig").rstrip().split("\n"))
    except OSError as error:
        raise UsageError(f"{where}: {file} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UsageError(f"{where}: {file} is not UTF-8; save it as UTF-8, one class name a line") from None


def _of_labels(indexes: Sequence[ShardIndex], where: str) -> tuple[str, ...]:
    first: dict[type, tuple[ShardIndex, int]] = {}
    values: set[int | str] = set()
    for index in indexes:
        for number, value in enumerate(index.label_values):
            first.setdefault(type(value), (index, number))
            values.add(value)
    if len(first) > 1:
        index, number = first[str]
        raise UsageError(
            f"{where}: {_first_with(index, number)} has the label '{index.label_values[number]}', but others have "
            f"whole numbers, such as {_first_with(*first[int])}; labels are all names, or all numbers"
        )
    return tuple(str(value) for value in sorted(values))  # pyright: ignore[reportArgumentType]


def _first_with(index: ShardIndex, number: int) -> str:
    return f"{index.shard}: {index.name(int(np.flatnonzero(index.labels == number)[0]))}"


def _numbers(index: ShardIndex, listed: tuple[str, ...], where: str) -> np.ndarray:
    """The class of each image of a shard, int32 [N], among all listed classes; -1 = no label."""
    places = {name: number for number, name in enumerate(listed)}
    has_names = bool(index.class_names) or (index.shard.parent / CLASSES).is_file()
    table = np.full(len(index.label_values) + 1, NO_LABEL, np.int32)  # the last for images without a label
    for number, value in enumerate(index.label_values):
        is_number = isinstance(value, int)
        found = value if is_number and has_names else places.get(str(value), -1)
        if not 0 <= found < len(listed):
            if not (index.labels == number).any():
                continue  # only the labels of left out images
            raise UsageError(
                f"{where}: {_first_with(index, number)} has the label {value!r}, which is not one of the "
                f"{len(listed)} listed classes ({', '.join(listed[:4])}{', …' * (len(listed) > 4)})"
            )
        table[number] = found
    return table[index.labels]


def _order(indexes: Sequence[ShardIndex], rows: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """The order of a folder with the same images: by a hash of CLASS/NAME. Names in Parquet may be missing."""
    digests = []
    for index, row, class_name in zip(indexes, rows, classes, strict=True):
        name = index.name(row)
        if index.file != index.shard:  # Parquet: number of the row, and its path if it has one
            number, slash, path = name.partition("/")
            name = path if slash else f"{index.shard.name}/{number}"
        name = name.removeprefix("./")
        own = name if name.startswith(f"{class_name}/") else f"{class_name}/{name}"
        digests.append(hashlib.blake2b(own.encode("utf-8", "surrogateescape")).digest())
    return np.array(sorted(range(len(digests)), key=digests.__getitem__), np.int64)


def _left_out(indexes: Sequence[ShardIndex]) -> list[LeftOut]:
    total = PassedOver()
    for index in indexes:
        total.add(
            PassedOver(
                {reason: count for reason, (count, _) in index.passed_over.items()},
                {reason: list(names) for reason, (_, names) in index.passed_over.items()},
            )
        )
    return [LeftOut(reason, count, tuple(total.names[reason])) for reason, count in total.counts.items()]


def _why_none(indexes: Sequence[ShardIndex]) -> str:
    said = "; ".join(map(str, _left_out(indexes)))
    return f" (left out: {said})" if said else ""
