"""The index of a shard: offset, size, label and name of each image in it. It is built once and kept beside the shard.

The file is in the hidden folder `.jaxvit` beside the shard, or in the user's cache if that folder cannot be written. It
holds one line of JSON with a checksum and the shard's size and time of change, and then the arrays, whose hash the line
has. A shard that has changed is indexed again, and so is one whose index is damaged. An index can come with the data
from a stranger, so its numbers are checked against the size of the file that it describes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxvit.data.cache import cache_folder
from jaxvit.data.image_files import PassedOver
from jaxvit.errors import UsageError, first_line, is_disk_failure
from jaxvit.files import CHECKSUM, check_regular, checked_json, checksum, make_folder, replaced
from jaxvit.shown import terminal

FORMAT = 1
NO_LABEL = -1
_LONGEST = 200  # characters of a class name
_MOST_LINE = 1 << 26  # bytes of the JSON line
# The arrays, in the order of the file; all have N values but `names`, which holds the bytes of all names.
_ARRAYS = {"offsets": "<i8", "sizes": "<i8", "labels": "<i4", "sums": "<u4", "name_ends": "<i8", "names": "|u1"}


def is_class_name(value: object) -> bool:
    """Whether a value from a file can name a class: printable text of 1 to 200 characters, without spaces around it."""
    return isinstance(value, str) and 0 < len(value) <= _LONGEST and value.isprintable() and value == value.strip()


def is_class_number(value: object) -> bool:
    """Whether a value from a file can be the number of a class: a whole number from 0 to 999,999,999."""
    return type(value) is int and 0 <= value < 10**9


@dataclass
class Listing:
    """The images of a shard, as they are found.

    Attributes:
      passed_over: other content of the shard.
      class_names: names of the classes that whole-number labels stand for, if the shard has them.
      labels: {label: its number in the index}; a label is a name, or a whole number.
    """

    passed_over: PassedOver = field(default_factory=PassedOver)
    class_names: tuple[str, ...] = ()
    labels: dict[int | str, int] = field(default_factory=dict)
    _rows: list[tuple[int, int, int, int]] = field(default_factory=list)
    _names: list[bytes] = field(default_factory=list)

    def add(self, name: str, offset: int, size: int, label: int | str | None, crc: int = 0) -> None:
        """Adds an image: name, place and size in bytes, label (None = it has none), and the CRC-32 of its bytes."""
        number = NO_LABEL if label is None else self.labels.setdefault(label, len(self.labels))
        self._rows.append((offset, size, number, crc))
        self._names.append(name.encode("utf-8", "surrogateescape"))

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays of the index by name."""
        rows = np.array(self._rows, np.int64).reshape(-1, 4)
        ends = np.cumsum([len(name) for name in self._names], dtype=np.int64)
        names = np.frombuffer(b"".join(self._names), np.uint8)
        columns = {"offsets": rows[:, 0], "sizes": rows[:, 1], "labels": rows[:, 2], "sums": rows[:, 3]}
        return {name: a.astype(_ARRAYS[name]) for name, a in {**columns, "name_ends": ends, "names": names}.items()}


@dataclass(frozen=True)
class ShardIndex:
    """The index of a shard.

    Attributes:
      shard: the shard.
      file: the file that holds the images: the shard, or a copy of the images in it.
      state: (size, time of change in ns) of the shard when it was indexed.
      offsets, sizes: int64 [N], place of each image in `file`, in bytes.
      labels: int32 [N], indices into `label_values`; -1 = no label.
      sums: uint32 [N], CRC-32 of each image; 0 = unknown.
      name_ends, names: the end of each name in the bytes of all names.
      label_values: the labels: names, or whole numbers.
      class_names: names that whole-number labels stand for; () = unknown.
      passed_over: {reason: (number of entries, first names)}.
      digest: hash of all this.
    """

    shard: Path
    file: Path
    state: tuple[int, int]
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    sums: np.ndarray
    name_ends: np.ndarray
    names: np.ndarray
    label_values: tuple[int | str, ...]
    class_names: tuple[str, ...]
    passed_over: dict[str, tuple[int, tuple[str, ...]]]
    digest: str

    def __len__(self) -> int:
        return len(self.offsets)

    def name(self, row: int) -> str:
        """Returns the name of an image in the shard."""
        start = int(self.name_ends[row - 1]) if row else 0
        return self.names[start : int(self.name_ends[row])].tobytes().decode("utf-8", "surrogateescape")


def open_index(shard: Path, list_shard: Callable[[Path, Path], Listing], *, copies: bool, where: str) -> ShardIndex:
    """Reads the index of a shard, or builds it.

    Args:
      shard: the shard.
      list_shard: function (shard, copy) -> its images. If `copies`, it writes the bytes of the images to the file
        `copy`, and the offsets are places in it.
      copies: whether the images are copied out of the shard.
      where: the start of error messages.

    Raises:
      UsageError: the shard cannot be used, or the copy cannot be written.
    """
    folder, own = cache_folder(shard.parent.resolve()), shard.name
    if len(os.fsencode(own)) > 200:  # with an ending it could be longer than a file system allows
        own = hashlib.blake2b(os.fsencode(own), digest_size=12).hexdigest()
    index, copy = folder / f"{own}.index", folder / f"{own}.images"
    file = copy if copies else shard
    try:
        state = _state(shard)
        with contextlib.suppress(FileNotFoundError):
            if found := _read(index, shard, file, state):
                return found
    except ValueError as error:
        said = f"warning: the index {index} cannot be used ({first_line(error)[:200]}); it is built again"
        print(terminal(said), file=sys.stderr, flush=True)
    except OSError as error:
        remedy = f"; delete {folder}, which holds nothing but indexes" if error.filename == str(index) else ""
        raise UsageError(f"{where}: {error.filename or shard} cannot be read ({error.strerror}){remedy}") from None
    try:
        if copies:
            make_folder(folder)
            with replaced(copy, unique=True) as beside:
                listing = list_shard(shard, beside)
        else:
            listing = list_shard(shard, copy)
    except OSError as error:
        if is_disk_failure(error):
            raise
        what = f"{error.filename or shard}: {error.strerror or error}"
        raise UsageError(f"{where}: the images of {shard} cannot be listed ({what})") from None
    if _state(shard) != state:
        raise UsageError(f"{where}: {shard} changed while it was read; start again when it is complete")
    arrays = listing.arrays()
    body = b"".join(arrays[name].tobytes() for name in _ARRAYS)
    line: dict[str, Any] = {
        "format": FORMAT,
        "shard": list(state),
        "bytes": os.path.getsize(file),
        "images": len(arrays["offsets"]),
        "labels": list(listing.labels),
        "class_names": list(listing.class_names),
        "passed_over": {
            reason: [n, listing.passed_over.names[reason]] for reason, n in listing.passed_over.counts.items()
        },
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    with contextlib.suppress(OSError):  # an index that cannot be written is built again next time
        make_folder(folder)
        with replaced(index, unique=True) as beside:
            beside.write_bytes(json.dumps({**line, CHECKSUM: checksum(line)}).encode() + b"\n" + body)
    return _checked(line, body, shard, file, state)


def _state(shard: Path) -> tuple[int, int]:
    found = check_regular(shard)
    return found.st_size, found.st_mtime_ns


def _read(index: Path, shard: Path, file: Path, state: tuple[int, int]) -> ShardIndex | None:
    """Reads an index; None = it is of an earlier state of the shard.

    Raises:
      ValueError: it is damaged.
      FileNotFoundError: there is none.
    """
    check_regular(index)
    with index.open("rb") as stream:
        head = stream.readline(_MOST_LINE)
        line = checked_json(head)
        if line.get("format") != FORMAT or line.get("shard") != list(state):
            return None
        body = stream.read()
    if check_regular(file).st_size != line.get("bytes"):
        return None
    if hashlib.sha256(body).hexdigest() != line.get("sha256"):
        raise ValueError("its content is not what was written")
    return _checked(line, body, shard, file, state)


def _checked(line: dict[str, Any], body: bytes, shard: Path, file: Path, state: tuple[int, int]) -> ShardIndex:
    """Returns the index of these bytes, with all numbers checked.

    Raises:
      ValueError: they are not an index of this file.
    """
    try:
        return _parsed(line, body, shard, file, state)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"an entry is missing or of another kind: {first_line(error)}") from None


def _parsed(line: dict[str, Any], body: bytes, shard: Path, file: Path, state: tuple[int, int]) -> ShardIndex:
    count, values, class_names = line["images"], line["labels"], line["class_names"]
    fixed = sum(np.dtype(kind).itemsize for name, kind in _ARRAYS.items() if name != "names")
    if type(count) is not int or not 0 <= count <= len(body) // fixed:
        raise ValueError("it does not say how many images there are")
    arrays, place = {}, 0
    for name, kind in _ARRAYS.items():
        length = len(body) - place if name == "names" else count * np.dtype(kind).itemsize
        arrays[name] = np.frombuffer(body[place : place + length], kind)
        place += length
    offsets, sizes, ends = arrays["offsets"], arrays["sizes"], arrays["name_ends"]
    steps = np.diff(ends, prepend=0)
    if (offsets < 0).any() or (sizes < 0).any() or (offsets > line["bytes"] - sizes).any():
        raise ValueError("it names places outside of the file")
    if (steps < 0).any() or (count and ends[-1] != len(arrays["names"])):
        raise ValueError("its names are cut off")
    if (arrays["labels"] < NO_LABEL).any() or (arrays["labels"] >= len(values)).any():
        raise ValueError("it has numbers of labels that are not listed")
    if not all(is_class_number(value) or is_class_name(value) for value in values):
        raise ValueError("its labels are neither names nor whole numbers")
    if not (isinstance(class_names, list) and all(type(name) is str for name in class_names)):
        raise ValueError("its classes have no names")
    passed = {str(reason): (int(n), tuple(map(str, names))) for reason, (n, names) in line["passed_over"].items()}
    return ShardIndex(
        shard,
        file,
        state,
        **arrays,
        label_values=tuple(values),
        class_names=tuple(class_names),
        passed_over=passed,
        digest=checksum(line),
    )
