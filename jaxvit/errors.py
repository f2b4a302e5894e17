"""The ways a command can end other than well, and the exit code that each one means.

0 done; 1 done, but some inputs failed; 2 the user's mistake; 70 the run cannot go on; 75 stopped by SIGTERM or
preemption with its state saved (start it again); 130 stopped by Ctrl-C with its state saved.
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
    """The user's mistake. The message is one line that names the thing and the remedy; exit code 2."""


class DamagedCheckpointError(UsageError):
    """A checkpoint's files are not what was written. Not raised for what may be better at the next try."""


class RunFailedError(Exception):
    """The run cannot go on (not finite, out of memory, disk full). One line; exit code 70."""


class StoppedError(Exception):
    """The run was asked to stop and its state is saved. Carries the exit code, 75 or 130."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the error's kind where it has no text."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def is_disk_full(error: OSError) -> bool:
    """Whether it is the disk, or the user's share of it, that has no room left."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def disk_full(error: OSError, kept: str = "") -> str:
    """The one line for it; `kept` says what survives."""
    where = f" while writing {error.filename}" if error.filename else ""
    return f"the disk is full{where}{kept}. Make room and start again"


def nearest(word: str, candidates: Iterable[str]) -> str:
    """A phrase such as `` (did you mean 'depth'?)``, or an empty string when nothing is near."""
    found = difflib.get_close_matches(word, [other for other in candidates if other != word], n=1, cutoff=0.5)
    return f" (did you mean '{found[0]}'?)" if found else ""
