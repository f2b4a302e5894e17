"""Handles standard streams that are closed, full or broken: a command still ends with a clear line and exit code."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from jaxvit.errors import UsageError
from jaxvit.shown import terminal

# The results of these verbs are files; what they print is progress.
_WRITE_FILES = ("train", "sweep", "evaluate", "export", "reproduce")


def open_missing_streams() -> set[str]:
    """Opens /dev/null for standard streams that the parent process closed; returns their names.

    Python sets a closed stream to None and gives its number to the next file that it opens: text that a library writes
    to stderr would end up in a checkpoint.
    """
    closed = set()
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # in this order: a new file gets the lowest
        if getattr(sys, name) is None:
            closed.add(name)
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, for as long as the process lives
    return closed


def escape_unknown_characters() -> None:
    """Makes stdout and stderr print an escape for a character such as '×' that the terminal's encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def needs_stdout(words: Sequence[str]) -> bool:
    """True if a command writes no files: its result is its printed output."""
    return not words or words[0] not in _WRITE_FILES or bool({"--help", "-h", "--json", "--dry_run"} & set(words))


def refuse_closed_stdout(words: list[str]) -> NoReturn:
    """Runs instead of a verb that needs the closed standard output; raises UsageError."""
    what = " ".join(["jaxvit", *words[:1]])
    raise UsageError(f"standard output is closed, and {what} prints there; open it, or redirect it to a file (> FILE)")


def discard_output() -> None:
    """Sends the rest of standard output to /dev/null, including text that is still buffered."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def print_error(message: object) -> None:
    """Prints ``jaxvit: message`` on stderr. If the stream fails too, only the exit code remains."""
    try:
        sys.stdout.flush()
    except OSError:
        discard_output()
    with contextlib.suppress(OSError):
        print(f"jaxvit: {terminal(message)}", file=sys.stderr, flush=True)
