"""A cache of decoded splits on disk. A split is decoded once, then memory-mapped: a process holds at most one copy.

Each folder of the cache holds images.npy, labels.npy and meta.json, which stores the hashes of both arrays. It is
written under a temporary name and then renamed, so a cache folder is always complete, and processes that decode at the
same time do not interfere. The next process that decodes removes the temporary folders of killed ones. The folder's
name contains a hash of the stored files, so changed files lead to a new folder.

Each process hashes the arrays once before it uses them. If they are damaged, it prints a warning and decodes again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxvit.data.decoding import CHUNK, Damage, Records, decode_records
from jaxvit.errors import UsageError, first_line
from jaxvit.files import (
    Lock,
    check_regular,
    checked_json,
    file_hash,
    make_folder,
    naming,
    read_regular,
    user_cache,
    write_json,
)

FORMAT = 3  # version of the folder layout, part of each folder's name


@dataclass(frozen=True)
class Decoded:
    """A whole decoded split.

    Attributes:
      images: uint8 [N, H, W, C]; a read-only memory map if a cache can be written.
      labels: int32 [N].
      order: 'id' if the images are sorted by their ids, else 'stored'.
      skipped: (number of damaged records left out, names of the first).
      depth: statistics of images with more than 8 bits, see `jaxvit.data.depth.Depth.notes`.
      folder: the cache folder; None = only in memory.
      digest: verified hash of both arrays; '' = only in memory.
      reasons: why each record that `skipped` names cannot be decoded; () in caches that do not tell.
    """

    images: np.ndarray
    labels: np.ndarray
    order: str
    skipped: tuple[int, tuple[str, ...]]
    folder: Path | None
    digest: str = ""
    depth: dict[str, float] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()


def content_hash(files: Iterable[Path]) -> str:
    """Returns a hash of the names and bytes of files, as 32 hex digits."""
    total = hashlib.blake2b(digest_size=16)
    for path in files:
        check_regular(path)
        total.update(os.fsencode(path.name))
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                total.update(block)
    return total.hexdigest()


def cache_folder(directory: Path) -> Path:
    """Returns the cache folder of a data directory: inside it, or in the user's cache if it is not writable."""
    inside = directory / ".jaxvit"
    parent = next(p for p in (inside, *inside.parents) if p.exists())
    if os.access(parent, os.W_OK):
        return inside
    return user_cache() / "jaxvit" / hashlib.blake2b(os.fsencode(directory.absolute()), digest_size=6).hexdigest()


def decoded_split(records: Records, folder: Path, shape: tuple[int, int, int], side: int, damage: Damage) -> Decoded:
    """Opens the decoded split in a cache folder, and decodes it first if the folder does not exist.

    Args:
      records: the stored split; read only if the folder does not exist.
      folder: the cache folder. Its name must identify the content and the settings.
      shape: [H, W, C] of every decoded image.
      side: resize and crop images to [side, side]; 0 = as stored.
      damage: collects images that cannot be decoded.
    """
    damaged = ""
    try:
        if (folder / "meta.json").exists():
            return _open(folder, shape)
    except PermissionError:  # the folder belongs to another user: do without a cache
        return _in_memory(records, shape, side, damage)
    except (ValueError, KeyError, FileNotFoundError) as error:
        damaged = f"the decoded images in {folder} cannot be used ({first_line(error)[:200]})"
    try:
        make_folder(folder.parent)
        _sweep(folder.parent)
        building, lock = _place_to_build(folder.parent)
    except OSError:
        if damaged:
            print(f"warning: {damaged}; they are decoded again, into memory", file=sys.stderr, flush=True)
        return _in_memory(records, shape, side, damage)
    with lock:
        try:
            if damaged:
                print(f"warning: {damaged}; they are decoded again", file=sys.stderr, flush=True)
            with naming(folder):
                _build(records, building, shape, side, damage)
            (building / _LOCK).unlink()
            if damaged:
                try:
                    _clear(folder, shape)
                except OSError:  # it belongs to another user: map our own arrays, then delete their names
                    return replace(_open(building, shape), folder=None, digest="")
            try:
                os.rename(building, folder)
            except OSError:
                if not (folder / "meta.json").exists():  # else another process has written it first
                    raise
            return _open(folder, shape)
        finally:
            shutil.rmtree(building, ignore_errors=True)


def _clear(folder: Path, shape: tuple[int, int, int]) -> None:
    """Removes a damaged folder, unless another process has already replaced it.

    The folder is first renamed to a temporary name, which `_sweep` removes if this process is killed.
    """
    with contextlib.suppress(ValueError, KeyError, FileNotFoundError):
        _open(folder, shape)
        return
    aside = folder.with_name(f"{_MAKING}{uuid.uuid4().hex[:12]}")
    with contextlib.suppress(FileNotFoundError):
        (folder / _LOCK).touch()
        os.rename(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


_MAKING, _LOCK = ".making-", ".lock"


def _place_to_build(parent: Path) -> tuple[Path, Lock]:
    """Creates a temporary folder and returns (folder, its lock, which is held)."""
    while True:
        building = parent / f"{_MAKING}{uuid.uuid4().hex[:12]}"
        building.mkdir()  # not mkdtemp, which would keep other users of a shared directory out
        lock = Lock(building / _LOCK)
        if (building / _LOCK).exists():  # else another process has removed it before it was locked
            return building, lock
        lock.close()


def _sweep(directory: Path) -> None:
    """Removes the temporary folders of killed processes, which are the folders with a free lock."""
    for left in directory.glob(f"{_MAKING}*"):
        if not (left / _LOCK).exists():
            continue  # it is about to be locked
        with contextlib.suppress(OSError, UsageError), Lock(left / _LOCK, "another process decodes there"):
            shutil.rmtree(left, ignore_errors=True)


_MOST_META = 1 << 24  # bytes
_ARRAYS = ("images.npy", "labels.npy")
_verified: dict[Path, tuple[Any, str]] = {}  # folders verified by this process: (sizes and times of files, digest)


def _open(folder: Path, shape: tuple[int, int, int]) -> Decoded:
    """Opens the arrays of a folder after comparing them with their hashes.

    Raises:
      ValueError, KeyError, FileNotFoundError: a file is damaged or missing.
    """
    meta = checked_json(read_regular(folder / "meta.json", _MOST_META))
    wanted = [meta["sha256"][name] for name in _ARRAYS]
    state = [(s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for s in (os.stat(folder / name) for name in _ARRAYS)]
    digest = hashlib.sha256("".join(wanted).encode()).hexdigest()
    if _verified.get(folder.absolute()) != (state, digest):
        for name, hashed in zip(_ARRAYS, wanted, strict=True):
            if file_hash(folder / name) != hashed:
                raise ValueError(f"{name} is not what was written")
        _verified[folder.absolute()] = state, digest
    images = np.load(folder / "images.npy", mmap_mode="r")
    labels = np.load(folder / "labels.npy", mmap_mode="r")
    # A cache can come with the data from a stranger: hashes then show nothing but that the stranger wrote them.
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
        raise ValueError(f"images.npy has {images.dtype} {list(images.shape)}, not uint8 [N, {str(shape)[1:-1]}]")
    if labels.dtype != np.int32 or labels.shape != images.shape[:1] or (labels < 0).any():
        raise ValueError("labels.npy has not one label for each image")
    labels = np.array(labels)
    count, names = meta["skipped"], meta["skipped_names"]
    if type(count) is not int or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("meta.json does not list the damaged images")
    depth = meta.get("depth", {})
    numbers = isinstance(depth, dict) and all(type(value) in (int, float) for value in depth.values())
    if not numbers or (depth and not {"count", "highest"} <= depth.keys()) or meta["order"] not in ("id", "stored"):
        raise ValueError("meta.json does not say what the images are like")
    reasons = meta.get("skipped_reasons", [])
    if not isinstance(reasons, list) or not all(isinstance(reason, str) for reason in reasons):
        raise ValueError("meta.json does not say why images are damaged")
    return Decoded(images, labels, meta["order"], (count, tuple(names)), folder, digest, depth, tuple(reasons))


def _build(records: Records, folder: Path, shape: tuple[int, int, int], side: int, damage: Damage) -> None:
    count = len(records)
    labels, ids, done = [], [], 0
    with _array_file(folder / "stored.npy", (count, *shape)) as file:
        for chunk in decode_records(records, range(count), shape, side, damage):
            file.write(np.ascontiguousarray(chunk.images))
            labels.append(chunk.labels)
            ids.extend(chunk.ids)
            done += len(chunk.images)
    order = _order(ids)
    if order is None and done == count:
        os.rename(folder / "stored.npy", folder / "images.npy")
    else:  # to sort, or to leave out damaged images: copy in chunks, never the whole array in memory
        rows = np.arange(done) if order is None else order
        raw = np.memmap(folder / "stored.npy", np.uint8, "r", _header_size(folder / "stored.npy"), (done, *shape))
        with _array_file(folder / "images.npy", (done, *shape)) as file:
            for start in range(0, done, 16 * CHUNK):
                file.write(np.ascontiguousarray(raw[rows[start : start + 16 * CHUNK]]))
        del raw
        (folder / "stored.npy").unlink()
    all_labels = np.concatenate(labels) if labels else np.empty(0, np.int32)
    np.save(folder / "labels.npy", all_labels if order is None else all_labels[order])
    meta = {
        "order": "id" if ids and all(ids) else "stored",
        "skipped": damage.count,
        "skipped_names": list(damage.names),
        "skipped_reasons": list(damage.reasons),
        "sha256": {name: file_hash(folder / name) for name in _ARRAYS},
        "depth": damage.depth.notes,
    }
    write_json(folder / "meta.json", meta, with_checksum=True)


@contextlib.contextmanager
def _array_file(path: Path, shape: tuple[int, ...]) -> Iterator[BinaryIO]:
    """Opens a .npy file of uint8 values to be written sequentially.

    It is not memory-mapped: on a full disk a write raises an error, whereas touching a mapped page kills the process.
    """
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        yield file
        file.flush()
        os.fsync(file.fileno())


def _header_size(path: Path) -> int:
    """Returns the number of bytes before the array data of a .npy file."""
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        return file.tell()


def _order(ids: list[str]) -> np.ndarray | None:
    """Returns the permutation that sorts by id; None if there are no ids or they are already sorted.

    Digits within an id compare as numbers: 'train_9' comes before 'train_10'.
    """
    if not ids or not all(ids):
        return None
    keys = [
        [int(part) if odd % 2 else part for odd, part in enumerate(re.split(r"([0-9]+)", own))] for own in ids
    ]  # text and numbers alternate, so that text is only compared with text
    rows = sorted(range(len(ids)), key=keys.__getitem__)
    return None if rows == list(range(len(ids))) else np.array(rows)


def _in_memory(records: Records, shape: tuple[int, int, int], side: int, damage: Damage) -> Decoded:
    images = np.empty((len(records), *shape), np.uint8)
    labels, ids, done = [], [], 0
    for chunk in decode_records(records, range(len(records)), shape, side, damage):
        images[done : done + len(chunk.images)] = chunk.images
        labels.append(chunk.labels)
        ids.extend(chunk.ids)
        done += len(chunk.images)
    order = _order(ids)
    rows = np.arange(done) if order is None else order
    if order is not None:
        _permute(images, order)
    return Decoded(
        images[:done],
        np.concatenate(labels)[rows] if labels else np.empty(0, np.int32),
        "id" if ids and all(ids) else "stored",
        (damage.count, damage.names),
        None,
        depth=damage.depth.notes,
        reasons=damage.reasons,
    )


def _permute(array: np.ndarray, order: np.ndarray) -> None:
    """Does ``array[: len(order)] = array[order]`` in place, one cycle of the permutation at a time."""
    moved = np.zeros(len(order), bool)
    for start in range(len(order)):
        if moved[start] or order[start] == start:
            continue
        first, place = array[start].copy(), start
        while order[place] != start:
            array[place] = array[order[place]]
            moved[place] = True
            place = order[place]
        array[place] = first
        moved[place] = True
