"""launch.sh --on=tpu with a stand-in for gcloud, which records its calls and runs the commands of the workers here."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HARD = ["a b", "it's", '"two"', "$HOME", "$(date)", "`date`", "back\\slash", "new\nline", "*", "", "~", "a;b&c|d", "é"]

# The state of the slice is a file; each worker has a home folder. `plan` lists what happens at each call of "follow".
GCLOUD = """#!{python}
import json, os, pathlib, shutil, signal, subprocess, sys
folder = pathlib.Path(os.environ["STANDIN"])
words = sys.argv[1:]
with (folder / "calls").open("a") as calls:
    calls.write(json.dumps(words) + "\\n")
state = folder / "state"
kind, verb = words[2:4]
value = next((word.partition("=")[2] for word in words if word.startswith("--worker=")), "0")
workers = [0, 1] if value == "all" else [int(value)]

def kill():
    for home in folder.glob("worker_*"):
        pid = home / "jaxvit-run" / "pid"
        if pid.exists():
            try:
                os.killpg(int(pid.read_text()), signal.SIGKILL)
            except ProcessLookupError:
                pass
        shutil.rmtree(home)

if verb == "create":
    state.write_text("WAITING_FOR_RESOURCES" if kind == "queued-resources" else "CREATING")
elif verb == "delete":
    kill()
    state.unlink()
elif verb == "describe":
    if not state.exists():
        sys.exit("ERROR: (gcloud) NOT_FOUND: there is no such resource")
    now = state.read_text()
    if now == "no account":
        sys.exit("ERROR: account: you do not have an active account\\nlog in by ...")
    after = {{"WAITING_FOR_RESOURCES": "PROVISIONING", "PROVISIONING": "ACTIVE", "CREATING": "READY"}}
    print({{"ACTIVE": "READY"}}.get(now, now) if kind == "tpu-vm" else now)
    state.write_text(after.get(now, now))
elif verb == "scp":
    for worker in workers:
        home = folder / f"worker_{{worker}}"
        home.mkdir(exist_ok=True)
        shutil.copy(words[4], home)
elif verb == "ssh":
    command = next(word.partition("=")[2] for word in words if word.startswith("--command="))
    plan = folder / "plan"
    if " follow " in command and plan.exists():
        happens, *later = plan.read_text().split()
        plan.write_text(" ".join(later)) if later else plan.unlink()
        if happens == "preempted":
            state.write_text("SUSPENDED" if state.read_text() == "ACTIVE" else "PREEMPTED")
            sys.exit(255)
        if happens == "lost":
            sys.exit(255)
    for worker in workers:
        home = folder / f"worker_{{worker}}"
        variables = {{**os.environ, "HOME": str(home), "JAXVIT_VENV": str(home / "venv"), "WORKER": str(worker)}}
        if "tar -xzf" in command:
            (home / "venv" / "bin").mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "python", home / "venv" / "bin" / "python")
        code = subprocess.run(["bash", "-c", command], env=variables, cwd=home, start_new_session=True).returncode
        if code:
            sys.exit(code)
"""

# The Python of a worker's environment: installs nothing, and records what it was called with.
PYTHON = """#!{python}
import json, os, pathlib, sys
if "pip" in sys.argv:
    sys.exit(0)
folder = pathlib.Path(os.environ["STANDIN"])
with (folder / "runs").open("a") as runs:
    runs.write(json.dumps([os.environ["WORKER"], *sys.argv[1:]]) + "\\n")
print("line one\\nline two", flush=True)
code = folder / "code"
sys.exit(int(code.read_text()) if code.exists() else 0)
"""


class Standin:
    def __init__(self, folder):
        self.folder = folder
        (folder / "bin").mkdir()
        for file, text in (("bin/gcloud", GCLOUD), ("python", PYTHON)):
            (folder / file).write_text(text.format(python=sys.executable))
            (folder / file).chmod(0o755)
        kept = {k: v for k, v in os.environ.items() if not k.startswith("JAXVIT_")}
        self.environment = {
            **kept,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "STANDIN": str(folder),
            "JAXVIT_ACCELERATOR": "cpu",
            "JAXVIT_POLL": "0.1",
        }

    def __call__(self, *words, code=0, **variables):
        command = [ROOT / "launch.sh", "--on=tpu", "--name=vit", "--zone=us-west4-a", "--poll=0", *words]
        done = subprocess.run(
            command, env={**self.environment, **variables}, cwd=self.folder, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def calls(self):
        return [json.loads(line)[2:] for line in (self.folder / "calls").read_text().splitlines()]

    def runs(self):
        return [json.loads(line) for line in (self.folder / "runs").read_text().splitlines()]


@pytest.fixture
def standin(tmp_path):
    standin = Standin(tmp_path)
    yield standin
    for pid in tmp_path.glob("worker_*/jaxvit-run/pid"):
        try:
            os.killpg(int(pid.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            continue


def test_a_slice_is_made_set_up_started_and_followed(standin):
    (standin.folder / "mine.py").write_text("x = 1\n")
    done = standin(
        "--type=v6e-16", "--spot", "--project=p", "--copy=mine.py", "--setup=echo ready >set_up", "train", *HARD
    )
    assert "\nline one\nline two\n" in done.stdout
    # Each word arrives unchanged at each worker.
    runs = sorted(standin.runs())
    assert runs == [[worker, "-m", "jaxvit", "train", *HARD, "--distributed"] for worker in ("0", "1")]
    assert (standin.folder / "worker_1" / "set_up").read_text() == "ready\n"
    assert (standin.folder / "worker_1" / "mine.py").read_text() == "x = 1\n"
    calls = standin.calls()
    assert all("--zone=us-west4-a" in call and "--project=p" in call and "--quiet" in call for call in calls)
    (made,) = [call for call in calls if call[1] == "create"]
    assert made[:3] == ["tpu-vm", "create", "vit"]
    assert {"--version=v2-alpha-tpuv6e", "--accelerator-type=v6e-16", "--spot"} <= set(made)
    assert not [call for call in calls if call[1] == "delete"]  # it may still be needed
    assert "vit still exists" in done.stderr and "gcloud compute tpus tpu-vm delete vit" in done.stderr
    # A second call finds the slice, and starts the command again.
    standin("--type=v6e-16", "--project=p", "train", *HARD)
    assert len([call for call in standin.calls() if call[1] == "create"]) == 1


@pytest.mark.parametrize(("queued", "state"), [("--queued", "SUSPENDED"), ("", "PREEMPTED")])
def test_a_preempted_slice_is_made_again(standin, queued, state):
    (standin.folder / "plan").write_text("lost preempted")
    done = standin("--type=v5litepod-16", "--spot", *([queued] if queued else []), "train", "--workdir=/mnt/x")
    calls = [call[:2] for call in standin.calls()]
    kind = "queued-resources" if queued else "tpu-vm"
    assert calls.count([kind, "create"]) == 2 and calls.count([kind, "delete"]) == 1
    assert f"vit is {state}" in done.stderr and "lost the connection to vit" in done.stderr
    assert done.stdout.count("line two") == 1
    if queued:
        (first, _) = [call for call in standin.calls() if call[1] == "create"]
        assert {"--node-id=vit", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"} <= set(first)
        assert "vit is WAITING_FOR_RESOURCES" in done.stderr and "vit is PROVISIONING" in done.stderr


def test_it_gives_up_after_its_retries_and_returns_the_code_of_the_run(standin):
    (standin.folder / "plan").write_text("preempted preempted")
    done = standin("--type=v6e-8", "--retries=1", "train", "--workdir=x", code=75)
    assert done.stderr.splitlines()[-1].startswith("launch.sh: vit was PREEMPTED 1 times")
    (standin.folder / "state").write_text("READY")
    (standin.folder / "code").write_text("2")
    for pid in standin.folder.rglob("jaxvit-run/pid"):
        pid.unlink()  # a preempted machine runs nothing any more; here its process may still be ending
    standin("--type=v6e-8", "evaluate", "--workdir=x", code=2)
    assert standin.runs()[-1] == ["0", "-m", "jaxvit", "evaluate", "--workdir=x"]  # one worker, not distributed


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("STOPPED", "vit is STOPPED: start it again or delete it"),
        ("", "gcloud does not tell the state of vit: ERROR: acc"),
    ],
)
def test_what_it_cannot_mend_ends_it(standin, state, says):
    (standin.folder / "state").write_text(state or "no account")
    done = standin("--type=v6e-8", "train", "--workdir=x", code=70)
    assert says in done.stderr.splitlines()[-1] and {call[1] for call in standin.calls()} == {"describe"}


def test_a_dry_run_reads_like_the_calls(standin):
    words = ["--type=v6e-16", "--queued", "--setup=true", "train", "--config=digits", "--config.seeds=(0, 1)"]
    done = standin("--dry_run", *words)
    assert not (standin.folder / "calls").exists()
    standin(*words)
    for call in standin.calls():
        if call[1] in ("create", "ssh"):
            pieces = [piece for piece in call if not piece.startswith("--command=bash jaxvit/launch/tpu_worker.sh fo")]
            for piece in pieces:
                assert piece.replace("'", "'\\''") in done.stdout or piece in done.stdout, piece


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train"], "--type is missing"),
        (["--type=v9-8", "train"], "--type=v9-8: give the runtime version of the VMs with --version=NAME"),
        (["--type=v6e-8", "--retries=-1", "train"], "--retries=-1: must be a whole number, 0 or more"),
        (["--type=v6e-8", "--name=Vit", "train"], "--name=Vit: lower-case letters"),
        (["--type=v6e-8", "--copy=none.py", "train"], "--copy=none.py: there is no such file"),
        (["--type=v6e-8", "--spott", "train"], "--on=tpu has no flag --spott (did you mean --spot?)"),
        (["--type=v6e-8", "--spot=1", "train"], "--spot takes no value"),
    ],
)
def test_a_wrong_flag_is_one_line(standin, words, says):
    done = standin(*words, code=2)
    assert says in done.stderr and done.stderr.count("\n") == 1 and not (standin.folder / "calls").exists()
