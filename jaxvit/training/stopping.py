"""Being asked to stop: SIGTERM (a scheduler), SIGHUP (a closed terminal), Ctrl-C. The step is finished and saved.

In a run of several processes a signal to one of them stops all, at the same step: jax's preemption service, which
listens to SIGTERM, agrees on it. There the other signals are passed on as a SIGTERM.
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
# The service agrees on one of its looks, and counts for as long as the process lives; nobody else may look.
_LOOKS = itertools.count(1)


class StopRequest:
    """Context manager that turns signals into a request.

    Attributes:
      exit_code: 0 until a signal came; then 75 for SIGTERM and SIGHUP, also when Ctrl-C came beside them, and 130 for
        Ctrl-C alone. A second Ctrl-C stops at once.
      answer: what a first Ctrl-C is told will happen.
      held_seconds: how long `hold` has waited so far.

    The loop also asks whether to stand still, and whether to save between the saves of the config. Here the answer is
    no; a subclass may say otherwise, in a run of one process.
    """

    def __init__(self) -> None:
        self.exit_code = 0
        self.answer = SAVES_THE_STEP
        self.held_seconds = 0.0
        self._interrupted = False
        self._several = jax.distributed.is_initialized()
        self._previous: dict[int, object] = {}

    def check(self) -> int:
        """0 to go on; the exit code to stop with, once the present step is saved. To be asked once a step.

        All processes of a run get the same answer at the same step, but for the code: one stopped by Ctrl-C says so.
        """
        if not self._several:
            return self.exit_code
        return (self.exit_code or STOPPED) if multihost_utils.reached_preemption_sync_point(next(_LOOKS)) else 0

    def must_hold(self) -> bool:
        """Whether `hold` is to be called, before anything more is computed. To be asked once a step or batch."""
        return False

    def hold(self) -> None:
        """Waits until the work may go on, or until it is asked to stop. What was started should be done before."""

    def save_is_due(self) -> bool:
        """Whether to save after this step. To be asked once a step."""
        return False

    def note_save(self) -> None:
        """To be called after every save."""

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if self._several and number == signal.SIGTERM:
                    continue  # with a handler of our own, jax's would not hear of it
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue  # nohup ignores it, and means it; a shell's `&` ignores Ctrl-C, but a kill -INT means us
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
        # Straight to the descriptor: the signal may have come in the middle of somebody's print. And the terminal may
        # have gone.
        with contextlib.suppress(OSError):
            os.write(2, f"{self.answer}; Ctrl-C again stops at once\n".encode())
        self._tell_the_others()

    def _tell_the_others(self) -> None:
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
