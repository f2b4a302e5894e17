"""Several processes that are one run: real processes on this machine, that train, are signalled, killed and misled."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxvit.run_directory import read_json
from jaxvit.training.journal import read_jsonl

HERE = Path(__file__).parent
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
    """Processes of one run of the tiny config; `words` are added to the command of each."""

    def __init__(self, workdir, processes, settings=(), words=(), epochs=4):
        self.output = [workdir.with_name(f"{workdir.name}_{i}.txt") for i in range(processes)]
        file = workdir.with_name(f"{workdir.name}_config.py")
        changes = {**SETTINGS, **dict(settings), "train__duration": f"{epochs} epochs"}
        file.write_text(
            f"import sys; sys.path.insert(0, {str(HERE)!r})\nfrom tiny import tiny_config\n"
            f"def get_config(): return tiny_config(**{changes!r})\n"
        )
        port = free_port()
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(HERE.parent), "XLA_FLAGS": ""}
        self.processes = []
        for i, output in enumerate(self.output):
            command = [sys.executable, "-m", "jaxvit", "train", f"--config={file}", f"--workdir={workdir}"]
            if processes > 1:
                command += [f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}", f"--process_id={i}"]
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
        return "\n".join(f"--- process {i}\n{output.read_text()}" for i, output in enumerate(self.output))


def losses(workdir):
    return {(r["split"], r["step"]): r["loss"] for r in read_jsonl(workdir / "metrics.jsonl")}


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"augment__where": "host"}], ids=["resident", "host"])
def test_two_processes_are_stopped_and_agree_with_one(tmp_path, settings):
    """SIGTERM to either stops both, at one step; the same commands go on; the numbers are those of one process."""
    run = Run(tmp_path / "two", 2, settings, epochs=12)
    run.wait_for("epoch  2/12")
    run.processes[1].send_signal(signal.SIGTERM)
    assert run.codes() == [75, 75], run.said()
    stopped = max(int(p.name) for p in (tmp_path / "two" / "checkpoints").iterdir() if p.name.isdigit())
    assert 8 <= stopped < 48 and f"stopped at step {stopped} of 48" in run.said()
    run = Run(tmp_path / "two", 2, settings, epochs=12)
    assert run.codes() == [0, 0], run.said()
    assert f"going on from step {stopped}" in run.said() and "epoch" not in run.output[1].read_text()
    one = Run(tmp_path / "one", 1, settings, epochs=12)
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
def test_a_signal_is_heard_in_calls_of_several_steps_and_after_a_resume(tmp_path):
    """Orbax asks the same service whether to stop, with numbers of its own: it must not put ours out of step."""
    stopped = 0
    for start in range(2):
        run = Run(tmp_path / "run", 2, {"train__steps_per_call": 4}, epochs=400)
        heard = stopped // 4 + 3
        run.wait_for(f"epoch {heard:>3}/400")
        run.processes[1].send_signal(signal.SIGTERM)
        assert run.codes() == [75, 75], (start, run.said())
        stopped = max(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit())
        assert stopped < 4 * 390


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_takes_the_others_along(tmp_path, victim):
    run = Run(tmp_path / "run", 2, epochs=2000)
    run.wait_for("epoch    1/2000")
    run.processes[victim].kill()
    code = run.codes(60)[1 - victim]
    said = run.output[1 - victim].read_text()
    # When it was process 0, or in the middle of a save, jax's own watch may end the process, with lines of its own.
    assert code in (70, -signal.SIGABRT), (code, said)
    assert code != 70 or "another process of this run has ended" in said, said
    assert "Traceback" not in said


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


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--num_processes=2"], "need --coordinator=HOST:PORT"),
        (["--coordinator=here"], "write it as HOST:PORT"),
        (["--coordinator=127.0.0.1:9", "--num_processes=2"], "which this one is, from 0"),
        (["--distributed"], "no cluster's environment was recognised"),
    ],
)
def test_a_wrong_start_is_one_line(tmp_path, words, says):
    run = Run(tmp_path / "run", 1, words=words)
    assert run.codes(60) == [2]
    assert says in run.said() and run.output[0].read_text().count("\n") == 1
