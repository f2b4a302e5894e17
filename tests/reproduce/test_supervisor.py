"""The supervisor of a queue: time limit, pauses for a quiet machine, periodic saves."""

import threading
import time
from types import SimpleNamespace

import pytest

from jaxvit.devices import quiet
from jaxvit.errors import STOPPED, StoppedError, UsageError
from jaxvit.reproduce.supervisor import SAVE_SECONDS, Supervisor


@pytest.fixture
def clock(monkeypatch):
    """The supervisor's clock, set by the test."""
    now = SimpleNamespace(seconds=1000.0, monotonic=lambda: now.seconds)
    now.sleep = lambda seconds: setattr(now, "seconds", now.seconds + seconds)
    monkeypatch.setattr("jaxvit.reproduce.supervisor.time", now)
    return now


def test_a_limit_stops_as_sigterm_does(clock):
    with Supervisor(60.0) as stop:
        clock.seconds += 59
        assert stop.check() == 0 and not stop.must_hold()
        stop.between_runs("nothing is left")
        clock.seconds += 1
        assert stop.check() == STOPPED and stop.limit_reached and not stop.must_hold()
        with pytest.raises(StoppedError, match="stopped between two runs; 3 are left") as stopped:
            stop.between_runs("3 are left")
        assert stopped.value.exit_code == STOPPED


def test_there_is_one_queue_on_a_machine_and_its_locks_end_with_it(tmp_path, monkeypatch):
    with Supervisor(), pytest.raises(UsageError, match="another queue is running on this machine"), Supervisor():
        pass
    with Supervisor():
        assert quiet.try_to_work() is None
    quiet.try_to_work().close()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXVIT_LOCKS", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"cannot lock files there .*JAXVIT_LOCKS"), Supervisor():
        pass


def test_it_stands_still_while_it_is_asked_and_this_is_no_work(clock, capsys):
    asked, over, turns = threading.Event(), threading.Event(), []

    def timing():
        with quiet.asked():
            asked.set()
            over.wait(20)

    def sleep(seconds):
        turns.append(seconds)
        clock.seconds += seconds
        if len(turns) == 3:
            assert asked.wait(20)  # the timing has begun: it was waiting for this
            over.set()
            other.join()

    with Supervisor() as stop:
        other = threading.Thread(target=timing)
        other.start()
        while not stop.must_hold():
            clock.seconds += 1
            time.sleep(0.01)
        assert not asked.is_set()
        clock.sleep = sleep
        stop.hold()
        assert len(turns) == 3 and stop.held_seconds == pytest.approx(sum(turns))
        assert not stop.must_hold() and quiet.try_to_work() is None
    assert "paused: another process asked for a quiet machine" in capsys.readouterr().out


def test_what_stands_still_can_be_stopped(clock):
    with quiet.asked(), Supervisor(60.0) as stop:  # asked before it began
        assert stop.must_hold()
        stop.hold()
        assert stop.limit_reached and stop.held_seconds == pytest.approx(60.0, abs=0.3) and not stop.must_hold()


def test_a_save_is_due_after_so_much_work(clock):
    with Supervisor() as stop:
        clock.seconds += SAVE_SECONDS - 1
        assert not stop.save_is_due()
        stop.held_seconds += 10.0
        clock.seconds += 10.0
        assert not stop.save_is_due()
        clock.seconds += 1
        assert stop.save_is_due()
        stop.note_save()
        assert not stop.save_is_due()
