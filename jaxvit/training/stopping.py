"""Being asked to stop: SIGTERM (a scheduler) and Ctrl-C (a person) let the current step finish and be saved."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType

from jaxvit.errors import INTERRUPTED, STOPPED


class StopRequest:
    """Context manager that turns the two signals into a request.

    Attributes:
      exit_code: 0 until a signal came; then 75 for SIGTERM, 130 for Ctrl-C. A second Ctrl-C stops at once.
    """

    def __init__(self) -> None:
        self.exit_code = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and self.exit_code == INTERRUPTED:
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            # Straight to the descriptor: the signal may have come in the middle of somebody's print.
            os.write(2, b"stopping after this step, to save it; Ctrl-C again stops at once\n")
        self.exit_code = INTERRUPTED if number == signal.SIGINT else STOPPED
