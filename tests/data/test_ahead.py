"""Processes that decode give the batches of threads, report damage to the main process, and end with it."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from photos import photos
from runs import StopAt, newest_state
from shards import members, write_tar
from tiny import tiny_config

import jaxvit
from jaxvit.data import ahead, stored
from jaxvit.data.batches import TrainOrder
from jaxvit.data.feed import StreamFeed, evaluation_stream
from jaxvit.data.sources import open_dataset
from jaxvit.errors import STOPPED, RunFailedError, StoppedError, UsageError
from jaxvit.training.stopping import StopRequest


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ahead")
    listed = members(photos(folder / "pets", cat=20, dog=17))
    return write_tar(folder / "pets.tar", [*listed, ("cat/x.png", b"no image"), ("cat/x.cls", b"cat")])


@pytest.fixture
def streamed(shard, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "CACHE_BYTES", 10)
    return lambda **how: open_dataset(f"tar:{shard}", tmp_path, **how).read("train")


def feed_of(source, workers):
    return StreamFeed(source, TrainOrder(len(source), 8, seed=3), 8, 1, 9, put_call=dict, workers=workers)


def test_processes_give_the_batches_of_threads_and_resume_at_any_step(streamed, capsys):
    source, other = streamed(on_error="skip"), streamed(on_error="skip")
    in_threads, in_processes = feed_of(source, -1), feed_of(other, 2)
    for step in (*range(6), 2, 3):  # back to step 2, as a resumed run starts there
        one, two = in_threads(step, 1), in_processes(step, 1)
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])
    del in_processes
    said = [line for line in capsys.readouterr().err.splitlines() if "is left out" in line]
    assert len(said) == 2 and said[0] == said[1]  # once for each source, whichever process met it
    assert other.notes == source.notes and other.notes["skipped"] == 1


def test_an_error_of_a_process_is_that_of_a_thread(streamed):
    said = []
    for workers in (-1, 1):
        with pytest.raises(RunFailedError, match=r"cat/x\.png cannot be decoded \(not an image\)") as error:
            list(evaluation_stream(streamed(), 8, workers=workers))
        said.append(str(error.value))
    assert said[0] == said[1]


def test_a_signal_to_all_processes_leaves_decoding_to_the_end(streamed):
    """A scheduler stops a run by a signal to its whole group: the run needs batches until it has saved its state."""
    expected, batches = (evaluation_stream(streamed(on_error="skip"), 2, workers=workers) for workers in (-1, 1))
    found = [next(batches)]
    children = multiprocessing.active_children()
    assert children
    for child in children:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            os.kill(child.pid, number)
    found += list(batches)
    for one, two in zip(expected, found, strict=True):
        assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def test_a_process_that_is_killed_ends_the_run_in_one_line(streamed):
    batches = evaluation_stream(streamed(on_error="skip"), 2, workers=1)
    next(batches)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(RunFailedError, match=r"a process that decodes images ended by itself.*workers=-1") as error:
        list(batches)
    assert "\n" not in str(error.value)


def test_a_set_that_cannot_be_sent_to_processes_is_told(streamed):
    source = streamed(on_error="skip")
    vars(source)["records"] = lambda: None
    with pytest.raises(UsageError, match=r"cannot be sent to other processes .* set it to -1"):
        next(evaluation_stream(source, 8, workers=1))


@pytest.mark.parametrize(("count", "processes"), [(2, 0), (4, 0), (5, 5), (64, 64)])
def test_many_cores_get_processes(monkeypatch, count, processes):
    monkeypatch.setattr(ahead, "cores", lambda: count)
    assert ahead.processes_for(0) == processes
    assert ahead.processes_for(-1) == 0 and ahead.processes_for(3) == 3


@pytest.mark.slow
def test_a_run_that_stops_and_resumes_with_processes_is_that_of_threads(shard, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "CACHE_BYTES", 10)

    def config(workers):
        named = {"data__name": f"tar:{shard}", "data__side": 8, "data__on_error": "skip", "augment__mean": (0.5,)}
        splits = {"data__train": "train[:28]", "data__validation": "train[28:]", "data__test": ""}
        return tiny_config(**named, **splits, data__workers=workers, augment__std=(0.5,))

    with jax.numpy_dtype_promotion("standard"):
        whole = jaxvit.train(config(-1), tmp_path / "threads")
        monkeypatch.setattr("jaxvit.run.train.StopRequest", lambda: StopAt(2, STOPPED))
        with pytest.raises(StoppedError):
            jaxvit.train(config(1), tmp_path / "processes")
        assert not multiprocessing.active_children()
        monkeypatch.setattr("jaxvit.run.train.StopRequest", StopRequest)
        again = jaxvit.train(config(1), tmp_path / "processes")
    for key in ("steps", "config_hash", "validation"):
        assert again[key] == whole[key], key
    states = [newest_state(tmp_path / name, config(-1))[0] for name in ("threads", "processes")]
    jax.tree.map(np.testing.assert_array_equal, *states)


# A script without `if __name__ == "__main__"`, which a new process would otherwise run again.
SCRIPT = """
    import multiprocessing, sys, time
    from pathlib import Path
    from jaxvit.data import stored
    from jaxvit.data.feed import evaluation_stream
    from jaxvit.data.sources import open_dataset
    print("started", flush=True)
    stored.CACHE_BYTES = 10
    source = open_dataset(sys.argv[1], Path(sys.argv[2]), on_error="skip").read("train")
    batches = evaluation_stream(source, 8, workers=2)
    next(batches)
    print("ready", *(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(float(sys.argv[3]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="lists processes by /proc")
@pytest.mark.parametrize("killed", [False, True])
def test_processes_end_with_a_plain_script(shard, tmp_path, killed):
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, str(tmp_path / "script.py"), f"tar:{shard}", str(tmp_path), "600" if killed else "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as script:
        assert script.stdout.readline() == "started\n"
        word, *children = script.stdout.readline().split()
        assert word == "ready" and len(children) >= 2
        if killed:
            os.kill(script.pid, signal.SIGKILL)
        rest, said = script.communicate()
    assert "started" not in rest and script.returncode == (-signal.SIGKILL if killed else 0)
    if not killed:
        assert "Traceback" not in said and "leaked" not in said
    end = time.monotonic() + 60
    while any(alive(child) for child in children):
        assert time.monotonic() < end, "the processes outlive the script"
        time.sleep(0.2)


def alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
