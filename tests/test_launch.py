"""launch.sh: errors, forwarded arguments, and restarts of stopped runs."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch.sh"


def environment(**more):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAXVIT_")}
    return {**kept, "JAXVIT_ACCELERATOR": "cpu", **more}


def stamped_environment(folder):
    """A folder that launch.sh accepts as its environment: this Python, and the stamp."""
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    sums = subprocess.run(
        "cat setup.cfg pyproject.toml | cksum", shell=True, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    (folder / ".jaxvit-installed").write_text(f"[] {sums} {ROOT}\n")
    return str(folder)


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        ({"JAXVIT_ACCELERATOR": "gpu"}, 2, "JAXVIT_ACCELERATOR=gpu: must be cpu, cuda12, cuda13 or tpu"),
        ({"JAXVIT_PYTHON": "/no/such/python"}, 2, "JAXVIT_PYTHON=/no/such/python is not usable"),
        ({"JAXVIT_VENV": "/dev/null/venv"}, 70, "cannot make an environment in /dev/null/venv"),
    ],
)
def test_what_is_missing_is_one_line(tmp_path, more, code, says):
    settings = {"JAXVIT_VENV": str(tmp_path / "venv"), **more}
    done = subprocess.run([LAUNCH, "train"], capture_output=True, text=True, env=environment(**settings))
    assert done.returncode == code and says in done.stderr and done.stderr.count("\n") == 1


def test_no_network_is_one_line(tmp_path):
    settings = {
        "JAXVIT_VENV": str(tmp_path / "venv"),
        "JAXVIT_PYTHON": sys.executable,
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_NO_CACHE_DIR": "1",
        "PIP_RETRIES": "0",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_FIND_LINKS": "",
    }
    done = subprocess.run([LAUNCH, "train"], capture_output=True, text=True, env=environment(**settings))
    assert done.returncode == 70, done.stderr
    assert done.stderr.count("\n") == 1 and "no network" in done.stderr


def test_a_second_call_installs_nothing_and_forwards(tmp_path):
    settings = {"JAXVIT_VENV": stamped_environment(tmp_path / "venv"), "PIP_INDEX_URL": "http://127.0.0.1:9/simple"}
    done = subprocess.run([LAUNCH, "--version"], capture_output=True, text=True, env=environment(**settings))
    assert done.returncode == 0 and done.stdout.startswith("jaxvit ") and done.stderr == ""
    done = subprocess.run([LAUNCH, "tran"], capture_output=True, text=True, env=environment(**settings))
    assert done.returncode == 2 and "did you mean 'train'" in done.stderr


@pytest.fixture
def echoing(tmp_path):
    """A new environment whose Python only prints its arguments and always succeeds."""
    (tmp_path / "my venv" / "bin").mkdir(parents=True)
    python = tmp_path / "my venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "called: $*"\n')
    python.chmod(0o755)
    return environment(JAXVIT_VENV="my venv")


def test_it_ends_by_naming_the_next_command(echoing, tmp_path):
    def launch(*words):
        done = subprocess.run([LAUNCH, *words], capture_output=True, text=True, env=echoing, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    activate = r"To use the command jaxvit in this terminal:  source my\ venv/bin/activate"
    *_, called, _, following, last = launch("summary", "--list")
    assert called == "called: -m jaxvit summary --list"
    assert following == r"Next, for example:  my\ venv/bin/jaxvit --help" and last == activate
    assert launch("summary", "--list") == [called]  # nothing was installed
    called, _, following, last = launch()
    assert called == "called: -m jaxvit train --config=digits --workdir=runs/digits" and last == activate
    assert following == rf"Next, for example:  my\ venv/bin/jaxvit evaluate --workdir={ROOT}/runs/digits"
    *_, called, _, following, last = launch("test", "tests/ops")
    assert called == f"called: -m jaxvit.devices.quiet {tmp_path}/my venv/bin/python -m pytest tests/ops"
    assert last == activate and " train --config=digits " in following
    assert launch("test", "tests/ops") == [called]


def test_what_is_limited_is_not_started_again(tmp_path):
    settings = {"JAXVIT_VENV": stamped_environment(tmp_path / "venv")}
    (tmp_path / "venv" / "bin" / "python").write_text("#!/bin/sh\necho started\nexit 75\n")
    for words in (["--limit=2 hours"], ["--limit", "2 hours"]):
        command = [LAUNCH, "reproduce", "--queue=results/queue.toml", *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(**settings), timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (75, "started\n", "")


def test_the_tests_ask_for_a_quiet_machine(tmp_path):
    settings = {"JAXVIT_VENV": stamped_environment(tmp_path / "venv"), "JAXVIT_LOCKS": str(tmp_path / "locks")}
    stamp = tmp_path / "venv" / ".jaxvit-installed"
    stamp.write_text(stamp.read_text().replace("[]", "[test]"))
    (tmp_path / "test_it.py").write_text(
        "from jaxvit.devices import quiet\n\ndef test_it():\n    assert quiet.is_asked()\n"
    )
    command = [LAUNCH, "test", "-q", "-p", "no:cacheprovider", str(tmp_path / "test_it.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(**settings))
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def start(tmp_path):
    """A long run through launch.sh, in a separate process group, as a terminal starts it."""
    config = tmp_path / "long.py"
    config.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from tiny import tiny_config\n"
        "def get_config(): return tiny_config(train__duration='4000 epochs', data__validation='',"
        " checkpoint__every='4000 epochs')\n"
    )
    process = subprocess.Popen(
        [LAUNCH, "train", f"--config={config}", f"--workdir={tmp_path / 'run'}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment(JAXVIT_VENV=stamped_environment(tmp_path / "venv")),
    )
    wait_for(lambda: trained(tmp_path) > 0)
    return process


def trained(tmp_path):
    file = tmp_path / "run" / "metrics.jsonl"
    return file.stat().st_size if file.exists() else 0


@pytest.mark.slow
def test_ctrl_c_reaches_the_run_and_is_final(tmp_path):
    process = start(tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "saved. The same command resumes from here" in err and "starting it again" not in err and "Trace" not in err


@pytest.mark.slow
def test_a_preempted_run_is_started_again_and_goes_on(tmp_path):
    process = start(tmp_path)
    (child,) = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "jaxvit"], capture_output=True, text=True
    ).stdout.split()
    os.kill(int(child), signal.SIGTERM)
    wait_for(lambda: (tmp_path / "run" / "environment.json").read_text().count('"time"') == 2)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    first, second = (int(step) for step in re.findall(r"stopped at step (\d+)", err))
    assert second > first and err.count("starting it again") == 1


@pytest.mark.slow
def test_a_sigterm_to_the_script_is_passed_on_and_ends_it_with_75(tmp_path):
    process = start(tmp_path)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75 and "saved" in err and "starting it again" not in err


@pytest.mark.slow
def test_what_a_gpu_is_measured_by_is_valid(tmp_path):
    """Every command of benchmarks/on_gpu.sh, as a dry run."""
    words = ["bash", str(ROOT / "benchmarks" / "on_gpu.sh"), str(tmp_path / "out")]
    variables = {**os.environ, "DRY_RUN": "1", "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "TFDS_DATA_DIR": ""}
    done = subprocess.run(words, env=variables, capture_output=True, text=True)
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "== epochs" in log and log.count("==") == 8
    # CIFAR-10 need not be prepared here.
    assert done.returncode == 0 or (log.count(" ended with ") == 1 and "cifar10" in log), log
