"""The ways a command can end other than well, and the exit code that each one means.

0 done; 1 done, but some inputs failed; 2 the user's mistake; 70 the run cannot go on, or the machine fails (a disk, its
rights); 75 stopped by SIGTERM or preemption with its state saved (start it again); 130 stopped by Ctrl-C with its state
saved.
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
    """The user's mistake. The message is one line that names the thing and the remedy; exit code 2."""


class DamagedCheckpointError(UsageError):
    """A checkpoint's files are not what was written. Not raised for what may be better at the next try."""


class RunFailedError(Exception):
    """The run cannot go on (not finite, out of memory, a disk that fails). One line; exit code 70."""


class StoppedError(Exception):
    """The run was asked to stop and its state is saved. Carries the exit code, 75 or 130."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the error's kind where it has no text."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


_BAD_DISK = "See to the disk, or to the network that it hangs on, and start again"
_RIGHTS = "Have the rights to it set, or name another folder, and start again"

# What the system can refuse whoever reads or writes files, where neither the command nor the program is at fault:
# {number: (what has happened, its place in the sentence, what to do)}.
_OF_THE_MACHINE = {
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
        for number in (errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN)
    },
}


def is_disk_full(error: OSError) -> bool:
    """Whether it is the disk, or the user's share of it, that has no room left."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def of_the_machine(error: BaseException | None) -> OSError | None:
    """The error of the system that an error is, comes from, or tells of in its text; None = there is none.

    Native libraries (TensorStore, safetensors, array_record) have the system's number in a sentence only.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
            return error
        text = str(error)
        told = re.search(r"os_error_code='(\d+)'|\(os error (\d+)\)|\[Errno (\d+)\]|\[OS error (\d+)", text)
        number = int(next(filter(None, told.groups()))) if told else _spelled_out(text)
        if number in _OF_THE_MACHINE:
            file = re.search(r"[\"'](/[^\"'\n\\\0]+)", text)
            return OSError(number, os.strerror(number), *([file[1]] if file else []))
        error = error.__cause__
    return None


def _spelled_out(text: str) -> int:
    """The number of the system's error whose own sentence a text has; 0 = none of it."""
    return next((number for number in _OF_THE_MACHINE if os.strerror(number) in text), 0)


def machine_failed(error: OSError, kept: str = "") -> str:
    """The one line for what `of_the_machine` has found: what happened, the file, what to do.

    Args:
      error: its `filename` is named.
      kept: what survives, after a semicolon.
    """
    what, place, remedy = _OF_THE_MACHINE[error.errno]
    where = f" {place} {os.fsdecode(error.filename)}" if isinstance(error.filename, str | bytes) else ""
    return f"{what}{where}{kept}. {remedy}"


def nearest(word: str, candidates: Iterable[str]) -> str:
    """A phrase such as `` (did you mean 'depth'?)``, or an empty string when nothing is near."""
    found = difflib.get_close_matches(word, [other for other in candidates if other != word], n=1, cutoff=0.5)
    return f" (did you mean '{found[0]}'?)" if found else ""
