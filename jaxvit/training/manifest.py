"""Hashes of a checkpoint's files: written before the checkpoint gets its name, compared before it is used.

``manifest.json`` is in the checkpoint's folder. It has the checkpoint's step, so that a folder that was renamed is not
taken for another checkpoint, and the size and SHA-256 of every file there, except for Orbax's two notes on when the
save ended, which nothing reads. The manifest has its own checksum, so that a change in it is detected too. A checkpoint
of an earlier version has no manifest; it is used, with a warning that it is not verified.
"""

from __future__ import annotations

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jaxvit.files import check_regular, checked_json, file_hash, note_unverified, read_regular, write_json

FILE = "manifest.json"
_MOST_BYTES = 1 << 26  # size limit of the manifest
_WRITTEN_LATER = ("_CHECKPOINT_METADATA", "commit_success.txt")


class ChangedError(ValueError):
    """A file has changed since it was written; the message names it."""


def write_manifest(folder: Path, step: int) -> None:
    """Writes the manifest of all files in the folder of the checkpoint of a step, whatever it is called so far."""
    found = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in _WRITTEN_LATER)
    names = [p.relative_to(folder).as_posix() for p in found]
    facts = [[p.stat().st_size, digest] for p, digest in zip(found, _hashes(found), strict=True)]
    write_json(folder / FILE, {"step": step, "sha256": dict(zip(names, facts, strict=True))}, with_checksum=True)


def check_manifest(folder: Path, *parts: str) -> None:
    """Compares the files in some of a checkpoint's folders with its manifest.

    Args:
      folder: folder of the checkpoint.
      parts: names of folders in it, such as 'state'.

    Raises:
      ChangedError: a file or the manifest is missing or has changed; the folder is named by another step than that of
        the checkpoint; or it contains something that is neither a file nor a folder, such as a pipe, which would block
        the reader.
      OSError: the system cannot read a file.
    """
    _refuse_odd_files(folder)
    try:
        manifest = checked_json(read_regular(folder / FILE, _MOST_BYTES))
        files = manifest["sha256"]
    except FileNotFoundError:
        note_unverified(folder.parent.parent, folder)
        return
    except (ValueError, KeyError):
        raise ChangedError(f"{FILE} is not what was written") from None
    step = manifest.get("step", folder.name)  # an earlier version did not write it
    if str(step) != folder.name:
        raise ChangedError(f"it is the checkpoint of step {step}")
    wanted = {name: facts for name, facts in files.items() if name.split("/")[0] in parts}
    paths = [folder / name for name in wanted]
    for path, (size, _) in zip(paths, wanted.values(), strict=True):
        try:
            same = path.stat().st_size == size
        except (FileNotFoundError, NotADirectoryError):
            same = False
        if not same:
            raise ChangedError(f"{path.relative_to(folder)} is not what was written")
    for path, (_, then), now in zip(paths, wanted.values(), _hashes(paths), strict=True):
        if now != then:
            raise ChangedError(f"{path.relative_to(folder)} is not what was written")


def _refuse_odd_files(folder: Path) -> None:
    """Raises ChangedError if a folder contains, at any depth, anything but files, folders and links to these."""
    seen: set[tuple[int, int]] = set()
    left = [folder]
    while left:
        here = left.pop()
        with os.scandir(here) as entries:
            for entry in entries:
                try:
                    if entry.is_dir():
                        found = entry.stat()
                        if (found.st_dev, found.st_ino) not in seen:  # links may form a cycle
                            seen.add((found.st_dev, found.st_ino))
                            left.append(Path(entry.path))
                    elif not entry.is_file():
                        check_regular(entry.path)
                except FileNotFoundError:  # a broken link
                    continue
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    name = Path(entry.path).relative_to(folder)
                    raise ChangedError(f"{name}: {error.strerror}") from None


_known: dict[tuple[int, ...], str] = {}  # cache of this process: (device, inode, size, times) of a file -> its hash
_SETTLED = 2.0  # seconds; a younger file may change again within the resolution of its time stamps


def _hash(path: Path) -> str:
    found = path.stat()
    state = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    if state not in _known:
        digest = file_hash(path)
        if time.time() - found.st_ctime < _SETTLED:
            return digest
        _known[state] = digest
    return _known[state]


def _hashes(paths: list[Path]) -> list[str]:
    """Hashes files in parallel threads; hashing releases the GIL."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(_hash, paths))
