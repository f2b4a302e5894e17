"""Locks for a quiet machine: who asks for it, and who pauses."""

import subprocess
import sys
import threading
import time

import pytest

from jaxvit.devices import quiet


@pytest.fixture(autouse=True)
def _own_locks(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVIT_LOCKS", str(tmp_path / "locks"))


def test_work_waits_for_all_who_ask(capfd):
    with quiet.try_to_work():
        assert not quiet.is_asked() and quiet.try_to_work() is None  # one at a time
    with quiet.asked() as first, quiet.asked() as second:
        assert len(first) == len(second) == 2 and quiet.is_asked()
        for lock in first:
            lock.close()
        assert quiet.is_asked() and quiet.try_to_work() is None
    assert not quiet.is_asked()
    quiet.try_to_work().close()
    assert capfd.readouterr() == ("", "")


def test_a_timing_begins_when_the_work_stands_still(capfd):
    work, given_back = quiet.try_to_work(), []

    def look():
        while not quiet.is_asked():
            time.sleep(0.01)
        given_back.append(time.monotonic())
        work.close()

    worker = threading.Thread(target=look)
    worker.start()
    with quiet.asked():
        assert given_back and given_back[0] <= time.monotonic()
    worker.join()
    with quiet.try_to_work(), quiet.asked(patience=0.05):
        pass
    said = capfd.readouterr().err
    assert (
        said.startswith("warning: the machine is not quiet: after 0.05 s a process still holds ")
        and said.count("\n") == 1
    )


def test_without_a_place_for_locks_a_timing_goes_on(tmp_path, monkeypatch, capfd):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXVIT_LOCKS", str(tmp_path / "file"))
    with quiet.asked() as held:
        assert held == []
    assert "warning: background work is not paused" in capfd.readouterr().err


def test_any_command_can_ask():
    def started(*words):
        return subprocess.run([sys.executable, "-m", "jaxvit.devices.quiet", *words], capture_output=True, text=True)

    look = "from jaxvit.devices import quiet; print(quiet.is_asked(), quiet.try_to_work()); raise SystemExit(7)"
    done = started(sys.executable, "-c", look)
    assert (done.returncode, done.stdout, done.stderr) == (7, "True None\n", "")
    assert not quiet.is_asked()
    for words, says in [((), "name a command"), (("/no/such/program",), "/no/such/program cannot be started")]:
        done = started(*words)
        assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1
