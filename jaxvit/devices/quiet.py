"""A quiet machine for whoever measures: long work that can wait stands still meanwhile.

Two locks of the system (flock), which end with the processes that hold them:

asked      held, shared, by timings and test runs, for as long as they take.
working    held by long work while it computes. It looks at `asked` between its steps, gives `working` back when
           somebody is there, and takes it again when nobody is. A timing waits for that before it begins.

They lie in ``JAXVIT_LOCKS``, or else in the user's cache folder, under the machine's name. `jaxvit benchmark` and
`./launch.sh test` ask; so does any command that is started by

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

PATIENCE = 120.0  # seconds; long work that compiles or draws looks at nothing meanwhile
_POLL = 0.1


def locks() -> Path:
    """The folder of the locks."""
    if named := os.environ.get("JAXVIT_LOCKS"):
        return Path(local_path(named))
    return user_cache() / "jaxvit" / "locks" / (platform.node() or "here")


def lock_file(name: str) -> Path:
    """A lock file in `locks`, whose folder is made when missing.

    Raises:
      OSError: it cannot be made.
    """
    locks().mkdir(parents=True, exist_ok=True)
    return locks() / name


@contextlib.contextmanager
def asked(patience: float = PATIENCE) -> Iterator[list[Lock]]:
    """Within, long work on this machine stands still. Any number of processes may ask at the same time.

    Args:
      patience: seconds to wait at most for work to stand still; then a warning says that it does not.

    Yields:
      The locks, for a program that takes the place of this one.
    """
    with contextlib.ExitStack() as stack:
        try:
            held = [stack.enter_context(Lock(lock_file("asked"), shared=True))]
            held += _wait_for_work(stack, patience)
        except OSError as error:
            _say(f"warning: no quiet machine is asked for: {locks()} cannot be used ({error.strerror})")
            held = []
        yield held


def _wait_for_work(stack: contextlib.ExitStack, patience: float) -> list[Lock]:
    started, told = time.monotonic(), False
    while True:
        with contextlib.suppress(UsageError):
            return [stack.enter_context(Lock(lock_file("working"), "busy", shared=True))]
        if time.monotonic() - started >= patience:
            _say(f"warning: the machine is not quiet: after {patience:g} s something holds {locks() / 'working'} still")
            return []
        if not told and (told := time.monotonic() - started > 1):
            _say("waiting until jaxvit reproduce --queue stands still")
        time.sleep(_POLL)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def is_asked() -> bool:
    """Whether anybody asks for a quiet machine now."""
    return is_locked(lock_file("asked"))


def try_to_work() -> Lock | None:
    """The lock `working`; None while somebody asks for a quiet machine, or other work has it.

    Raises:
      OSError: there can be no lock.
    """
    if is_asked():
        return None
    try:
        return Lock(lock_file("working"), "busy")
    except UsageError:
        return None


def main(words: Sequence[str]) -> int:
    """Becomes the command that `words` are, which then holds the locks for as long as it runs."""
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
