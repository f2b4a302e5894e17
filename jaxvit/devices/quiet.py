"""Pauses long background work while something is timed on the same machine.

Two file locks (flock) coordinate them. A lock ends with the process that holds it.

asked      Timings and test runs hold it, shared, as long as they run.
working    Background work holds it while it computes. Between its steps it checks `asked`: if that is held, it releases
           `working`, and takes it again later. A timing waits for the release before it begins.

The lock files are in the folder ``JAXVIT_LOCKS``, or else in the user's cache folder under the machine's name.
`jaxvit benchmark` and `./launch.sh test` request a quiet machine, and so does any command that starts with

    python -m jaxvit.devices.quiet COMMAND [ARGUMENTS]
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxvit.errors import UsageError
from jaxvit.files import Lock, is_locked, local_path, user_cache

PATIENCE = 120.0  # seconds; background work does not check `asked` while it compiles or draws figures
_POLL = 0.1


def locks() -> Path:
    """Returns the folder of the lock files."""
    if named := os.environ.get("JAXVIT_LOCKS"):
        return Path(local_path(named))
    return user_cache() / "jaxvit" / "locks" / (platform.node() or "here")


def lock_file(name: str) -> Path:
    """Returns the path of a lock file, and makes its folder if it is missing.

    Raises:
      OSError: the folder cannot be made.
    """
    locks().mkdir(parents=True, exist_ok=True)
    return locks() / name


@contextlib.contextmanager
def asked(patience: float = PATIENCE) -> Iterator[list[Lock]]:
    """Pauses background work on this machine inside the `with` block. Several processes may do so at the same time.

    Args:
      patience: longest time to wait for the work to pause, in seconds. After it, a warning says that the work goes on.

    Yields:
      The locks, so that a program that replaces this process can keep them.
    """
    with contextlib.ExitStack() as stack:
        try:
            held = [stack.enter_context(Lock(lock_file("asked"), shared=True))]
            held += _wait_for_work(stack, patience)
        except OSError as error:
            _say(f"warning: background work is not paused: {locks()} cannot be used ({error.strerror})")
            held = []
        yield held


def _wait_for_work(stack: contextlib.ExitStack, patience: float) -> list[Lock]:
    started, told = time.monotonic(), False
    while True:
        with contextlib.suppress(UsageError):
            return [stack.enter_context(Lock(lock_file("working"), "busy", shared=True))]
        if time.monotonic() - started >= patience:
            _say(f"warning: the machine is not quiet: after {patience:g} s a process still holds {locks() / 'working'}")
            return []
        if not told and (told := time.monotonic() - started > 1):
            _say("waiting until jaxvit reproduce --queue pauses")
        time.sleep(_POLL)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def is_asked() -> bool:
    """Whether a process requests a quiet machine now."""
    return is_locked(lock_file("asked"))


def try_to_work() -> Lock | None:
    """Takes the lock `working`. Returns None if a process requests a quiet machine or other work holds the lock.

    Raises:
      OSError: the lock file cannot be made.
    """
    if is_asked():
        return None
    try:
        return Lock(lock_file("working"), "busy")
    except UsageError:
        return None


def main(words: Sequence[str]) -> int:
    """Replaces this process by the command `words`, which holds the locks as long as it runs."""
    if not words:
        _say("jaxvit.devices.quiet: name a command, such as: python -m jaxvit.devices.quiet python my_timing.py")
        return 2
    with asked() as held:
        for lock in held:
            os.set_inheritable(lock.fileno(), True)
        try:
            os.execvp(words[0], list(words))
        except OSError as error:
            _say(f"jaxvit.devices.quiet: {words[0]} cannot be started ({error.strerror})")
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
