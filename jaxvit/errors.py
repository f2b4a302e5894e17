"""Exceptions that end a command, and its exit codes.

0: success. 1: finished, but some inputs failed. 2: the user's mistake. 70: the run cannot continue, or the system fails
(a full disk, an I/O error, missing permission). 75: stopped by SIGTERM or preemption, state saved (start the command
again). 130: stopped by Ctrl-C, state saved.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable

DONE = 0
SOME_INPUTS_FAILED = 1
USAGE = 2
CANNOT_GO_ON = 70
STOPPED = 75
INTERRUPTED = 130


class UsageError(Exception):
    """A mistake of the user, exit code 2. The message is one line: what is wrong, and how to fix it."""


class DamagedCheckpointError(UsageError):
    """The files of a checkpoint are corrupt. Not raised for errors that may go away on a retry."""


class RunFailedError(Exception):
    """The run cannot continue (loss not finite, out of memory, an I/O error), exit code 70. The message is one line."""


class StoppedError(Exception):
    """The run stopped on request, after saving its state. Carries the exit code, 75 or 130."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def first_line(error: BaseException) -> str:
    """The first line of the error's message, or the name of its class if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


_BAD_DISK = "See to the disk, or to the network that it hangs on, and start again"
_RIGHTS = "Have the rights to it set, or name another folder, and start again"

# Errors of the operating system that neither the command nor the program causes:
# {number: (what happened, the word before the file's name, what to do)}.
_SYSTEM_ERRORS = {
    errno.ENOSPC: ("the disk is full", "while writing", "Make room and start again"),
    errno.EDQUOT: (
        "the quota of this disk is used up",
        "while writing",
        "Make room, or have it raised, and start again",
    ),
    errno.EROFS: (
        *("the file system is read-only", "at"),
        "Have it mounted for writing, or name another folder, and start again",
    ),
    errno.EACCES: ("permission is denied", "at", _RIGHTS),
    errno.EPERM: ("permission is denied", "at", _RIGHTS),
    errno.EIO: ("the disk reports an error (EIO)", "at", _BAD_DISK),
    errno.EMFILE: ("too many files are open", "at", "Allow more of them (ulimit -n) and start again"),
    errno.ENFILE: ("too many files are open on this machine", "at", "Close some and start again"),
    errno.EFBIG: (
        "a file is larger than allowed",
        "at",
        "Raise the limit (ulimit -f), or use another disk; start again",
    ),
    **{
        number: (f"the disk does not answer ({errno.errorcode[number]})", "at", _BAD_DISK)
        for number in (errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.ENOTCONN)
    },
}


def is_disk_failure(error: OSError) -> bool:
    """True if the disk is full, the user's quota is used up, or the disk reports an error: no other name would help."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def find_system_error(error: BaseException | None) -> OSError | None:
    """The operating system's error behind an exception: itself, a cause of it, or one that its text names; else None.

    Native libraries (TensorStore, safetensors, array_record) give the system's error number only in their text.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _SYSTEM_ERRORS:
            return error
        text = str(error)
        told = re.search(r"os_error_code='(\d+)'|\(os error (\d+)\)|\[Errno (\d+)\]|\[OS error (\d+)", text)
        number = int(next(filter(None, told.groups()))) if told else _spelled_out(text)
        if number in _SYSTEM_ERRORS:
            file = re.search(r"[\"'](/[^\"'\n\\\0]+)", text)
            return OSError(number, os.strerror(number), *([file[1]] if file else []))
        error = error.__cause__
    return None


def _spelled_out(text: str) -> int:
    """The number of the error whose standard text (`os.strerror`) occurs in a text; 0 = none."""
    of_files = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)  # others may be of a network
    return next((number for number in of_files if os.strerror(number) in text), 0)


def describe_system_error(error: OSError, kept: str = "") -> str:
    """The message for an error from `find_system_error`, one line: what happened, which file, what to do.

    Args:
      error: the error; its `filename` is named.
      kept: tells what was saved, as in ``'; the checkpoint of step 300 is kept'``.
    """
    what, place, remedy = _SYSTEM_ERRORS[error.errno]
    where = f" {place} {os.fsdecode(error.filename)}" if isinstance(error.filename, str | bytes) else ""
    return f"{what}{where}{kept}. {remedy}"


def nearest(word: str, candidates: Iterable[str]) -> str:
    """A hint such as `` (did you mean 'depth'?)``, or an empty string if no candidate is close."""
    found = difflib.get_close_matches(word, [other for other in candidates if other != word], n=1, cutoff=0.5)
    return f" (did you mean '{found[0]}'?)" if found else ""
