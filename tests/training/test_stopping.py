"""Signals, really sent to this process."""

import os
import signal

import pytest

from jaxvit.errors import INTERRUPTED, STOPPED
from jaxvit.training.stopping import StopRequest


def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ((), 0),
        ((signal.SIGTERM,), STOPPED),
        ((signal.SIGHUP,), STOPPED),
        ((signal.SIGINT,), INTERRUPTED),
        ((signal.SIGTERM, signal.SIGINT), STOPPED),
        ((signal.SIGINT, signal.SIGTERM), STOPPED),
        ((signal.SIGTERM, signal.SIGTERM, signal.SIGHUP), STOPPED),
    ],
)
def test_the_code_of_a_stop(numbers, code):
    with StopRequest() as stop:
        send(*numbers)
        assert stop.exit_code == code


@pytest.mark.parametrize("between", [(), (signal.SIGTERM,), (signal.SIGHUP, signal.SIGTERM)])
def test_a_second_ctrl_c_stops_at_once(between):
    with StopRequest():
        send(signal.SIGINT, *between)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_ctrl_c_is_answered_with_what_will_happen(capfd):
    with StopRequest() as stop:
        stop.answer = "finishing the page"
        send(signal.SIGINT)
    assert capfd.readouterr().err == "finishing the page; Ctrl-C again stops at once\n"


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            send(signal.SIGHUP)
            assert stop.exit_code == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
