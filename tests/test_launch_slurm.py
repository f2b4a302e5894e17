"""launch.sh --on=slurm on a real Slurm of one controller and two nodes: what is submitted, stopped, queued again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_cluster import MISSING, WHY_NOT, Slurm, free_ports, wait_for

from jaxvit.files import read_json
from jaxvit.training.journal import read_jsonl

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500), pytest.mark.skipif(bool(MISSING), reason=WHY_NOT)]

# Words that a shell, sbatch or srun could change.
HARD = [
    "a b",
    "it's",
    '"two"',
    "$HOME",
    "$(date)",
    "`date`",
    "back\\slash",
    "new\nline",
    "*",
    "",
    "~",
    "%j",
    "a;b&c|d",
    "é",
]

# Writes what it was called with, and exits with the code that the test has written.
RECORDER = """#!{python}
import json, os, pathlib, sys, time
folder = pathlib.Path(os.environ["RECORDS"])
names = ("SLURM_PROCID", "SLURM_RESTART_COUNT", "SLURM_CPUS_PER_TASK", "VIRTUAL_ENV", "SLURM_ARRAY_TASK_ID")
record = {{"words": sys.argv[1:], **{{name: os.environ.get(name) for name in names}}}}
if "--count" in sys.argv:
    print(3)
    sys.exit(0)
if "-c" in sys.argv:
    sys.exit(0)
name = f"{{os.environ['SLURM_JOB_ID']}}_{{record['SLURM_RESTART_COUNT']}}_{{record['SLURM_PROCID']}}.json"
(folder / name).write_text(json.dumps(record))
while (folder / "wait").exists():
    time.sleep(0.1)
code = folder / "code"
# Only the first start fails.
sys.exit(int(code.read_text()) if code.exists() and not record["SLURM_RESTART_COUNT"] else 0)
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with Slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def environment_in(folder, python):
    """A folder that launch.sh accepts as an installed environment, with this text as its Python."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "activate").write_text(f'export VIRTUAL_ENV="{folder}"; PATH="{folder}/bin:$PATH"\n')
    (folder / "bin" / "python").write_text(python)
    (folder / "bin" / "python").chmod(0o755)
    sums = subprocess.run(
        "cat setup.cfg pyproject.toml | cksum", shell=True, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    (folder / ".jaxvit-installed").write_text(f"[] {sums} {ROOT}\n")
    return folder


class Launcher:
    """Calls launch.sh --on=slurm in a folder, with an environment."""

    def __init__(self, slurm, folder, python):
        self.slurm, self.folder = slurm, folder
        self.records = folder / "records"
        self.records.mkdir()
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAXVIT_", "SLURM"))}
        self.environment = {
            **kept,
            **slurm.environment,
            "JAXVIT_ACCELERATOR": "cpu",
            "JAXVIT_HUGE_PAGES": "0",
            "JAXVIT_VENV": str(environment_in(folder / "my venv", python)),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS), str(folder)]),
            "RECORDS": str(self.records),
        }

    def __call__(self, *words):
        done = subprocess.run(
            [ROOT / "launch.sh", "--on=slurm", *words],
            env=self.environment, cwd=self.folder, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.split("submitted job ")[1].split(";")[0]

    def recorded(self):
        return [json.loads(file.read_text()) for file in sorted(self.records.glob("*.json"))]


@pytest.fixture
def launch(slurm, tmp_path):
    return Launcher(slurm, tmp_path, RECORDER.format(python=sys.executable))


def test_words_arrive_unchanged_at_every_process(launch, slurm):
    number = launch("--nodes=2", "--cpus_per_task=2", "--time=1:00:00", "--sbatch=--comment=a b", "train", *HARD)
    assert slurm.wait_until(number, "COMPLETED", "FAILED")["JobState"] == "COMPLETED"
    first, second = launch.recorded()
    assert first["words"] == second["words"] == ["-m", "jaxvit", "train", *HARD, "--distributed"]
    assert {first["SLURM_PROCID"], second["SLURM_PROCID"]} == {"0", "1"}
    assert first["SLURM_CPUS_PER_TASK"] == "2" and first["VIRTUAL_ENV"].endswith("my venv")


def test_other_verbs_are_one_process(launch, slurm):
    number = launch("evaluate", *HARD)
    assert slurm.wait_until(number, "COMPLETED", "FAILED")["JobState"] == "COMPLETED"
    (only,) = launch.recorded()
    assert only["words"] == ["-m", "jaxvit", "evaluate", *HARD]


def test_only_a_stopped_run_is_queued_again(launch, slurm):
    """75 is queued again and the log is kept; other codes end the job; 75 after --limit is the run's own end."""
    (launch.records / "code").write_text("75")
    number = launch("--nodes=2", "train", "--workdir=x")
    slurm.start_again(number)
    done = slurm.wait_until(number, "COMPLETED", "FAILED")
    assert (done["JobState"], done["Restarts"]) == ("COMPLETED", "1")
    assert len(launch.recorded()) == 4  # two processes, twice
    log = launch.folder / f"jaxvit-train-{number}.out"
    assert "its state is saved; queued again" in log.read_text()
    (launch.records / "code").write_text("70")
    ended = launch("train", "--workdir=x")
    assert slurm.wait_until(ended, "COMPLETED", "FAILED")["ExitCode"] == "70:0"
    (launch.records / "code").write_text("75")
    limited = launch("reproduce", "--limit", "2 hours")
    done = slurm.wait_until(limited, "COMPLETED", "FAILED")
    assert (done["ExitCode"], done["Restarts"]) == ("75:0", "0")


def test_a_cancelled_job_is_not_queued_again(launch, slurm):
    (launch.records / "wait").touch()
    number = launch("train", "--workdir=x")
    wait_for(launch.recorded)
    slurm.ask("scancel", number)
    done = slurm.wait_until(number, "CANCELLED")
    assert done["Restarts"] == "0"


def test_a_sweep_is_an_array_of_parts(launch, slurm):
    number = launch("--at_once=2", "sweep", "--over=model.depth=1,2,3", "--config.x=a b")
    wait_for(lambda: len(launch.recorded()) == 3, slurm.logs)
    words = sorted(record["words"] for record in launch.recorded())
    start = ["-m", "jaxvit", "sweep", "--over=model.depth=1,2,3", "--config.x=a b"]
    assert words == [[*start, f"--part={i}/3"] for i in (1, 2, 3)]
    slurm.wait_until(f"{number}_3", "COMPLETED")


def test_a_missing_environment_is_one_line(launch, slurm):
    number = launch("train", "--workdir=x")
    slurm.wait_until(number, "COMPLETED")
    (Path(launch.environment["JAXVIT_VENV"]) / "bin" / "activate").unlink()
    number = launch("train", "--workdir=x")
    assert slurm.wait_until(number, "COMPLETED", "FAILED")["ExitCode"] == "2:0"
    log = (launch.folder / f"jaxvit-train-{number}.out").read_text()
    assert "set JAXVIT_VENV to a folder that all nodes share" in log


CONFIG = f"""import sys; sys.path.insert(0, {str(TESTS)!r})
from tiny import tiny_config
def get_config(): return tiny_config(train__duration='8 epochs', train__hooks=('pause:at_epoch_3',), optim__peak_lr=.01)
"""
# In Slurm's first start, all processes wait after the third epoch until the test has sent SIGTERM.
PAUSE = """import os, pathlib, time
def at_epoch_3(state, metrics):
    folder = pathlib.Path(os.environ["RECORDS"])
    if metrics["epoch"] == 3 and "SLURM_JOB_ID" in os.environ and "SLURM_RESTART_COUNT" not in os.environ:
        (folder / f"reached_{os.environ['SLURM_PROCID']}").touch()
        for _ in range(3000):
            if (folder / "go").exists():
                return
            time.sleep(0.1)
"""


def history(workdir):
    return [{k: v for k, v in line.items() if "seconds" not in k} for line in read_jsonl(workdir / "metrics.jsonl")]


def test_a_run_of_two_tasks_is_stopped_and_ends_with_the_local_result(slurm, tmp_path):
    launch = Launcher(slurm, tmp_path, f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tmp_path / "digits.py").write_text(CONFIG)
    (tmp_path / "pause.py").write_text(PAUSE)
    train = ["train", "--config=./digits.py"]
    number = launch("--nodes=2", *train, "--workdir=in_slurm")
    log = tmp_path / f"jaxvit-train-{number}.out"
    wait_for(lambda: len(list(launch.records.glob("reached_*"))) == 2, lambda: log.read_text() + slurm.logs(), 600)
    slurm.ask("scancel", "--signal=TERM", number)
    (launch.records / "go").touch()
    slurm.start_again(number)
    done = slurm.wait_until(number, "COMPLETED", "FAILED", "CANCELLED")
    said = log.read_text()
    assert (done["JobState"], done["Restarts"]) == ("COMPLETED", "1"), said
    assert "stopped at step " in said and "queued again" in said and "resuming from step " in said, said

    # The same two processes without Slurm, never stopped: the same program, so the same bits.
    (port,) = free_ports(1)
    words = [sys.executable, "-m", "jaxvit", *train, "--workdir=alone", f"--coordinator=127.0.0.1:{port}"]
    both = [
        subprocess.Popen([*words, "--num_processes=2", f"--process_id={i}"], cwd=tmp_path, env=launch.environment)
        for i in (0, 1)
    ]
    assert [process.wait(600) for process in both] == [0, 0]
    in_slurm, alone = tmp_path / "in_slurm", tmp_path / "alone"
    assert history(in_slurm) == history(alone)
    results = [read_json(folder / "result.json", "") for folder in (in_slurm, alone)]
    assert results[0]["test"] == results[1]["test"]

    # One process is another program, which agrees up to rounding.
    local = [ROOT / "launch.sh", "--on=local", *train, "--workdir=one"]
    subprocess.run(local, cwd=tmp_path, env=launch.environment, check=True, timeout=600)
    one = read_json(tmp_path / "one" / "result.json", "")["test"]
    assert one["count"] == results[0]["test"]["count"] and one["top1"] == results[0]["test"]["top1"]
    assert one["loss"] == pytest.approx(results[0]["test"]["loss"], rel=1e-4)
