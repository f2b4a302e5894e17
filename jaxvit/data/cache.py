"""Decoded splits on disk: decoded once, then mapped into memory, so that a process holds at most one copy.

A folder of the cache holds images.npy, labels.npy and meta.json, which has the hashes of both. It is written beside its
place and moved there in one step, so what stands there is whole, and two that decode at once do not disturb each other;
what a killed process left beside it is swept away by the next one that decodes. Its name contains a hash of the stored
files' content: other content is another folder.

Each process hashes the arrays once before it uses them. Where they are not what was written, it says so and decodes
them again.
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

FORMAT = 3  # of the folders; part of their names


@dataclass(frozen=True)
class Decoded:
    """A whole split, decoded.

    Attributes:
      images: uint8 [N, H, W, C], a read-only map of a file where a cache could be written.
      labels: int32 [N].
      order: 'id' if the images were put into the order of their ids, else 'stored'.
      skipped: how many damaged records are missing, and the names of the first.
      depth: what was seen of images of more than 8 bits, see `jaxvit.data.depth.Depth.notes`.
      folder: where it lies; None = only in memory.
      digest: hash of both arrays, as they were written and have been read; '' = only in memory.
    """

    images: np.ndarray
    labels: np.ndarray
    order: str
    skipped: tuple[int, tuple[str, ...]]
    folder: Path | None
    digest: str = ""
    depth: dict[str, float] = field(default_factory=dict)


def content_hash(files: Iterable[Path]) -> str:
    """32 hex digits over the names and bytes of files."""
    total = hashlib.blake2b(digest_size=16)
    for path in files:
        check_regular(path)
        total.update(os.fsencode(path.name))
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                total.update(block)
    return total.hexdigest()


def cache_folder(directory: Path) -> Path:
    """Where decoded splits of a data directory lie: inside it, or if it cannot be written, in the user's cache."""
    inside = directory / ".jaxvit"
    parent = next(p for p in (inside, *inside.parents) if p.exists())
    if os.access(parent, os.W_OK):
        return inside
    return user_cache() / "jaxvit" / hashlib.blake2b(os.fsencode(directory.absolute()), digest_size=6).hexdigest()


def decoded_split(records: Records, folder: Path, shape: tuple[int, int, int], side: int, damage: Damage) -> Decoded:
    """The decoded split of a cache folder, made on first use.

    Args:
      records: the split as stored; read only when the folder is not there.
      folder: its name must identify the content and the settings.
      shape: [H, W, C] of every decoded image.
      side: see `jaxvit.data.decoding.decode`.
      damage: takes note of what cannot be decoded.
    """
    damaged = ""
    try:
        if (folder / "meta.json").exists():
            return _open(folder, shape)
    except PermissionError:  # another user's: as if there were none
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
                except OSError:  # another user's: ours are used as long as they are mapped
                    return replace(_open(building, shape), folder=None, digest="")
            try:
                os.rename(building, folder)
            except OSError:
                if not (folder / "meta.json").exists():  # else another process was faster
                    raise
            return _open(folder, shape)
        finally:
            shutil.rmtree(building, ignore_errors=True)


def _clear(folder: Path, shape: tuple[int, int, int]) -> None:
    """Removes a damaged folder, unless another process was faster, by a name that is swept away after a kill here."""
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
    """(new folder, its lock, held)."""
    while True:
        building = parent / f"{_MAKING}{uuid.uuid4().hex[:12]}"
        building.mkdir()  # not mkdtemp, which would keep other users of a shared directory out
        lock = Lock(building / _LOCK)
        if (building / _LOCK).exists():  # else another process swept it away before it was locked
            return building, lock
        lock.close()


def _sweep(directory: Path) -> None:
    """Removes what processes that were killed while they decoded have left: nobody holds its lock any more."""
    for left in directory.glob(f"{_MAKING}*"):
        if not (left / _LOCK).exists():
            continue  # it is about to be locked
        with contextlib.suppress(OSError, UsageError), Lock(left / _LOCK, "another process decodes there"):
            shutil.rmtree(left, ignore_errors=True)


_MOST_META = 1 << 24  # bytes
_ARRAYS = ("images.npy", "labels.npy")
_verified: dict[Path, tuple[Any, str]] = {}  # by this process: (sizes and times of the arrays, their digest)


def _open(folder: Path, shape: tuple[int, int, int]) -> Decoded:
    """The arrays of a folder, whose bytes have been compared with their hashes.

    Raises:
      ValueError, KeyError, FileNotFoundError: they are not what was written.
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
    skipped = count, tuple(names)
    return Decoded(images, labels, meta["order"], skipped, folder, digest, depth)


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
    else:  # sorted, or without the damaged ones: copied in chunks, never whole in memory
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
        "sha256": {name: file_hash(folder / name) for name in _ARRAYS},
        "depth": damage.depth.notes,
    }
    write_json(folder / "meta.json", meta, with_checksum=True)


@contextlib.contextmanager
def _array_file(path: Path, shape: tuple[int, ...]) -> Iterator[BinaryIO]:
    """A .npy file of uint8, to be written from front to back.

    Written, not mapped: on a full disk a write fails with an error, where a mapped page kills the process.
    """
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        yield file
        file.flush()
        os.fsync(file.fileno())


def _header_size(path: Path) -> int:
    """Bytes before the numbers of a .npy file."""
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        return file.tell()


def _order(ids: list[str]) -> np.ndarray | None:
    """The permutation that sorts by id; None where there are no ids, or they are in order already.

    Numbers within an id count as numbers: 'train_9' stands before 'train_10'.
    """
    if not ids or not all(ids):
        return None
    keys = [
        [int(part) if odd % 2 else part for odd, part in enumerate(re.split(r"([0-9]+)", own))] for own in ids
    ]  # text and numbers take turns, so that like is compared with like
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
    )


def _permute(array: np.ndarray, order: np.ndarray) -> None:
    """``array[: len(order)] = array[order]`` in place, without a second copy: along the permutation's cycles."""
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
