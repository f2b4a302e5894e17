"""Lists the images of a tar shard in the layout of WebDataset: `KEY.jpg` beside `KEY.cls`, or beside `KEY.json`.

A key is the name of a member up to the first dot in its last part. `KEY.cls` holds a whole number or the name of a
class, `KEY.json` an object with one as `label`. Nothing is ever extracted: a member is a place in the file. Links,
devices, sparse members and hidden files are left out, and headers of more than 1 MiB are refused.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from jaxvit.data.image_files import HEIC, NO_IMAGE, RAW, reason_to_skip
from jaxvit.data.image_kinds import HEAD, RAW_ENDINGS, ending_of, has_image_ending, kind_of, reads_heic
from jaxvit.data.shard_index import Listing, is_class_name, is_class_number
from jaxvit.errors import UsageError, first_line
from jaxvit.files import parse_json

LINKS = "links, devices, sparse members and other members that are not plain files"
NO_END = "shards without an end mark, which may have been cut off"
_MOST_HEADER = 1 << 20  # bytes
_MOST_LABEL = 1 << 20  # bytes of a .cls or .json member
_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)
# First bytes of compressed files, and the command that unpacks them.
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ\0": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}


@dataclass
class _Sample:
    """The members of one key."""

    image: tuple[str, int, int] | None = None  # name, offset, size
    labels: dict[str, int | str] = field(default_factory=dict)  # {member: its label}


def list_tar(shard: Path, where: str) -> Listing:
    """Lists the images of a tar file.

    Args:
      shard: the file.
      where: the start of error messages.

    Raises:
      UsageError: it is compressed, damaged or cut off; a key occurs twice; or a label cannot be read. The message names
        shard and member.
      OSError: it cannot be read.
    """
    listing, samples = Listing(), {}
    with shard.open("rb") as file:
        for member in _members(file, shard, where, listing):
            name = member.name
            parts = name.split("/")
            if reason := next(filter(None, map(reason_to_skip, (p for p in parts if p not in (".", "..")))), ""):
                listing.passed_over.note(reason, f"{shard.name}: {name}")
                continue
            split = _KEY.fullmatch(name)
            key, ending = (split[1], split[2].lower()) if split else (name, "")
            sample = samples.setdefault(key, _Sample())
            if ending in ("cls", "json"):
                if name in sample.labels:
                    raise UsageError(f"{where}: {shard}: the member '{name}' occurs twice; a key has one label")
                label = _label(_read(file, member, shard, where), ending, f"{where}: {shard}: the member '{name}'")
                if label is not None:
                    sample.labels[name] = label
                continue
            if reason := _no_image(file, member):
                listing.passed_over.note(reason, f"{shard.name}: {name}")
                continue
            if sample.image:
                raise UsageError(
                    f"{where}: {shard}: the key '{key}' has two images, '{sample.image[0]}' and '{name}'; a key occurs "
                    "once in a shard and has one image"
                )
            sample.image = (name, member.offset_data, member.size)
    for key, sample in samples.items():
        if len(set(sample.labels.values())) > 1:
            raise UsageError(f"{where}: {shard}: the key '{key}' has two labels, in {' and '.join(sample.labels)}")
        label = next(iter(sample.labels.values()), None)
        if sample.image:
            listing.add(*sample.image, label)
        elif label is not None:
            listing.passed_over.note("labels without an image", f"{shard.name}: {next(iter(sample.labels))}")
    return listing


class _Bounded:
    """A file for `tarfile`, which reads a header of any size into memory: refuses large ones, and steps back."""

    def __init__(self, file: IO[bytes]):
        self._file = file

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, place: int, whence: int = 0) -> int:
        if whence == 0 and place < 0:
            raise ValueError("a member begins before the file")
        return self._file.seek(place, whence)

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MOST_HEADER:
            raise ValueError(f"a header has more than {_MOST_HEADER:,} bytes")
        return self._file.read(size)


def _members(file: IO[bytes], shard: Path, where: str, listing: Listing) -> Iterator[tarfile.TarInfo]:
    """Yields the plain files in a tar file; notes the other members."""
    length = os.fstat(file.fileno()).st_size
    head = file.read(8)
    for magic, command in _COMPRESSED.items():
        if head.startswith(magic):
            raise UsageError(
                f"{where}: {shard} is compressed, so that its images cannot be reached one by one; unpack it once "
                f"with `{command} {shard}`, and name the .tar file (images are compressed already)"
            )
    if head.startswith(b"PK\x03\x04"):
        raise UsageError(f"{where}: {shard} is a zip archive; unpack it once with `unzip {shard}`, and name the folder")
    file.seek(0)
    place = -1
    try:
        # tarfile needs only these three methods of a file.
        archive = tarfile.TarFile(fileobj=_Bounded(file), errorlevel=0)  # pyright: ignore[reportArgumentType]
        while True:
            member = archive.next()
            if member is None:
                break
            archive.members = []  # else it keeps all of them
            if member.size < 0 or member.offset <= place:
                raise ValueError(f"the member '{member.name}' has an impossible size or place")
            place = member.offset
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                listing.passed_over.note(LINKS, f"{shard.name}: {member.name}")
                continue
            if member.offset_data + member.size > length:
                raise UsageError(
                    f"{where}: {shard} is cut off: its member '{member.name}' has {member.size:,} bytes at "
                    f"{member.offset_data:,}, and the file has {length:,}; copy it again"
                )
            yield member
        end = archive.offset  # pyright: ignore[reportAttributeAccessIssue]
    except (UsageError, OSError):
        raise
    except Exception as error:  # tarfile raises many kinds of errors on damaged headers
        raise UsageError(
            f"{where}: {shard} cannot be read as a tar file ({first_line(error)[:120]}); copy it again"
        ) from None
    file.seek(end)
    mark = file.read(tarfile.BLOCKSIZE)
    if mark.strip(b"\0"):  # tarfile takes a damaged header for the end
        raise UsageError(f"{where}: {shard} is damaged at byte {end:,}: there is no header of a member; copy it again")
    if len(mark) < tarfile.BLOCKSIZE:
        listing.passed_over.note(NO_END, shard.name)


def _no_image(file: IO[bytes], member: tarfile.TarInfo) -> str:
    """Returns why a member is not an image; '' if it is one. The rule is that of `jaxvit.data.image_files`."""
    ending = ending_of(member.name)
    if ending in RAW_ENDINGS:
        return RAW
    if has_image_ending(member.name) and ending not in (".heic", ".heif", ".hif"):
        return ""
    kind = kind_of(os.pread(file.fileno(), HEAD, member.offset_data)[: member.size], member.size)
    if kind == "HEIF":
        return "" if reads_heic() else HEIC
    return "" if kind or has_image_ending(member.name) else NO_IMAGE


def _read(file: IO[bytes], member: tarfile.TarInfo, shard: Path, where: str) -> bytes:
    if member.size > _MOST_LABEL:
        raise UsageError(
            f"{where}: {shard}: the member '{member.name}' has {member.size:,} bytes, too many for a label"
        )
    return os.pread(file.fileno(), member.size, member.offset_data)


def _label(data: bytes, ending: str, what: str) -> int | str | None:
    """Returns the label in a .cls or .json member; None if a .json member has none."""
    try:
        if ending == "json":
            found = parse_json(data)
            value = found.get("label") if isinstance(found, dict) else None
            if value is None:
                return None
        else:
            value = data.decode().strip()
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{what} is not {'JSON' if ending == 'json' else 'text'} ({first_line(error)[:80]})") from None
    return checked_label(value, what)


def checked_label(value: object, what: str) -> int | str:
    """Returns a label: a whole number of 0 or more (also as text), or the name of a class.

    Args:
      value: the label as stored.
      what: the start of the error message, which names shard and image.

    Raises:
      UsageError: it is neither.
    """
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value.strip()):
        return int(value)
    if isinstance(value, int) and is_class_number(value):
        return value
    if isinstance(value, str) and is_class_name(value.strip()):
        return value.strip()
    shown = repr(value)[:40]
    raise UsageError(f"{what}: {shown} is neither a whole number of 0 or more nor the name of a class")
