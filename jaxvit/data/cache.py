"""Decoded splits on disk: decoded once, then mapped into memory, so that a process holds at most one copy.

A folder of the cache holds images.npy, labels.npy and meta.json. It is written beside its place and moved there in one
step, so a process that is killed leaves nothing half-made behind, and two that decode at once do not disturb each
other. Its name contains a hash of the stored files' content: other content is another folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxvit.data.decoding import CHUNK, Damage, Records, decode_records

FORMAT = 1  # of the folders; part of their names


@dataclass(frozen=True)
class Decoded:
    """A whole split, decoded.

    Attributes:
      images: uint8 [N, H, W, C], a read-only map of a file where a cache could be written.
      labels: int32 [N].
      order: 'id' if the images were put into the order of their ids, else 'stored'.
      skipped: how many damaged records are missing, and the names of the first.
      folder: where it lies; None = only in memory.
    """

    images: np.ndarray
    labels: np.ndarray
    order: str
    skipped: tuple[int, tuple[str, ...]]
    folder: Path | None


def content_hash(files: Iterable[Path]) -> str:
    """32 hex digits over the names and bytes of files."""
    total = hashlib.blake2b(digest_size=16)
    for path in files:
        total.update(path.name.encode())
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
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return root / "jaxvit" / hashlib.blake2b(str(directory.absolute()).encode(), digest_size=6).hexdigest()


def decoded_split(records: Records, folder: Path, shape: tuple[int, int, int], side: int, damage: Damage) -> Decoded:
    """The decoded split of a cache folder, made on first use.

    Args:
      records: the split as stored; read only when the folder is not there.
      folder: its name must identify the content and the settings.
      shape: [H, W, C] of every decoded image.
      side: see `jaxvit.data.decoding.decode`.
      damage: takes note of what cannot be decoded.
    """
    if (folder / "meta.json").exists():
        return _open(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
    except OSError:
        return _in_memory(records, shape, side, damage)
    try:
        _build(records, building, shape, side, damage)
        try:
            os.rename(building, folder)
        except OSError:
            if not (folder / "meta.json").exists():  # else another process was faster
                raise
        return _open(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _open(folder: Path) -> Decoded:
    meta = json.loads((folder / "meta.json").read_text())
    images = np.load(folder / "images.npy", mmap_mode="r")
    return Decoded(
        images, np.load(folder / "labels.npy"), meta["order"], (meta["skipped"], tuple(meta["skipped_names"])), folder
    )


def _build(records: Records, folder: Path, shape: tuple[int, int, int], side: int, damage: Damage) -> None:
    count = len(records)
    raw = np.lib.format.open_memmap(folder / "stored.npy", "w+", np.uint8, (count, *shape))
    labels, ids, done = [], [], 0
    for images, some_labels, some_ids in decode_records(records, range(count), shape, side, damage):
        raw[done : done + len(images)] = images
        labels.append(some_labels)
        ids.extend(some_ids)
        done += len(images)
    raw.flush()
    order = _order(ids)
    if order is None and done == count:
        os.rename(folder / "stored.npy", folder / "images.npy")
    else:  # sorted, or without the damaged ones: copied in chunks, never whole in memory
        rows = np.arange(done) if order is None else order
        sorted_images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (done, *shape))
        for start in range(0, done, 16 * CHUNK):
            sorted_images[start : start + 16 * CHUNK] = raw[rows[start : start + 16 * CHUNK]]
        sorted_images.flush()
        del raw
        (folder / "stored.npy").unlink()
    all_labels = np.concatenate(labels) if labels else np.empty(0, np.int32)
    np.save(folder / "labels.npy", all_labels if order is None else all_labels[order])
    meta = {
        "order": "id" if ids and all(ids) else "stored",
        "skipped": damage.count,
        "skipped_names": list(damage.names),
    }
    (folder / "meta.json").write_text(json.dumps(meta))


def _order(ids: list[str]) -> np.ndarray | None:
    """The permutation that sorts by id; None where there are no ids, or they are in order already."""
    if not ids or not all(ids) or ids == sorted(ids):
        return None
    return np.argsort(np.array(ids), kind="stable")


def _in_memory(records: Records, shape: tuple[int, int, int], side: int, damage: Damage) -> Decoded:
    images = np.empty((len(records), *shape), np.uint8)
    labels, ids, done = [], [], 0
    for some, some_labels, some_ids in decode_records(records, range(len(records)), shape, side, damage):
        images[done : done + len(some)] = some
        labels.append(some_labels)
        ids.extend(some_ids)
        done += len(some)
    order = _order(ids)
    rows = np.arange(done) if order is None else order
    if order is not None:
        images = images[order]
    return Decoded(
        images[:done],
        np.concatenate(labels)[rows] if labels else np.empty(0, np.int32),
        "id" if ids and all(ids) else "stored",
        (damage.count, damage.names),
        None,
    )
