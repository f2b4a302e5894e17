"""The hashes of a checkpoint's files: written before it gets its name, compared before anything of it is used.

``manifest.json`` lies in the checkpoint's folder and has the size and the SHA-256 of every file there, but for Orbax's
two notes about when the save ended, which nothing reads. It has a checksum of its own, so that a change in it is no
less of a damage. A checkpoint of an earlier version has none: it is used, and that it is not verified is said.
"""

from __future__ import annotations

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jaxvit.files import check_regular, checked_json, file_hash, note_unverified, read_regular, write_json

FILE = "manifest.json"
_MOST_BYTES = 1 << 26  # of that file
_WRITTEN_LATER = ("_CHECKPOINT_METADATA", "commit_success.txt")


class ChangedError(ValueError):
    """A file is not what was written; the text names it."""


def write_manifest(folder: Path) -> None:
    """Notes the files that a checkpoint's folder holds now."""
    found = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in _WRITTEN_LATER)
    names = [p.relative_to(folder).as_posix() for p in found]
    facts = [[p.stat().st_size, digest] for p, digest in zip(found, _hashes(found), strict=True)]
    write_json(folder / FILE, {"sha256": dict(zip(names, facts, strict=True))}, with_checksum=True)


def check_manifest(folder: Path, *parts: str) -> None:
    """Compares the files in some of a checkpoint's folders with its manifest.

    Args:
      folder: of the checkpoint.
      parts: names of folders in it, such as 'state'.

    Raises:
      ChangedError: a file is missing or has changed, or the manifest has; or anything in the checkpoint's folder is
        neither file nor folder: to read a pipe or a device may never end.
      OSError: the system does not let one be read.
    """
    _refuse_odd_files(folder)
    try:
        files = checked_json(read_regular(folder / FILE, _MOST_BYTES))["sha256"]
    except FileNotFoundError:
        note_unverified(folder.parent.parent, folder)
        return
    except (ValueError, KeyError):
        raise ChangedError(f"{FILE} is not what was written") from None
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
    """Raises ChangedError for what lies in a folder, however deep, and is neither file nor folder nor a link to one."""
    seen: set[tuple[int, int]] = set()
    left = [folder]
    while left:
        here = left.pop()
        with os.scandir(here) as entries:
            for entry in entries:
                try:
                    if entry.is_dir():
                        found = entry.stat()
                        if (found.st_dev, found.st_ino) not in seen:  # links may go round in circles
                            seen.add((found.st_dev, found.st_ino))
                            left.append(Path(entry.path))
                    elif not entry.is_file():
                        check_regular(entry.path)
                except FileNotFoundError:  # a link that leads nowhere
                    continue
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    name = Path(entry.path).relative_to(folder)
                    raise ChangedError(f"{name}: {error.strerror}") from None


_known: dict[tuple[int, ...], str] = {}  # by this process: what a file was when it was hashed, and its hash
_SETTLED = 2.0  # seconds: what was changed later than that may change again without another time


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
    """Of files, several at a time: hashing lets other threads run."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(_hash, paths))
