"""File operations: JSON with checksums, atomic writes, locks, unusual paths, files shipped with the package.

jaxvit writes files through `replaced`: to a temporary file in the same folder, which is synced and then renamed. A kill
or a full disk thus leaves the old file or the new one, never a partial one. Modules that write whole folders
(checkpoints, exports, the cache of decoded images) rename them in the same way.
"""

from __future__ import annotations

import contextlib
import contextvars
import csv
import errno
import fcntl
import glob
import hashlib
import io
import json
import math
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxvit.errors import UsageError, is_disk_failure
from jaxvit.shown import csv_cell, terminal

INSTALLED_IN = Path(__file__).parents[1]  # the folder that holds this package: a checkout, or site-packages


def is_number(value: object, least: float = -math.inf, most: float = math.inf) -> bool:
    """Whether a value read from a file is a finite number from `least` to `most`; bools are not numbers.

    Example:
      >>> is_number(0.5, 0, 1), is_number(True), is_number("897 %")
      (True, False, False)
    """
    return type(value) in (int, float) and -math.inf < value < math.inf and least <= value <= most


def require(right: bool, file: Path, reason: str, remedy: str) -> None:
    """Raises UsageError with the reason why a file cannot be read and a remedy, unless `right` is true."""
    if not right:
        raise UsageError(f"{file} cannot be read ({reason}); {remedy}")


# Names of irregular files. Opening one of these may block forever, and reading it may never end.
_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}
_MOST_JSON = 1 << 28  # bytes


def check_regular(path: Path | str) -> os.stat_result:
    """Checks, before a file is opened, that it is a regular file, and returns its status.

    Raises:
      OSError: the file is missing or not a regular file; `strerror` says which.
    """
    found = os.stat(path)
    kind = stat.S_IFMT(found.st_mode)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if kind != stat.S_IFREG:
        raise OSError(errno.EINVAL, f"it is {_KINDS.get(kind, 'something else')}, not a file", str(path))
    return found


def read_regular(path: Path | str, most: int, limit: str = "") -> bytes:
    """Reads a regular file of limited size.

    Args:
      path: the file.
      most: largest allowed size in bytes.
      limit: the user's name of this limit, such as 'max_bytes', for the error.

    Raises:
      OSError: it is not a regular file, too large, or cannot be read; `strerror` says which.
    """
    size = check_regular(path).st_size
    if size <= most:
        with open(path, "rb") as file:
            data = file.read(most + 1)  # virtual files, as in /proc, report size 0
        if len(data) <= most:
            return data
        size = len(data)
    allows = f"{limit} allows {most:,}" if limit else f"at most {most:,} are read"
    raise OSError(errno.EFBIG, f"it has {size:,} bytes, and {allows}", str(path))


CHECKSUM = "checksum"  # top-level key of a JSON file: the hash of all other keys


def checksum(value: Any) -> str:
    """Returns ``sha256:`` and 64 hex digits for a JSON value; whitespace and key order in the file do not matter."""
    plain = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(plain.encode()).hexdigest()}"


def _finite(word: str) -> float:
    if not math.isfinite(value := float(word)):
        raise ValueError(f"it has the number {word:.20}, which is not finite")
    return value


_JSON = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)


_MOST_NESTED = 100  # levels of a JSON file; what reads its content may recurse


def parse_json(data: bytes | str) -> Any:
    """Parses JSON strictly.

    Raises:
      ValueError: invalid JSON, or a number that is not finite, such as NaN or 1e400.
    """

    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        found = _JSON.decode(text.removeprefix("\ufeff"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise ValueError("it is not JSON") from None
    except ValueError as error:
        # Python does not parse integers of more than 4,300 digits.
        raise ValueError("it has a number that is too long" if "digits" in str(error) else str(error)) from None
    level = [found] if isinstance(found, dict | list) else []
    for _ in range(_MOST_NESTED):
        inside = (value.values() if isinstance(value, dict) else value for value in level)
        level = [each for values in inside for each in values if type(each) in (dict, list)]
        if not level:
            return found
    raise ValueError("it is nested too deeply")


def checked_json(data: bytes | str) -> dict[str, Any]:
    """Parses JSON that must have a checksum, verifies it, and returns the value without it.

    Raises:
      ValueError: invalid JSON, no checksum, or the content has changed since it was written.
    """
    found = parse_json(data)
    said = found.pop(CHECKSUM, None) if isinstance(found, dict) else None
    if said is None:
        raise ValueError("it has no checksum")
    if said != checksum(found):
        raise ValueError("its content is not what was written")
    return found


def file_hash(path: Path) -> str:
    """Returns the SHA-256 of a file, as 64 hex digits.

    Raises:
      OSError: it cannot be read, or is not a regular file.
    """
    check_regular(path)
    with naming(path), path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


_unverified: set[Path] = set()


def note_unverified(folder: Path, what: Path) -> None:
    """Prints on stderr that a file or folder has no checksum; only the first time for each `folder`."""
    if folder.absolute() not in _unverified:
        _unverified.add(folder.absolute())
        print(f"note: {what} has no checksum, as in earlier versions: it is not verified", file=sys.stderr, flush=True)


def read_json(
    path: Path,
    remedy: str = "it is damaged: put a copy of it back, or use a new --workdir",
    *,
    expects_checksum: bool = False,
) -> Any:
    """Reads a JSON file. If it has a checksum, verifies it and removes it from the result.

    Args:
      path: the file.
      remedy: what to do if it cannot be read; the end of the error message.
      expects_checksum: print a note if there is no checksum.

    Raises:
      UsageError: the file is missing, is not JSON, or has changed since it was written.
    """
    try:
        found = parse_json(read_regular(path, _MOST_JSON))
        said = found.pop(CHECKSUM, None) if isinstance(found, dict) else None
        if said is None:
            if expects_checksum and isinstance(found, dict):
                note_unverified(path.parent, path)
            return found
        if said == checksum(found):
            return found
        reason = "its content is not what was written"
        remedy += f"; if you have changed it yourself, delete '{CHECKSUM}' from it"
    except OSError as error:
        reason = error.strerror
    except ValueError as error:
        reason = str(error)
    raise UsageError(f"{path} cannot be read ({reason}); {remedy}")


@contextlib.contextmanager
def replaced(path: Path, *, unique: bool = False, sync: bool = True) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`. When the block exits, that file is synced and renamed to `path`.

    If the block raises, the temporary file is removed and `path` stays unchanged; errors of the operating system name
    `path`. A killed process leaves a hidden file with a fixed name, which the next write overwrites.

    Args:
      path: the file to write.
      unique: use a name per process, for files that several processes may write at the same time.
      sync: wait until the content is on disk. False for files that are easily written again, such as exported images.
    """
    beside = path.with_name(f".{path.name}.{os.getpid() if unique else 'tmp'}")
    with naming(path):
        try:
            beside.unlink(missing_ok=True)  # else the block could write through a link or a pipe of that name
            yield beside
            if sync:
                with beside.open("rb") as file:
                    os.fsync(file.fileno())
            os.replace(beside, path)
        finally:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path, draft: Path | None = None) -> Iterator[None]:
    """Makes OSErrors raised in the block name `path`: errors of writing and syncing have no file name.

    Errors that name a temporary file of `path`, or a file in the folder `draft`, name `path` instead.
    """
    try:
        yield
    except OSError as error:
        said = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
        if said is None or said.name.startswith(f".{path.name}.") or (draft and said.is_relative_to(draft)):
            error.filename, error.filename2 = str(path), None
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with replaced(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, with_checksum: bool = False) -> None:
    """Writes a JSON file atomically; values that JSON lacks are written as their `str`.

    `with_checksum` adds a checksum to a dict, with which `read_json` detects any change.
    """
    if with_checksum:
        value = json.loads(json.dumps(value, default=str))
        value |= {CHECKSUM: checksum(value)}
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any] | Sequence[Any]]) -> str:
    r"""Returns CSV text with a header; lines end with '\n'.

    Args:
      columns: names of the columns.
      rows: each a dict {column: value}, with missing columns left empty, or a sequence of values in column order.

    Raises:
      ValueError: a row has an unknown column, or more values than columns.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    known = set(columns)
    for row in rows:
        if isinstance(row, Mapping):
            if stray := row.keys() - known:
                raise ValueError(f"no column is called {min(stray)!r}")
            row = [row.get(column, "") for column in columns]
        elif len(row) > len(columns):
            raise ValueError(f"{len(row)} values for {len(columns)} columns")
        writer.writerow([csv_cell(value) for value in row])
    return stream.getvalue()


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any] | Sequence[Any]]) -> None:
    """Writes a CSV file atomically; see `csv_text`."""
    write_text(path, csv_text(columns, rows))


def sync_folder(folder: Path) -> None:
    """Syncs a folder, so that renames in it survive a power cut."""
    with naming(folder):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


_made: contextvars.ContextVar[list[Path] | None] = contextvars.ContextVar("made", default=None)


def make_folder(folder: Path) -> None:
    """Creates a folder and its parents if they are missing; see `no_empty_folders`."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    if (noted := _made.get()) is not None:
        noted += missing[::-1]


@contextlib.contextmanager
def no_empty_folders() -> Iterator[None]:
    """If the block raises, removes folders that `make_folder` created in it and that are still empty.

    A command that fails thus leaves no empty folders behind.
    """
    made: list[Path] = []
    token = _made.set(made)
    try:
        yield
    except BaseException:
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    finally:
        _made.reset(token)


def make_writable(folder: Path, remedy: str) -> None:
    """Creates a folder if it is missing, and checks that files can be written there, before any long computation.

    Args:
      folder: the folder.
      remedy: the end of the error message.

    Raises:
      UsageError: the folder cannot be written.
      OSError: the disk is full, or fails.
    """
    try:
        make_folder(folder)
        with naming(folder), tempfile.NamedTemporaryFile(dir=folder, prefix="."):
            pass
    except OSError as error:
        if is_disk_failure(error):
            raise
        reason = "it is a file" if folder.is_file() else error.strerror
        raise UsageError(f"{folder} cannot be written ({reason}); {remedy}") from None


# 'gs://bucket/run', and the same after `Path`: 'gs:/bucket/run'. A single letter is a Windows drive.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes, of Linux and most file systems
_WITHIN_NAMES = re.compile("[\x01-\x1f\x7f]")


def local_path(text: str | os.PathLike[str]) -> str:
    """Checks a path from a flag, a config key or an environment variable, and expands '~'.

    Args:
      text: the path; '' = none, and is returned unchanged.

    Raises:
      UsageError: it is a URL, or not a possible path.

    Example:
      >>> local_path("runs/digits")
      'runs/digits'
    """
    text = os.fspath(text)
    shown = terminal(text if len(text) <= 100 else f"{text[:60]}…{text[-30:]}")
    if url := _URL.fullmatch(text):
        scheme, rest = url.groups()
        remedy = (
            "mount the bucket and name the mounted folder, or copy the folder there, or from there, by the store's "
            "own tool"
        )
        if scheme.lower() == "file":
            remedy = f"write it without the scheme: /{terminal(rest.lstrip('/'))}"
        if scheme.lower() == "hf":
            remedy = "`jaxvit convert hf://… --workdir=DIR` makes a folder of weights from there"
        raise UsageError(f"{shown} is a URL, and jaxvit reads and writes files of this machine only: {remedy}")
    try:
        path = os.path.expanduser(text)
        lengths = [len(os.fsencode(name)) for name in path.split("/")]
        possible = "\0" not in path
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise UsageError(f"{shown} has characters that no path can have; leave them out")
    if path.startswith("~"):
        raise UsageError(f"{shown}: there is no such user or home folder; write the whole path")
    size = sum(lengths) + len(lengths) - 1
    if max(lengths) > _LONGEST_NAME:
        raise UsageError(f"{shown}: a name in this path has {max(lengths)} bytes; at most {_LONGEST_NAME} are possible")
    if size > _LONGEST_PATH:
        raise UsageError(f"{shown}: this path has {size} bytes; at most {_LONGEST_PATH} are possible")
    if _WITHIN_NAMES.search(path) and not os.path.lexists(path):
        raise UsageError(f"{shown}: there is no such path, and none is made with control characters in its name")
    return path


def user_cache() -> Path:
    """Returns the user's cache folder: XDG_CACHE_HOME if it is an absolute path, else ~/.cache."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(named) and "\0" not in named:
        return Path(named)
    home = os.path.expanduser("~")
    # Some containers have no home folder: use the folder for temporary files.
    return Path(home) / ".cache" if os.path.isabs(home) else Path(tempfile.gettempdir()) / f"jaxvit-{os.getuid()}"


def refuse_backslash(path: Path, flag: str = "") -> None:
    """Raises UsageError for a path with a backslash: checkpoints cannot be below it, as TensorStore reads a slash."""
    if "\\" in str(path.absolute()):
        raise UsageError(
            f"{flag}{path}: checkpoints cannot be kept below a name with a backslash ({path.absolute()}); name or move "
            "the folder without it"
        )


def take_brackets_literally() -> None:
    """Lets Orbax and TFDS find files below folders whose names have brackets, stars or question marks.

    They list folders with `etils.epath.Path.glob`, which treats the folder's name as part of the pattern and thus finds
    nothing in ``runs [1]``. This function patches it to escape the name.
    """
    from etils.epath.gpath import PosixGPath

    original = PosixGPath.glob
    if getattr(original, "is_literal", False):
        return

    def literal(self: Any, pattern: str) -> Iterator[Any]:
        if self._uri_scheme or "**" in pattern:
            return original(self, pattern)
        return map(type(self), glob.glob(os.path.join(glob.escape(os.fspath(self)), pattern)))

    literal.is_literal = True
    PosixGPath.glob = literal


def packaged(name: str) -> Path:
    """Returns the folder 'configs' or 'results' that is shipped with this package.

    An installed package contains it (jaxvit/configs); in a checkout it is next to the package.
    """
    package = Path(__file__).resolve().parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


class Lock:
    """A lock on a file or folder, held from construction to `close` or to the end of a `with` block.

    It uses flock, so the system releases it when the process ends, even if killed.

    Args:
      path: the lock file, which is created if missing, or an existing folder.
      busy: error message if another process holds the lock; '' = wait until it is released.
      shared: several processes can hold a shared lock at the same time, but not while another holds an exclusive one.

    Raises:
      UsageError: another process holds it.
      OSError: the file cannot be opened.
    """

    def __init__(self, path: Path, busy: str = "", *, shared: bool = False):
        folder = path.is_dir()
        self._descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT, 0o666)
        try:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(self._descriptor, kind | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            self.close()
            raise UsageError(busy) from None
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Returns the descriptor of the open file; a child process that inherits it holds the lock too."""
        return self._descriptor

    def close(self) -> None:
        """Releases the lock; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def is_locked(path: Path) -> bool:
    """Whether a process holds the `Lock` of an existing file."""
    try:
        Lock(path, "busy").close()
    except UsageError:
        return True
    return False


def locked_folder(folder: Path, busy: str = "") -> Lock:
    """Creates a folder if it is missing and returns a `Lock` on the folder itself, which needs no lock file."""
    make_folder(folder)
    return Lock(folder, busy)
