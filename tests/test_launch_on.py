"""launch.sh --on=…: flags, mistakes, dry runs that can be pasted into a shell, and words that arrive unchanged."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HARD = ["a b", "it's", '"two"', "$HOME", "$(date)", "`date`", "back\\slash", "new\nline", "*", "", "~", "a;b&c|d", "é"]
RECORDER = """#!{python}
import json, os, sys
with open(os.environ["RECORDED"], "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
print(3 if "--count" in sys.argv else 71)
sys.exit(int(os.environ.get("CODE", 0)))
"""


class Launcher:
    """Calls launch.sh with stand-ins for sbatch and for the Python of the environment, which record their words."""

    def __init__(self, folder):
        self.folder, self.recorded = folder, folder / "recorded"
        (folder / "bin").mkdir()
        (folder / "venv" / "bin").mkdir(parents=True)
        for file in (folder / "bin" / "sbatch", folder / "venv" / "bin" / "python"):
            file.write_text(RECORDER.format(python=sys.executable))
            file.chmod(0o755)
        sums = subprocess.run(
            "cat setup.cfg pyproject.toml | cksum", shell=True, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        stamps = [f"[{extra}] {sums} {ROOT}\n" for extra in ("", "cuda12")]
        (folder / "venv" / ".jaxvit-installed").write_text("".join(stamps))
        kept = {k: v for k, v in os.environ.items() if not k.startswith("JAXVIT_")}
        self.environment = {
            **kept,
            "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
            "RECORDED": str(self.recorded),
            "JAXVIT_ACCELERATOR": "cpu",
            "JAXVIT_VENV": str(folder / "venv"),
        }

    def __call__(self, *words, code=0, **variables):
        environment = {**self.environment, **variables}
        done = subprocess.run([ROOT / "launch.sh", *words], env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def words(self):
        lines = self.recorded.read_text().splitlines() if self.recorded.exists() else []
        self.recorded.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]


@pytest.fixture
def launch(tmp_path):
    return Launcher(tmp_path)


def job_of(launch):
    return [str(ROOT / "launch" / "slurm_job.sh"), str(launch.folder / "venv")]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--on=slrum", "train"], "--on=slrum: must be one of local, slurm, tpu, k8s"),
        (["--on", "slurm", "train"], "--on: write the place after =, such as --on=slurm"),
        (["--on=", "train"], "--on=: must be one of"),
        (["--on=slurm"], "the verb is missing, such as: ./launch.sh --on=slurm train --config=digits"),
        (["--on=slurm", "tran"], "there is no verb 'tran' to launch; verbs: train, sweep, "),
        (["--on=slurm", "test"], "there is no verb 'test' to launch"),
        (["--on=slurm", "--node=2", "train"], "--on=slurm has no flag --node (did you mean --nodes?)"),
        (["--on=slurm", "--config=x", "train"], "--on=slurm has no flag --config; flags of the verb come after"),
        (["--on=slurm", "--nodes", "2", "train"], "--nodes: write its value after =, such as --nodes=N"),
        (["--on=slurm", "--nodes=", "train"], "--nodes=: the value is missing; write --nodes=N"),
        (["--on=slurm", "--nodes=0", "train"], "--nodes=0: must be a whole number, 1 or more"),
        (["--on=slurm", "--nodes=08x", "train"], "--nodes=08x: must be a whole number, 1 or more"),
        (["--on=slurm", "--time=4h", "train"], "--time=4h: write it as HH:MM:SS"),
        (["--on=slurm", "--save_before=-1", "train"], "--save_before=-1: must be a whole number"),
        (["--on=slurm", "--dry_run=no", "train"], "--dry_run takes no value"),
        (["--on=slurm", "--nodes=2", "evaluate"], "--nodes=2: only train runs on several nodes"),
        (["--on=slurm", "--tasks_per_node=2", "sweep"], "--tasks_per_node=2: only train runs as several processes"),
        (
            ["--on=slurm", "--gpus_per_node=8", "--tasks_per_node=4", "train"],
            "each one uses one GPU; give --tasks_per_node=8",
        ),
        (["--on=slurm", "train", "--workdir=gs://bucket/x"], "gs://bucket/x is a bucket"),
        (["--on=slurm", "train", "--workdir", "s3://bucket/x"], "s3://bucket/x is a bucket"),
        (["--on=local", "--nodes=2", "train"], "--on=local has no flag --nodes"),
    ],
)
def test_a_mistake_is_one_line(launch, words, says):
    done = launch(*words, code=2)
    assert says in done.stderr and done.stderr.count("\n") == 1 and done.stdout == "" and launch.words() == []


@pytest.mark.parametrize(
    ("place", "command", "flags"),
    [
        ("slurm", "sbatch", []),
        ("tpu", "gcloud", ["--name=a", "--zone=z", "--type=v6e-8"]),
        ("k8s", "kubectl", ["--name=a", "--image=i"]),
    ],
)
def test_a_missing_command_is_one_line(launch, place, command, flags):
    tools = launch.folder / "tools"
    tools.mkdir()
    for name in ("bash", "env", "dirname", "cat", "cksum", "grep", "sed", "tr", "awk"):
        (tools / name).symlink_to(shutil.which(name))
    done = launch(f"--on={place}", *flags, "train", "--workdir=x", code=2, PATH=str(tools))
    assert f"--on={place} needs the command {command}: " in done.stderr and done.stderr.count("\n") == 1
    launch(f"--on={place}", "--dry_run", *flags, "train", PATH=f"{tools}:/usr/bin:/bin")  # needs no such command


@pytest.mark.parametrize("place", ["local", "slurm", "tpu", "k8s"])
def test_help_teaches(launch, place):
    said = launch(f"--on={place}", "--help").stdout
    assert f"./launch.sh --on={place}" in said and "--dry_run" in said and "words after the verb" in said
    # Every example of the help is a valid command.
    examples = said.replace("\\\n", "").splitlines()
    examples = [line.strip() for line in examples if line.startswith(f"  ./launch.sh --on={place}")]
    assert examples
    for line in examples:
        dry = line.replace(f"--on={place}", f"--on={place} --dry_run")
        done = subprocess.run(["bash", "-c", dry], env=launch.environment, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout, line + done.stderr


def test_every_flag_of_slurm_reaches_sbatch(launch):
    words = ["--nodes=2", "--gpus-per-node=4", "--cpus_per_task=6", "--partition=long", "--account=vision"]
    words += ["--time=1-04:00:00", "--save_before=300", "--name=mine", "--log=logs/%j.txt"]
    words += ["--sbatch=--mem=64G", "--sbatch=--comment=two words"]
    done = launch("--on=slurm", *words, "train", "--config=digits", "--dry_run")
    (said,) = launch.words()
    at = said.index(job_of(launch)[0])
    assert said[at:] == [*job_of(launch), "train", "--config=digits", "--dry_run"]
    assert said[:at] == [
        "--parsable",
        "--job-name=mine",
        "--nodes=2",
        "--ntasks=8",
        "--ntasks-per-node=4",
        "--gpus-per-node=4",
        "--cpus-per-task=6",
        "--partition=long",
        "--account=vision",
        "--time=1-04:00:00",
        "--signal=TERM@300",
        "--requeue",
        "--open-mode=append",
        "--output=logs/%j.txt",
        "--mem=64G",
        "--comment=two words",
    ]
    assert "submitted job 71; its log is logs/%j.txt" in done.stdout and "scancel --signal=TERM 71" in done.stdout


def test_one_process_uses_all_gpus_of_a_node_for_other_verbs(launch):
    launch("--on=slurm", "--gpus_per_node=4", "evaluate", "--workdir=x")
    (said,) = launch.words()
    assert {"--ntasks=1", "--ntasks-per-node=1", "--gpus-per-node=4"} <= set(said)


@pytest.mark.skipif(bool(shutil.which("nvidia-smi")), reason="this machine has a GPU")
def test_gpus_of_other_nodes_get_the_libraries_for_them(launch):
    stamp = launch.folder / "venv" / ".jaxvit-installed"
    stamp.write_text("".join(line for line in stamp.open() if line.startswith("[cuda12]")))
    launch("--on=slurm", "--gpus_per_node=1", "train", JAXVIT_ACCELERATOR="")
    (said,) = launch.words()  # nothing was installed
    assert "--gpus-per-node=1" in said


def test_a_sweep_is_an_array(launch):
    launch("--on=slurm", "--at_once=2", "sweep", "--over=a=1,2,3", *HARD)
    count, said = launch.words()
    assert count == ["-m", "jaxvit", "sweep", "--over=a=1,2,3", *HARD, "--count"]
    assert {"--array=1-3%2", "--output=jaxvit-sweep-%A_%a.out"} <= set(said) and said[-len(HARD) :] == HARD
    launch("--on=slurm", "sweep", "--over=a=1,2,3", "--dry_run")  # lists the cells in one job
    (said,) = launch.words()
    assert not [word for word in said if word.startswith("--array")]
    # A mistake of the sweep is found before the submission.
    launch("--on=slurm", "sweep", "--over=a", code=2, CODE="2")
    assert launch.words() == [["-m", "jaxvit", "sweep", "--over=a", "--count"]]


def test_what_slurm_refuses_is_reported(launch):
    done = launch("--on=slurm", "train", code=2, CODE="1")
    assert done.stderr == "launch.sh: sbatch refused the job (its reason is above)\n" and done.stdout == ""


def test_a_dry_run_prints_the_command_for_a_shell(launch):
    words = ["--on=slurm", "--nodes=2", "--sbatch=--comment=it's", "train", *HARD]
    launch(*words)
    submitted = launch.words()
    said = launch("--dry_run", *words).stdout
    assert launch.words() == []
    command, script = said.split(f"\n\n{job_of(launch)[0]}:\n\n")
    subprocess.run(["bash", "-c", command], env=launch.environment, check=True, capture_output=True)
    assert launch.words() == submitted
    assert script == (ROOT / "launch" / "slurm_job.sh").read_text()


def test_on_this_machine_words_arrive_unchanged(launch):
    launch("--on=local", "train", *HARD)
    assert launch.words() == [["-m", "jaxvit", "train", *HARD]]
    said = launch("--on=local", "--dry_run", "train", *HARD).stdout
    assert launch.words() == []
    subprocess.run(["bash", "-c", said], env=launch.environment, check=True, capture_output=True)
    assert launch.words() == [["-m", "jaxvit", "train", *HARD]]
    # A flag --on of a verb is not one of launch.sh.
    launch("train", "--on=slurm")
    assert launch.words() == [["-m", "jaxvit", "train", "--on=slurm"]]


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed: apt install shellcheck")
def test_scripts_are_clean():
    files = [ROOT / "launch.sh", *sorted((ROOT / "launch").glob("*.sh")), ROOT / ".ci" / "run"]
    files += [ROOT / ".ci" / "install_tools"]
    done = subprocess.run(["shellcheck", *files], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
