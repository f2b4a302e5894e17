"""Exceptions that end a command, and its exit codes.

0: success. 1: finished, but some inputs failed. 2: the user's mistake. 70: the run cannot continue. 75: stopped by
SIGTERM or preemption, state saved (start the command again). 130: stopped by Ctrl-C, state saved.
"""

from __future__ import annotations

import difflib
import errno
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
    """The run cannot continue (loss not finite, out of memory, disk full), exit code 70. The message is one line."""


class StoppedError(Exception):
    """The run stopped on request, after saving its state. Carries the exit code, 75 or 130."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def first_line(error: BaseException) -> str:
    """The first line of the error's message, or the name of its class if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def is_disk_full(error: OSError) -> bool:
    """True if the disk is full or the user's quota is used up."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def disk_full(error: OSError, kept: str = "") -> str:
    """The one-line message for a full disk. `kept` tells what was saved, such as ``'; checkpoint 300 is kept'``."""
    where = f" while writing {error.filename}" if error.filename else ""
    return f"the disk is full{where}{kept}. Make room and start again"


def nearest(word: str, candidates: Iterable[str]) -> str:
    """A hint such as `` (did you mean 'depth'?)``, or an empty string if no candidate is close."""
    found = difflib.get_close_matches(word, [other for other in candidates if other != word], n=1, cutoff=0.5)
    return f" (did you mean '{found[0]}'?)" if found else ""
