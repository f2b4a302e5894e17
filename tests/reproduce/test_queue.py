"""Queues of runs: file, order, limit, and resuming on another machine without a difference."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from tiny import TINY_ROW

import jaxvit.cli.reproduce as verb
from jaxvit.devices import quiet
from jaxvit.errors import StoppedError, UsageError
from jaxvit.files import read_json
from jaxvit.reproduce.queue import parse_limit, read_queue
from jaxvit.reproduce.rows import read_rows
from jaxvit.reproduce.table import results_of
from jaxvit.training import loop

ROOT = Path(__file__).parents[2]
ROWS = read_rows(ROOT / "results" / "rows.toml")
TESTS = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _as_the_verb_runs(monkeypatch):
    """Runs the queue without lowering the priority, which would last for the whole test process."""
    monkeypatch.setattr(verb, "lower_priority", lambda: None)
    with jax.numpy_dtype_promotion("standard"):
        yield


def queue_of(folder, text):
    (folder / "queue.toml").write_text(text)
    return folder / "queue.toml"


def test_the_projects_queue_is_one_of_its_rows():
    tasks = read_queue(ROOT / "results" / "queue.toml", ROWS)
    assert str(tasks[0]) == "cct_adamw, seed 10" and len(set(map(str, tasks))) == len(tasks)


def test_rows_of_one_step_take_turns_seed_by_seed(tmp_path):
    file = queue_of(
        tmp_path,
        '[[run]]\nrow = ["mini_vit", "fashion_fast_vit_best", "cct_vit"]\n'
        '[[run]]\nrow = "shiftvit"\nseeds = [43, 42]\nepochs = 2\n[[run]]\nrow = "imagenet_cct_14"\n',
    )
    names = [str(task) for task in read_queue(file, ROWS)]
    assert names[:5] == [
        *("mini_vit, seed 0", "fashion_fast_vit_best, seed 1", "cct_vit, seed 0"),
        *("mini_vit, seed 1", "fashion_fast_vit_best, seed 2"),
    ]
    short = ["shiftvit, seed 43, 2 of 100 epochs", "shiftvit, seed 42, 2 of 100 epochs"]
    assert names[11:] == [*short, "imagenet_cct_14"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it is empty"),
        ("[[run]\n", "cannot be read"),
        ("[run]\nrow = 'cct'\n", r"must contain only \[\[run\]\] tables"),
        ("seeds = [1]\n[[run]]\nrow = 'cct'\n", r"must contain only \[\[run\]\] tables"),
        ("[[run]]\nrow = 'cctt'\n", r"number 1: there is no row 'cctt' \(did you mean 'cct'\?\)"),
        ("[[run]]\nseeds = [1]\n", "row is missing"),
        ("[[run]]\nrow = []\n", "row is missing"),
        ("[[run]]\nrow = 'cct'\nseed = [1]\n", r"unknown key 'seed' \(did you mean 'seeds'\?\)"),
        ("[[run]]\nrow = 'cct'\nseeds = [7]\n", r"seeds = \[7\]: cct has the seeds 0, 1, 2, 3, 4"),
        ("[[run]]\nrow = 'cct'\nseeds = 1\n", "seeds = 1: must be a list"),
        ("[[run]]\nrow = 'cct'\nseeds = []\n", r"seeds = \[\]: must be a list"),
        ("[[run]]\nrow = 'cct'\nseeds = [true]\n", r"seeds = \[True\]: must be a list"),
        ("[[run]]\nrow = 'cct'\nepochs = 0\n", "epochs = 0: must be"),
        ("[[run]]\nrow = 'cct'\nepochs = '2'\n", "epochs = '2': must be"),
        ("[[run]]\nrow = 'cct'\nepochs = 30\n", "epochs = 30: must be below the 30 epochs of cct"),
        ("[[run]]\nrow = 'imagenet_cct_14'\nseeds = [0]\n", "imagenet_cct_14 runs single steps"),
        ("[[run]]\nrow = 'cct'\nseeds = [1, 1]\n", "number 1: cct, seed 1 is listed twice"),
        ("[[run]]\nrow = 'cct'\n[[run]]\nrow = 'cct'\nseeds = [2]\n", "number 2: cct, seed 2 is listed twice"),
    ],
)
def test_a_file_that_is_no_queue_is_one_line(tmp_path, text, says):
    with pytest.raises(UsageError, match=says) as error:
        read_queue(queue_of(tmp_path, text), ROWS)
    assert "\n" not in str(error.value) and str(error.value).startswith(f"--queue={tmp_path}")


def test_limits_are_times():
    assert [parse_limit(text) for text in ("2 hours", "1.5 day", " 90 minutes ", "3 seconds")] == [
        *(7200, 129600, 5400, 3)
    ]
    assert parse_limit("") == float("inf")
    for text in ("2", "0 hours", "two hours", "-1 hours", "2 weeks", "1e3 hours"):
        with pytest.raises(UsageError, match=r"--limit='.*': write a time"):
            parse_limit(text)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["cct", "--limit=2 hours"], "--limit=2 hours: it needs --queue"),
        (["cct", "--queue=x"], "cct: it does not go with --queue"),
        (["--all", "--queue=x"], "--all: it does not go with --queue"),
        (["--together", "--queue=x"], "--together: it does not go with --queue"),
        (["--queue=x", "--take=y"], "--queue: it does not go with --take"),
        (["--queue=x", "--pack=y.tar"], "--queue: it does not go with --pack"),
        (["--pack=y.zip"], "--pack=y.zip: the name must end in .tar"),
        (["--pack=y.tar", "--runs=/no/such"], "--runs=/no/such: it contains no runs"),
        (["--queue=/no/such"], "--queue=/no/such: there is no such file"),
    ],
)
def test_mistakes_are_one_line(words, says):
    with pytest.raises(UsageError, match=says):
        verb.main([f"--results={ROOT / 'results'}", *words])


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """machine(): arguments and folder of a new machine with rows, configs and queue."""

    def new(*, target=0.01, runs="runs.tar", queue='[[run]]\nrow = ["tiny", "small"]\nseeds = [0]\n'):
        folder = tmp_path_factory.mktemp("machine")
        text = (
            f"import sys; sys.path.insert(0, {str(TESTS)!r})\nfrom tiny import tiny_config\n"
            "def get_config(): return tiny_config(log__writers=('jsonl',){more})\n"
        )
        (folder / "tiny_row.py").write_text(text.replace("{more}", ""))
        (folder / "small_row.py").write_text(text.replace("{more}", ", train__batch_size=20"))
        row = TINY_ROW.format(weights="latest", target=target)
        (folder / "rows.toml").write_text(row + row.replace('"tiny', '"small'))
        places = {"results": folder, "configs": folder, "runs": folder / runs, "queue": queue_of(folder, queue)}
        return [f"--{name}={place}" for name, place in places.items()], folder

    return new


@pytest.fixture(scope="module")
def worked_off(machine):
    """Arguments and folder of a machine that has finished its queue."""
    words, folder = machine()
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        lowered = []
        patch.setattr(verb, "lower_priority", lambda: lowered.append(True))
        assert verb.main(words) == 0 and lowered == [True]
    return words, folder


def told(folder):
    """Accuracy and loss of each line, and the metrics of each run: all that is independent of time and machine."""
    lines = results_of(folder / "results.csv")
    return [
        {name: line[name] for name in ("row", "seed", "form", "recipe", "top1", "loss", "validation", "epochs")}
        | {"metrics": (folder / "metrics" / line["metrics"]).read_text()}
        for line in lines
    ]


def test_a_queue_is_worked_off_once(worked_off, capsys, monkeypatch):
    words, folder = worked_off
    lines = results_of(folder / "results.csv")
    assert [(line["row"], line["seed"]) for line in lines] == [("tiny", "0"), ("small", "0")]
    assert "| `small` | `small_row.py` | top1 5.00% | top1 1.00% | 1 of 2, n = 25 | top1 " in (
        (folder / "README.md").read_text()
    )
    kept = read_json(folder / "runs" / "small" / "seed_0" / "line.json")
    assert {name: str(value) for name, value in kept.items()} == lines[1]
    monkeypatch.setattr("jaxvit.reproduce.queue.run_row", lambda *_: pytest.fail("it was run again"))
    before = (folder / "results.csv").read_bytes()
    assert verb.main(words) == 0 and "2 of 2 runs are finished" in capsys.readouterr().out
    assert verb.main([*words, "--dry_run"]) == 0
    assert "1  tiny, seed 0   finished: top1 " in capsys.readouterr().out
    assert (folder / "results.csv").read_bytes() == before


class Clock(SimpleNamespace):
    """A clock that advances one second at each reading."""

    def monotonic(self):
        self.now += 1.0
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def test_what_the_limit_has_stopped_goes_on_elsewhere_as_if_nothing_had_been(machine, worked_off, capsys, monkeypatch):
    words, folder = machine()
    with monkeypatch.context() as patch:
        patch.setattr("jaxvit.reproduce.supervisor.time", Clock(now=0.0))
        message = r"the limit of 25 seconds is reached: stopped at step \d+ of 8; saved. The same command resumes"
        with pytest.raises(StoppedError, match=message) as stopped:
            verb.main([*words, "--limit=25 seconds"])
    assert stopped.value.exit_code == 75 and len(results_of(folder / "results.csv")) <= 1

    elsewhere, other = machine()
    shutil.copy(folder / "runs.tar", other / "runs.tar")
    capsys.readouterr()
    assert verb.main([*elsewhere, "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "saved after " in said and not (other / "runs").exists() and not (other / "results.csv").exists()
    assert verb.main(elsewhere) == 0
    assert told(other) == told(worked_off[1])
    starts = [len(json.loads(p.read_text())["starts"]) for p in sorted((other / "runs").rglob("environment.json"))]
    assert sorted(starts) in ([1, 2], [2, 2])  # the second row may have been begun in time


def test_a_run_that_cannot_be_done_does_not_end_the_queue(machine, capsys):
    words, folder = machine(runs="runs")
    text = (folder / "tiny_row.py").read_text()
    (folder / "tiny_row.py").write_text(
        text.replace("tiny_config(", "tiny_config(data__name='mnist', data__dir='/no', ")
    )
    assert verb.main(words) == 1
    said = capsys.readouterr().out
    assert "tiny, seed 0: not run: " in said and "small, seed 0: 1 of 2 seeds: top1 " in said
    assert said.splitlines()[-2].startswith("1 of 2 runs are finished; 1 left, about 1 minutes")
    queue_of(folder, '[[run]]\nrow = "tiny"\n')
    with pytest.raises(UsageError, match="mnist"):
        verb.main(words)


def test_a_queue_stands_still_for_a_timing_and_ends_between_runs(machine, monkeypatch, capsys):
    """A benchmark starts during the first run: nothing is computed until it ends, and this run uses up the limit."""
    words, folder = machine(runs="runs")
    events, asking = [], []
    book = loop.RunTracker.book

    def booked(tracker, step, *rest):
        events.append(f"step {step}")
        if step == 3:
            asking.append(quiet.asked(patience=0.0))
            asking[0].__enter__()
        book(tracker, step, *rest)

    def sleep(seconds):
        events.append("waits")
        if events.count("waits") == 3:
            asking[0].__exit__(None, None, None)

    monkeypatch.setattr(loop.RunTracker, "book", booked)
    monkeypatch.setattr("jaxvit.reproduce.supervisor._LOOK_SECONDS", 0.0)
    clock = SimpleNamespace(sleep=sleep, monotonic=lambda: 1e6 * (folder / "results.csv").exists())
    monkeypatch.setattr("jaxvit.reproduce.supervisor.time", clock)
    left = "the limit of 5 days is reached: stopped between two runs; 1 of 2 runs are finished; 1 left, about 1 minutes"
    with pytest.raises(StoppedError, match=left):
        verb.main([*words, "--limit=5 days"])
    first = events.index("waits")
    assert events[first : first + 3] == ["waits"] * 3 and 3 <= first <= 5
    assert [event for event in events if event != "waits"] == [f"step {i}" for i in range(1, 9)]
    said = capsys.readouterr().out
    assert "paused: another process asked for a quiet machine" in said and "tiny, seed 0: 1 of 2 seeds: top1 " in said


AT_THE_USUAL_PRIORITY = (
    "import sys, jaxvit.cli.reproduce as verb\nfrom jaxvit.cli import command_line\n"
    "verb.lower_priority = lambda: None\ncommand_line.run(verb.main, sys.argv[1:])"
)


@pytest.mark.slow
def test_killed_and_stopped_by_signals_it_goes_on(machine):
    """kill -9 loses only the work after the last checkpoint, SIGTERM nothing.

    Every start is a new process, also the uninterrupted one: this process may run jax with other XLA flags, and round
    differently.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def started(words, folder):
        command = [sys.executable, "-c", AT_THE_USUAL_PRIORITY, *words]
        return subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.PIPE, text=True)

    untouched, killed = machine(runs="runs"), machine(runs="runs")
    for number, line, code in [(signal.SIGKILL, "epoch 1/2", -9), (signal.SIGTERM, "compiling", 75)]:
        process = started(*killed)
        try:
            assert any(said.startswith(line) for said in process.stdout)
            process.send_signal(number)
            process.communicate(timeout=300)
        finally:
            process.kill()
        assert process.returncode == code
    for machine_of in (untouched, killed):
        process = started(*machine_of)
        process.communicate(timeout=300)
        assert process.returncode == 0
    assert told(killed[1]) == told(untouched[1])
