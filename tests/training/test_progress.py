"""What a person sees."""

import io

from rich.console import Console

from jaxvit.training.progress import Progress

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
