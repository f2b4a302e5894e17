"""Requests to stop: SIGTERM (a scheduler), SIGHUP (a closed terminal), Ctrl-C. The current step is finished and saved.

In a run of several processes, a signal to one process stops all at the same step. jax's preemption service, which
listens to SIGTERM, agrees on the step; the other signals are forwarded as SIGTERM.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils

from jaxvit.errors import INTERRUPTED, STOPPED

SAVES_THE_STEP = "stopping after this step, to save it"

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# The service agrees on a count of its calls, which must be the same in all processes: only `StopRequest` may call it.
_LOOKS = itertools.count(1)


class StopRequest:
    """Context manager that turns signals into a request to stop.

    The loop also asks it whether to pause, and whether to save between the saves of the config. This class answers no;
    a subclass may answer yes, in a run of one process.

    Attributes:
      exit_code: 0 before any signal; 75 after SIGTERM or SIGHUP, with or without Ctrl-C; 130 after Ctrl-C alone. A
        second Ctrl-C stops at once.
      answer: message for the first Ctrl-C.
      held_seconds: total seconds that `hold` has waited.
    """

    def __init__(self) -> None:
        self.exit_code = 0
        self.answer = SAVES_THE_STEP
        self.held_seconds = 0.0
        self._interrupted = False
        self._several = jax.distributed.is_initialized()
        self._previous: dict[int, object] = {}

    def check(self) -> int:
        """Returns the exit code to stop with after saving the current step; 0 = continue. Call it once per step.

        All processes of a run stop at the same step; the exit code of each depends on its own signals.
        """
        if not self._several:
            return self.exit_code
        return (self.exit_code or STOPPED) if multihost_utils.reached_preemption_sync_point(next(_LOOKS)) else 0

    def must_hold(self) -> bool:
        """Returns whether to call `hold` before the next computation. Call it once per step or batch."""
        return False

    def hold(self) -> None:
        """Waits until the run may continue or must stop. Finish dispatched steps before calling it."""

    def save_is_due(self) -> bool:
        """Returns whether to save after this step. Call it once per step."""
        return False

    def note_save(self) -> None:
        """Call this after every save."""

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if self._several and number == signal.SIGTERM:
                    continue  # jax's handler needs it
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue  # nohup ignores SIGHUP on purpose; a shell's `&` ignores SIGINT, but `kill -INT` must work
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number != signal.SIGINT:
            self.exit_code = STOPPED
            self._tell_the_others()
            return
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True
        self.exit_code = self.exit_code or INTERRUPTED
        # Writes to the descriptor: the signal may interrupt a print, and the terminal may be closed.
        with contextlib.suppress(OSError):
            os.write(2, f"{self.answer}; Ctrl-C again stops at once\n".encode())
        self._tell_the_others()

    def _tell_the_others(self) -> None:
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
