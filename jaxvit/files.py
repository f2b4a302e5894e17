"""Files, once for all: JSON and its checksums, whole-or-nothing writes, locks, odd paths, what comes with us.

A file that jaxvit writes goes through `replaced`: it is written beside its place, synced and then moved, so that a kill
or a full disk leaves the old file or the new one, never half of one. Whole folders (checkpoints, exports, the cache of
decoded images) are moved to their place by whoever writes them.
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
    """Whether what a file says is a finite number from `least` to `most`; true and false are none.

    Example:
      >>> is_number(0.5, 0, 1), is_number(True), is_number("897 %")
      (True, False, False)
    """
    return type(value) in (int, float) and -math.inf < value < math.inf and least <= value <= most


def require(right: bool, file: Path, reason: str, remedy: str) -> None:
    """Raises UsageError with the reason why a file cannot be used and what to do about it, unless all is right."""
    if not right:
        raise UsageError(f"{file} cannot be read ({reason}); {remedy}")


# What a file that is none is called; to open one of these may wait for ever, and to read it may never end.
_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}
_MOST_JSON = 1 << 28  # bytes


def check_regular(path: Path | str) -> os.stat_result:
    """Looks at a file before it is opened.

    Raises:
      OSError: it is not there, or no regular file; `strerror` says what it is.
    """
    found = os.stat(path)
    kind = stat.S_IFMT(found.st_mode)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if kind != stat.S_IFREG:
        raise OSError(errno.EINVAL, f"it is {_KINDS.get(kind, 'something else')}, not a file", str(path))
    return found


def read_regular(path: Path | str, most: int, limit: str = "") -> bytes:
    """The bytes of a regular file.

    Args:
      path: of the file.
      most: bytes that it may have.
      limit: what is called so by the user: 'max_bytes'.

    Raises:
      OSError: it is none, has more, or cannot be read; `strerror` says why.
    """
    size = check_regular(path).st_size
    if size <= most:
        with open(path, "rb") as file:
            data = file.read(most + 1)  # of files that the system makes up, the size is not known before
        if len(data) <= most:
            return data
        size = len(data)
    allows = f"{limit} allows {most:,}" if limit else f"at most {most:,} are read"
    raise OSError(errno.EFBIG, f"it has {size:,} bytes, and {allows}", str(path))


CHECKSUM = "checksum"  # the key, at the top of a JSON file, of the hash of all the rest


def checksum(value: Any) -> str:
    """``sha256:`` and 64 hex digits of what JSON can say, however it is laid out in a file."""
    plain = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(plain.encode()).hexdigest()}"


def _finite(word: str) -> float:
    if not math.isfinite(value := float(word)):
        raise ValueError(f"it has the number {word:.20}, which is not finite")
    return value


_JSON = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)


_MOST_NESTED = 100  # levels of a JSON file; what reads its content may recurse


def parse_json(data: bytes | str) -> Any:
    """What JSON says.

    Raises:
      ValueError: it is none, or has a number that is not finite: NaN, 1e400.
    """

    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        found = _JSON.decode(text.removeprefix("\ufeff"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise ValueError("it is no JSON") from None
    except ValueError as error:
        # Python reads no integer of more than 4,300 digits.
        raise ValueError("it has a number that is too long" if "digits" in str(error) else str(error)) from None
    level = [found] if isinstance(found, dict | list) else []
    for _ in range(_MOST_NESTED):
        inside = (value.values() if isinstance(value, dict) else value for value in level)
        level = [each for values in inside for each in values if type(each) in (dict, list)]
        if not level:
            return found
    raise ValueError("it is nested too deeply")


def checked_json(data: bytes | str) -> dict[str, Any]:
    """What a JSON file with a checksum holds, without that.

    Raises:
      ValueError: it is none, or has changed since it was written.
    """
    found = parse_json(data)
    said = found.pop(CHECKSUM, None) if isinstance(found, dict) else None
    if said is None:
        raise ValueError("it has no checksum")
    if said != checksum(found):
        raise ValueError("its content is not what was written")
    return found


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits.

    Raises:
      OSError: it cannot be read, or is no regular file.
    """
    check_regular(path)
    with naming(path), path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


_unverified: set[Path] = set()


def note_unverified(folder: Path, what: Path) -> None:
    """Says on stderr that something of a folder has no checksum; once for each folder, whatever else of it has none."""
    if folder.absolute() not in _unverified:
        _unverified.add(folder.absolute())
        print(f"note: {what} has no checksum, as in earlier versions: it is not verified", file=sys.stderr, flush=True)


def read_json(
    path: Path,
    remedy: str = "it is damaged: put a copy of it back, or use a new --workdir",
    *,
    expects_checksum: bool = False,
) -> Any:
    """What a JSON file holds, without its checksum, which is compared where there is one.

    Args:
      path: of the file.
      remedy: what to do if it cannot be read; ends the error's sentence.
      expects_checksum: say so where there is none.

    Raises:
      UsageError: there is no such file, it is no JSON, or its content has changed since it was written.
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
    except ValueError as error:  # cut off, another text, no text
        reason = str(error)
    raise UsageError(f"{path} cannot be read ({reason}); {remedy}")


@contextlib.contextmanager
def replaced(path: Path, *, unique: bool = False, sync: bool = True) -> Iterator[Path]:
    """Yields a path beside `path` to write to; on a clean exit what lies there is synced and becomes `path`.

    If the body raises, what it wrote is removed and `path` stays as it was; an error of the system names `path`. What a
    killed process leaves there has a fixed hidden name, which the next write uses again.

    Args:
      path: the file to write.
      unique: several processes may write this file at the same time: each gets a name of its own.
      sync: wait until the content is on disk. False for files that are quickly written again, such as exported images.
    """
    beside = path.with_name(f".{path.name}.{os.getpid() if unique else 'tmp'}")
    with naming(path):
        try:
            beside.unlink(missing_ok=True)  # a link or a pipe of that name would be written through
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
    """Names `path` in operating system errors raised inside: writing and syncing report no file name.

    So do errors that name a temporary file beside `path`, or anything below the folder `draft`.
    """
    try:
        yield
    except OSError as error:
        said = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
        if said is None or said.name.startswith(f".{path.name}.") or (draft and said.is_relative_to(draft)):
            error.filename, error.filename2 = str(path), None
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with replaced(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, with_checksum: bool = False) -> None:
    """Writes a JSON file, whole or not at all; what JSON does not know is written as its `str`.

    With a checksum, which a dict can have, `read_json` knows when a bit of it has changed.
    """
    if with_checksum:
        value = json.loads(json.dumps(value, default=str))
        value |= {CHECKSUM: checksum(value)}
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any] | Sequence[Any]]) -> str:
    """CSV with a header, its lines ended by a line feed.

    Args:
      columns: the header.
      rows: each {column: value}, where a column that it lacks is an empty cell, or its values in the columns' order.

    Raises:
      ValueError: a row has a key that is no column, or more values than there are columns.
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
    """Writes a CSV file, whole or not at all; see `csv_text`."""
    write_text(path, csv_text(columns, rows))


def sync_folder(folder: Path) -> None:
    """Has the disk keep the names in a folder: after a power cut a file that was moved there is there."""
    with naming(folder):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


_made: contextvars.ContextVar[list[Path] | None] = contextvars.ContextVar("made", default=None)


def make_folder(folder: Path) -> None:
    """Makes a folder, and those above it, where they are missing; see `no_empty_folders`."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    if (noted := _made.get()) is not None:
        noted += missing[::-1]


@contextlib.contextmanager
def no_empty_folders() -> Iterator[None]:
    """If the body raises, folders that `make_folder` made within and that are empty still are removed again.

    A command that is refused so leaves no folder behind, however late it is refused.
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
    """Makes a folder where it is missing, and tries whether files can be written there: before the work, not after it.

    Raises:
      UsageError: it cannot be written; the remedy ends the sentence.
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


# 'gs://bucket/run', and what `Path` makes of it: 'gs:/bucket/run'. A single letter is a Windows drive.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes, of Linux and most file systems
_WITHIN_NAMES = re.compile("[\x01-\x1f\x7f]")


def local_path(text: str | os.PathLike[str]) -> str:
    """A path that a user names, '~' expanded; every flag, config key and variable that names one is read through it.

    Args:
      text: the path; '' = none, and comes back as it is.

    Raises:
      UsageError: it is a URL, or nothing can have such a name.

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
    """The user's cache folder: XDG_CACHE_HOME, which counts where it is an absolute path, else ~/.cache."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(named) and "\0" not in named:
        return Path(named)
    home = os.path.expanduser("~")
    # Without a home, as in some containers, there is at least the folder for temporary files.
    return Path(home) / ".cache" if os.path.isabs(home) else Path(tempfile.gettempdir()) / f"jaxvit-{os.getuid()}"


def refuse_backslash(path: Path, flag: str = "") -> None:
    """Raises UsageError where checkpoints cannot lie at a path: TensorStore takes a backslash for a slash."""
    if "\\" in str(path.absolute()):
        raise UsageError(
            f"{flag}{path}: checkpoints cannot be kept below a name with a backslash ({path.absolute()}); name or move "
            "the folder without it"
        )


def take_brackets_literally() -> None:
    """Lets Orbax and TFDS find files below folders whose names have brackets, stars or question marks.

    They list folders by `etils.epath.Path.glob`, which takes the folder's own name for a part of the pattern: what lies
    below ``runs [1]`` is then not found.
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
    """The folder 'configs' or 'results' that comes with this package.

    In an installed package they lie inside it (jaxvit/configs), in a checkout beside it.
    """
    package = Path(__file__).resolve().parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


class Lock:
    """A lock on a file or folder, held from construction to `close` or to the end of a `with` block.

    It is the system's (flock): it ends with the process, however that ends.

    Args:
      path: of the lock file, made when missing, or of a folder that is there.
      busy: what to say when another process holds it; '' = wait for that one.
      shared: any number of processes hold it so at the same time; none beside one that holds it alone.

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
        """The descriptor of the open file; a program that inherits it holds the lock too."""
        return self._descriptor

    def close(self) -> None:
        """Gives the lock back; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def is_locked(path: Path) -> bool:
    """Whether a process holds the `Lock` of a file that is there."""
    try:
        Lock(path, "busy").close()
    except UsageError:
        return True
    return False


def locked_folder(folder: Path, busy: str = "") -> Lock:
    """A `Lock` on a folder itself, made when missing: it leaves no file behind."""
    make_folder(folder)
    return Lock(folder, busy)
