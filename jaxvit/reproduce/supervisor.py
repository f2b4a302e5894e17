"""Controls a queue of runs: time limit, pauses while another process needs a quiet machine, and periodic saves."""

from __future__ import annotations

import math
import time
from types import TracebackType

from jaxvit.devices import quiet
from jaxvit.errors import STOPPED, StoppedError, UsageError
from jaxvit.files import Lock
from jaxvit.training.stopping import StopRequest

SAVE_SECONDS = 600.0  # longest work between two saves; an epoch of some rows takes a quarter of an hour
_LOOK_SECONDS = 0.2  # between two checks of the locks; some steps take only a millisecond
_POLL_SECONDS = 0.2


class Supervisor(StopRequest):
    """A stop request that also enforces a time limit, pauses for quiet measurements, and asks for periodic saves.

    As a context manager it ensures that only one queue runs on a machine.

    Args:
      limit: seconds until it stops the run, as SIGTERM does, pauses included; math.inf = never.

    Attributes:
      limit_reached: True if the run was stopped by the limit.
    """

    def __init__(self, limit: float = math.inf) -> None:
        super().__init__()
        self._end = time.monotonic() + limit
        self.limit_reached = False
        self._locks: list[Lock] = []
        self._working: Lock | None = None
        self._last_look = -math.inf
        self._last_save = time.monotonic()

    def __enter__(self) -> Supervisor:
        try:
            busy = "another queue is running on this machine; wait for it, or stop it with SIGTERM"
            self._locks.append(Lock(quiet.lock_file("queue"), busy))
            self._working = quiet.try_to_work()
        except OSError as error:
            reason = f"{quiet.locks()}: cannot lock files there ({error.strerror})"
            raise UsageError(f"{reason}; name another folder with JAXVIT_LOCKS") from None
        super().__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        super().__exit__(kind, error, trace)
        for lock in (*self._locks, *([self._working] if self._working else [])):
            lock.close()
        self._working = None

    def check(self) -> int:
        if not self.exit_code and time.monotonic() >= self._end:
            self.exit_code, self.limit_reached = STOPPED, True
        return super().check()

    def must_hold(self) -> bool:
        now = time.monotonic()
        if self.check():
            return False  # the run stops, and only has to save
        if self._working is None:
            return True
        if now - self._last_look < _LOOK_SECONDS:
            return False
        self._last_look = now
        return quiet.is_asked()

    def hold(self) -> None:
        started, told = time.monotonic(), False
        if self._working:
            self._working.close()
        while not self.check():
            self._working = quiet.try_to_work()
            if self._working:
                break
            if not told:
                told = True
                print(f"paused: another process asked for a quiet machine ({quiet.locks() / 'asked'})", flush=True)
            time.sleep(_POLL_SECONDS)
        else:
            self._working = None
        waited = time.monotonic() - started
        self.held_seconds += waited
        if told:
            print(f"resumed after {waited / 60:.1f} minutes", flush=True)

    def save_is_due(self) -> bool:
        return time.monotonic() - self.held_seconds - self._last_save >= SAVE_SECONDS

    def note_save(self) -> None:
        self._last_save = time.monotonic() - self.held_seconds

    def between_runs(self, left: str) -> None:
        """Call before each run: waits while paused.

        Args:
          left: description of the remaining runs, for the error message.

        Raises:
          StoppedError: a stop was requested.
        """
        self.answer = "stopping before the next run"
        if self.must_hold():
            self.hold()
        if code := self.check():
            raise StoppedError(f"stopped between two runs; {left}", code)
        self.note_save()
