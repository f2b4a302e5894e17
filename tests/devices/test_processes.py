"""Multi-process runs: real processes on this machine that train, get signals, are killed, and get wrong arguments."""

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from jaxvit.files import read_json
from jaxvit.training.journal import read_jsonl

TESTS = Path(__file__).parents[1]
SETTINGS = {
    "optim__name": "sgd",
    "optim__peak_lr": 0.05,
    "optim__schedule": "constant",
    "optim__ema_decay": 0.9,
    "augment__flip": True,
    "augment__mixup": 0.4,
    "log__every": "1 steps",
}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Run:
    """The processes of a run of the tiny config; `words` are added to each command.

    `devices` is the number of each process. `first` is Python that the config file begins with, where `me` is the
    process's number: before the processes join.
    `only` lists the processes to start.
    """

    def __init__(self, workdir, processes, settings=(), words=(), epochs=4, first="", only=(), devices=1):
        self.output = [workdir.with_name(f"{workdir.name}_{i}.txt") for i in range(processes)]
        file = workdir.with_name(f"{workdir.name}_config.py")
        changes = {**SETTINGS, **dict(settings), "train__duration": f"{epochs} epochs"}
        file.write_text(
            f"import sys; sys.path.insert(0, {str(TESTS)!r})\nfrom tiny import tiny_config\n"
            f"me = next((int(w[-1]) for w in sys.argv if w.startswith('--process_id=')), 0)\n{textwrap.dedent(first)}\n"
            f"def get_config(): return tiny_config(**{changes!r})\n"
        )
        port = free_port()
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(TESTS.parent)}
        environment["JAX_NUM_CPU_DEVICES"] = str(devices)
        self.processes = []
        for i, output in enumerate(self.output):
            command = [sys.executable, "-m", "jaxvit", "train", f"--config={file}", f"--workdir={workdir}"]
            if processes > 1:
                command += [f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}", f"--process_id={i}"]
            if only and i not in only:
                continue
            with output.open("w") as stream:
                self.processes.append(
                    subprocess.Popen([*command, *words], stdout=stream, stderr=subprocess.STDOUT, env=environment)
                )

    def wait_for(self, text):
        while text not in self.output[0].read_text():
            assert all(p.poll() is None for p in self.processes), self.said()
            time.sleep(0.02)

    def codes(self, seconds=300):
        end = time.monotonic() + seconds
        try:
            return [p.wait(max(0.1, end - time.monotonic())) for p in self.processes]
        finally:
            for p in self.processes:
                p.kill()

    def said(self):
        return "\n".join(f"--- process {i}\n{o.read_text()}" for i, o in enumerate(self.output) if o.exists())

    def stopped_at(self):
        return int(re.search(r"stopped at step (\d+)", self.said())[1])


def losses(workdir):
    return {(r["split"], r["step"]): r["loss"] for r in read_jsonl(workdir / "metrics.jsonl")}


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"augment__where": "host"}], ids=["resident", "host"])
def test_two_processes_are_stopped_and_agree_with_one(tmp_path, settings):
    """SIGTERM to one stops both at the same step; the same commands resume; the results equal a single process's."""
    run = Run(tmp_path / "two", 2, settings, epochs=12)
    run.wait_for("epoch  2/12")
    run.processes[1].send_signal(signal.SIGTERM)
    assert run.codes() == [75, 75], run.said()
    stopped = max(int(p.name) for p in (tmp_path / "two" / "checkpoints").iterdir() if p.name.isdigit())
    assert 8 <= stopped < 48 and f"stopped at step {stopped} of 48" in run.said()
    run = Run(tmp_path / "two", 2, settings, epochs=12)
    assert run.codes() == [0, 0], run.said()
    assert f"resuming from step {stopped}" in run.said() and "epoch" not in run.output[1].read_text()
    # Images are mixed within a device, so the number of devices must be the same.
    one = Run(tmp_path / "one", 1, settings, epochs=12, devices=2)
    assert one.codes() == [0], one.said()

    records = read_jsonl(tmp_path / "two" / "metrics.jsonl")
    assert [r["step"] for r in records if r["split"] == "steps"] == list(range(1, 49))
    a, b = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert a.keys() == b.keys()
    first = [k for k in a if k[0] == "steps" and k[1] <= 10]
    np.testing.assert_allclose([a[k] for k in first], [b[k] for k in first], atol=1e-5)
    np.testing.assert_allclose([a[k] for k in a], [b[k] for k in a], atol=2e-4)  # rounding grows with the steps
    results = [read_json(tmp_path / name / "result.json") for name in ("one", "two")]
    assert results[0]["test"]["count"] == results[1]["test"]["count"] == 25
    assert results[0]["test"]["loss"] == pytest.approx(results[1]["test"]["loss"], abs=2e-4)
    assert results[0]["config_hash"] == results[1]["config_hash"]
    starts = read_json(tmp_path / "two" / "environment.json")["starts"]
    assert [s["processes"] for s in starts] == [2, 2]


@pytest.mark.slow
def test_a_signal_is_heard_soon_in_calls_of_several_steps_and_after_a_resume(tmp_path):
    settings = {"train__steps_per_call": 4}
    run = Run(tmp_path / "run", 2, settings, epochs=2000)
    run.wait_for("epoch   40/2000")
    run.processes[1].send_signal(signal.SIGTERM)
    assert run.codes(120) == [75, 75], run.said()
    stopped = run.stopped_at()
    assert 160 <= stopped < 3 * 160, run.said()
    run = Run(tmp_path / "run", 2, settings, epochs=2000)
    run.wait_for(f"epoch  {stopped // 4 + 2:>3}/2000")
    run.processes[0].send_signal(signal.SIGTERM)
    assert run.codes(120) == [75, 75], run.said()
    assert stopped + 8 <= run.stopped_at() < 3 * stopped, run.said()


ENDED_BY_JAX = -signal.SIGABRT


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_takes_the_others_along(tmp_path, victim):
    run = Run(tmp_path / "run", 2, epochs=2000)
    run.wait_for("epoch    1/2000")
    run.processes[victim].kill()
    started = time.monotonic()
    code = run.codes(120)[1 - victim]
    said = run.output[1 - victim].read_text()
    # jax's own watch may be the first to see it, if the other waited at that moment for a save to be complete.
    assert code in (70, ENDED_BY_JAX), (code, said)
    assert "another process of this run has ended" in said or "another task died" in said, said
    assert "Traceback" not in said and time.monotonic() - started < 90


@pytest.mark.slow
def test_a_process_that_dies_when_it_has_joined_takes_the_others_along(tmp_path):
    first = """
        import os
        import jaxvit.devices.processes as processes
        join = processes.join
        def joins_and_dies(*words):
            join(*words)
            if me == 1: os._exit(9)
        processes.join = joins_and_dies
    """
    run = Run(tmp_path / "run", 2, first=first)
    code, died = run.codes(150)
    assert died == 9 and code in (70, ENDED_BY_JAX), run.said()
    assert "another process of this run has ended" in run.said() or "another task died" in run.said()
    assert "Traceback" not in run.said()


@pytest.mark.slow
def test_a_figure_that_takes_long_and_fails_loses_no_result(tmp_path):
    first = """
        import time
        import jaxvit.figures.history as history
        def draw(*words):
            time.sleep(15)
            raise ValueError("no font")
        history.draw_history = draw
    """
    run = Run(tmp_path / "run", 2, first=first)
    assert run.codes() == [0, 0], run.said()
    assert read_json(tmp_path / "run" / "result.json")["steps"] == 16
    assert "warning: figures/history.png is not drawn (ValueError: no font)" in run.output[0].read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "fails"),
    [("begin", "OSError(errno.ENOSPC, 'No space left on device', 'x')"), ("start", "UsageError('odd')")],
)
def test_what_one_meets_before_the_training_is_told_by_all(tmp_path, what, fails):
    first = f"""
        import errno
        import jaxvit.run.execution as execution
        from jaxvit.errors import UsageError
        work = execution.{what}
        def fail(*words):
            if me == {int(what == "start")}: raise {fails}
            return work(*words)
        execution.{what} = fail
    """
    run = Run(tmp_path / "run", 2, first=first)
    codes, said = run.codes(120), [output.read_text() for output in run.output]
    if what == "begin":
        assert codes == [70, 70] and "process 0: the disk is full while writing x" in said[1], run.said()
    else:
        assert codes == [2, 2] and "process 1: odd" in said[0] and "jaxvit: odd" in said[1], run.said()
    assert "Check failure" not in run.said() and "Traceback" not in run.said()


@pytest.mark.slow
def test_an_error_of_one_alone_ends_the_others_too(tmp_path):
    first = """
        import jaxvit.run.execution as execution
        make_program = execution.make_program
        def fail(*words):
            if me == 1: raise KeyError("a bug")
            return make_program(*words)
        execution.make_program = fail
    """
    run = Run(tmp_path / "run", 2, first=first)
    code, failed = run.codes(120)
    assert failed == 1 and "KeyError: 'a bug'" in run.output[1].read_text(), run.said()
    assert "Check failure" not in run.output[1].read_text()
    assert code == 70 and "another process of this run has ended" in run.output[0].read_text(), run.said()


@pytest.mark.slow
def test_a_checkpoint_that_one_cannot_read_is_told_by_all_and_fallen_back_from(tmp_path):
    settings = {"train__fsdp": 2}
    assert Run(tmp_path / "run", 2, settings, epochs=3).codes() == [0, 0]
    checkpoints = tmp_path / "run" / "checkpoints"
    first = """
        import orbax.checkpoint as ocp
        restore = ocp.StandardCheckpointHandler.restore
        def fail(self, directory, *args, **options):
            if me == 1 and directory.parent.name == "12": raise ValueError("a broken chunk")
            return restore(self, directory, *args, **options)
        ocp.StandardCheckpointHandler.restore = fail
    """
    run = Run(tmp_path / "run", 2, settings, epochs=4, first=first)
    assert run.codes(120) == [2, 2], run.said()
    assert run.said().count("12 cannot be read: its files are damaged; --fall_back resumes from step 8") == 2
    assert "process 1: " in run.output[0].read_text()
    run = Run(tmp_path / "run", 2, settings, ["--fall_back"], epochs=4, first=first)
    assert run.codes() == [0, 0], run.said()
    assert "resuming from step 8" in run.said() and (checkpoints / "12.damaged").is_dir()


@pytest.mark.slow
def test_what_is_told(tmp_path):
    """Values and errors, short and long; who knows of an error already does not tell it again."""
    script = """
        import sys
        from jaxvit.errors import DamagedCheckpointError, RunFailedError, UsageError
        from jaxvit.devices import processes
        me = int(sys.argv[2])
        processes.join(sys.argv[1], 2, me)

        def fails(who, error):
            def work():
                if me == who: raise error
            return work

        def raised(work):
            try: work()
            except Exception as error: return type(error), str(error), processes.is_agreed(error)

        value = {"steps": [1, 2], "long": "ä" * 3000}
        assert processes.broadcast_from_first(lambda: value if me == 0 else 1 / 0) == value
        assert processes.on_first(lambda: 1) == (None if me else 1) and processes.on_all(lambda: me) == me
        for kind in (UsageError, DamagedCheckpointError, RunFailedError):
            text = kind.__name__ * 300
            told = raised(lambda: processes.on_all(fails(1, kind(text))))
            assert told == (kind, text if me == 1 else f"process 1: {text}", True)
        told = raised(lambda: processes.broadcast_from_first(fails(0, TypeError("a bug"))))
        assert told == ((RunFailedError, "process 0: TypeError: a bug", True) if me else (TypeError, "a bug", True))

        def nested():
            fails(1, UsageError("before"))()
            return processes.broadcast_from_first(lambda: 3)

        assert raised(lambda: processes.on_all(nested))[1].endswith("before")
        assert processes.on_all(lambda: processes.broadcast_from_first(lambda: 4)) == 4
        processes.leave()
    """
    file = tmp_path / "script.py"
    file.write_text(textwrap.dedent(script))
    where = f"127.0.0.1:{free_port()}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(TESTS.parent)}
    both = [subprocess.Popen([sys.executable, file, where, str(i)], stderr=-1, env=environment) for i in (0, 1)]
    said = [process.communicate(timeout=120)[1].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], said


@pytest.mark.slow
def test_ctrl_c_in_one_stops_all(tmp_path):
    run = Run(tmp_path / "run", 2, epochs=2000)
    run.wait_for("epoch    1/2000")
    run.processes[0].send_signal(signal.SIGINT)
    assert run.codes(60) == [130, 75], run.said()


@pytest.mark.slow
def test_a_mistake_of_one_is_told_by_all(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "holiday.txt").write_text("not a run")
    run = Run(tmp_path / "run", 2)
    assert run.codes(120) == [2, 2], run.said()
    assert run.said().count("this folder holds other files; name a new one for the run") == 2
    assert "process 0: --workdir" in run.output[1].read_text()


@pytest.mark.slow
@pytest.mark.parametrize("there", [0, 1])
def test_one_that_waits_in_vain_says_so_in_a_line(tmp_path, there):
    first = "import jaxvit.devices.processes as processes; processes.JOIN_SECONDS = 5"
    run = Run(tmp_path / "run", 2, first=first, only=[there])
    assert run.codes(60) == [2], run.said()
    assert run.output[there].read_text() == (
        "jaxvit: the processes did not find each other within 5 s; start all of them, each with its own --process_id, "
        "and check that they can reach the coordinator's port\n"
    )


def test_a_port_in_use_is_one_line(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        words = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", "--process_id=0"]
        run = Run(tmp_path / "run", 1, words=words)
        assert run.codes(60) == [2]
    assert f"port {port} is in use on this machine" in run.said() and run.output[0].read_text().count("\n") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--num_processes=2"], "need --coordinator=HOST:PORT"),
        (["--coordinator=here"], "write it as HOST:PORT"),
        (
            ["--coordinator=127.0.0.1:99999", "--num_processes=2", "--process_id=0"],
            "a port is a number from 1 to 65535",
        ),
        (["--coordinator=127.0.0.1:9", "--num_processes=2"], "the index of this one, from 0"),
        (["--coordinator=127.0.0.1:9", "--num_processes=2", "--process_id=1", "--workdir="], "--workdir is missing"),
        (["--distributed"], "found no environment of a cluster"),
    ],
)
def test_a_wrong_start_is_one_line(tmp_path, words, says):
    run = Run(tmp_path / "run", 1, words=words)
    assert run.codes(60) == [2]
    assert says in run.said() and run.output[0].read_text().count("\n") == 1


HOOK = """
import jax

def hook(state, metrics):
    if jax.process_index() == 1 and metrics["epoch"] == 2:
        ACT
"""


@pytest.mark.slow
@pytest.mark.parametrize("act", ["return True", "raise OSError('no network')"])
def test_a_hook_of_one_process_ends_all(tmp_path, act):
    (tmp_path / "my_hook.py").write_text(HOOK.replace("ACT", act))
    path = f"sys.path.insert(0, {str(tmp_path)!r})"
    run = Run(tmp_path / "run", 2, {"train__hooks": ("my_hook:hook",)}, first=path)
    if act == "return True":
        assert run.codes() == [0, 0], run.said()
        assert "stopped early: hook my_hook:hook" in run.said()
        assert read_json(tmp_path / "run" / "result.json")["steps"] == 8
        return
    assert run.codes() == [70, 70], run.said()
    line = "process 1: config.train.hooks: 'my_hook:hook' at the end of epoch 2 (step 8) fails: OSError: no network"
    assert line in run.output[0].read_text() and line.removeprefix("process 1: ") in run.output[1].read_text()
    assert not (tmp_path / "run" / "result.json").exists()
    assert max(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit()) == 8
