"""The progress output."""

import errno
import io
import subprocess
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from jaxvit.training.progress import Progress, nobody_need_listen

MEANS = {"loss": 0.5, "top1": 0.75}


def show(terminal, **options):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=200, highlight=False)
    with Progress(100, 10, console=console, **options) as progress:
        progress.step(20, {"count": 320.0}, MEANS, 2.0)
        if terminal:
            progress._live.refresh()
        progress.epoch(20, MEANS, MEANS | {"top1": 0.5}, "best")
    return screen.getvalue()


def test_a_terminal_has_a_live_line():
    text = show(True)
    for part in ("epoch  2/10", "step 20/100", "160 images/s", "loss 0.5000", "accuracy 75.00%", "ETA 0:08"):
        assert part in text


def test_elsewhere_there_are_plain_lines_without_control_codes():
    text = show(False)
    assert text == "epoch  2/10  train loss 0.5000 accuracy 75.00%  validation loss 0.5000 accuracy 50.00%  best\n"


def test_time_left_counts_from_where_this_process_began():
    assert "ETA 0:16" in show(True, start_step=10)


def test_plain_lines_come_every_so_often(monkeypatch):
    monkeypatch.setattr("jaxvit.training.progress.PLAIN_SECONDS", -1.0)
    assert "images/s" in show(False)


def test_a_reader_that_goes_away_stops_nothing():
    """`| head -1` in a separate process closes the pipe after the first line."""
    code = (
        "import sys, time; from jaxvit.training.progress import Progress, nobody_need_listen\n"
        "with nobody_need_listen():\n"
        "    with Progress(100, 10) as progress:\n"
        "        print('first', flush=True); sys.stdin.readline()\n"
        "        for step in range(10, 101, 10):\n"
        "            progress.epoch(step, {'loss': 0.5, 'top1': 0.75}, {}); print('x' * 9000, flush=True)\n"
        "print('the end', file=sys.stderr)\n"
    )
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen([sys.executable, "-c", code], text=True, **pipes)
    assert process.stdout.readline() == "first\n"
    process.stdout.close()
    process.stdin.write("\n")
    process.stdin.close()
    assert process.stderr.read() == "the end\n"
    assert process.wait() == 0


def test_other_errors_of_a_stream_are_told(monkeypatch):
    def full(text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stdout", SimpleNamespace(write=full))
    with nobody_need_listen(), pytest.raises(OSError, match="No space left"):
        print("x")
