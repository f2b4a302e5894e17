"""The hashes of a checkpoint's files: written before it gets its name, compared before anything of it is used.

``manifest.json`` lies in the checkpoint's folder and has the size and the SHA-256 of every file there, but for Orbax's
two notes about when the save ended, which nothing reads. It has a checksum of its own, so that a change in it is no
less of a damage. A checkpoint of an earlier version has none: it is used, and that it is not verified is said.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jaxvit.files import checked_json, file_hash, note_unverified, write_json

FILE = "manifest.json"
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
      ChangedError: a file is missing or has changed, or the manifest has.
      OSError: the system does not let one be read.
    """
    try:
        files = checked_json((folder / FILE).read_bytes())["sha256"]
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


def _hashes(paths: list[Path]) -> list[str]:
    """Of files, several at a time: hashing lets other threads run."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(file_hash, paths))
