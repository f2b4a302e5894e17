"""Shows the progress of a run: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from jaxvit.shown import rich

PLAIN_SECONDS = 20.0  # interval of plain lines, if nothing else is printed


class _MayClose:
    """A text stream whose reader may close it (`| head`, a closed terminal); later output is discarded."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._unless_closed(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._unless_closed(self._stream.flush)

    def _unless_closed(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                error.filename = error.filename or "standard output"
                raise
            # The stream's buffer is flushed too, at the latest at exit: it needs an open file.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextlib.contextmanager
def nobody_need_listen() -> Iterator[None]:
    """Inside this context, printing to a closed standard output is not an error."""
    with contextlib.ExitStack() as stack:
        # sys.stdout is None if it was closed before Python started.
        stream = sys.stdout or stack.enter_context(open(os.devnull, "w"))
        stack.enter_context(contextlib.redirect_stdout(_MayClose(stream)))  # type: ignore[type-var]
        yield


class Progress:
    """Shows epoch, step, images per second, loss, accuracy and remaining time.

    Args:
      steps: number of steps of the run.
      steps_per_epoch: number of steps of an epoch.
      start_step: first step of this process; speed and remaining time count from there.
      console: where to print; None = stdout.
    """

    def __init__(self, steps: int, steps_per_epoch: int, start_step: int = 0, console: Console | None = None):
        self._console = console or Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._steps, self._per_epoch, self._start_step = steps, steps_per_epoch, start_step
        self._images = 0.0
        self._training_seconds = 0.0
        self._last_shown = time.monotonic()
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def say(self, line: str) -> None:
        """Prints a permanent line."""
        self._console.print(rich(line))
        self._last_shown = time.monotonic()

    def step(self, step: int, sums: Mapping[str, float], means: Mapping[str, float], seconds: float) -> None:
        """Shows a finished step: its sums, the means of the epoch so far, and its duration in seconds."""
        self._images += sums["count"]
        self._training_seconds += seconds
        now = time.monotonic()
        if self._live:
            self._live.update(Text(self._line(step, means)))
        elif now - self._last_shown > PLAIN_SECONDS:
            self.say(self._line(step, means))

    def epoch(
        self,
        step: int,
        train: Mapping[str, float],
        validation: Mapping[str, float],
        note: str = "",
        label: str = "",
    ) -> None:
        """Prints the line of a finished epoch; `label` comes first, `note` last."""
        parts = [f"{label}epoch {self._epoch(step)}", _metrics("train", train)]
        if validation:
            parts.append(_metrics("validation", validation))
        self.say("  ".join(parts) + (f"  {note}" if note else ""))

    def _epoch(self, step: int) -> str:
        width = len(str(-(-self._steps // self._per_epoch)))
        return f"{-(-step // self._per_epoch):>{width}}/{-(-self._steps // self._per_epoch)}"

    def _line(self, step: int, means: Mapping[str, float]) -> str:
        seconds = max(self._training_seconds, 1e-9)
        left = seconds / max(step - self._start_step, 1) * (self._steps - step)
        return (
            f"epoch {self._epoch(step)}  step {step}/{self._steps}  {self._images / seconds:,.0f} images/s  "
            f"{_metrics('train', means)}  ETA {_clock(left)}"
        )


def _metrics(name: str, means: Mapping[str, float]) -> str:
    if not means:
        return name
    return f"{name} loss {means['loss']:.4f} accuracy {means['top1']:.2%}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
