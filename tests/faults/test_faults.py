"""System calls fail while a verb runs: it prints one line, leaves no half-written file, and the same command resumes.

`faults.c` makes the calls fail, `verbs.py` runs the verbs; each case is a process. Without a C compiler, only the tests
of standard streams run.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

HERE = Path(__file__).parent
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
needs_compiler = pytest.mark.skipif(not COMPILER or sys.platform != "linux", reason="needs a C compiler on Linux")

# Kinds of calls, as in faults.c.
OPEN, WRITE, SYNC, RENAME, MAKE, CUT, LOOK, READ, REMOVE = (1 << i for i in range(9))
CHANGES = OPEN | WRITE | SYNC | RENAME | MAKE | CUT

# The name and the remedy in the message for each error.
SAID = {
    "EIO": ("the disk reports an error (EIO)", "See to the disk"),
    "ENOSPC": ("the disk is full", "Make room"),
    "EDQUOT": ("the quota of this disk is used up", "Make room"),
    "EROFS": ("the file system is read-only", "Have it mounted for writing"),
    "EACCES": ("permission is denied", "Have the rights"),
}
STAYS = {"ENOSPC", "EDQUOT", "EROFS"}

# A run meets these one after another: (kinds, part of the path, which call); $ is the path's end. TensorStore writes
# the array files of a checkpoint.
CHAINS = {
    "EIO": [
        (SYNC, ".config.json.tmp", 1),
        (WRITE, "tensorboard/", 1),
        (WRITE, "4.orbax-checkpoint-tmp/state.orbax-checkpoint-tmp/ocdbt.process_0/d/", 1),
        (RENAME, "checkpoints/4$", 1),
        (OPEN, "8.orbax-checkpoint-tmp/metrics", 1),
        (RENAME, "/result.json$", 1),
    ],
    "ENOSPC": [
        (MAKE, "checkpoints", 1),
        (WRITE, "metrics.jsonl", 1),
        (WRITE, ".manifest.json.tmp", 1),
        (SYNC, "8.orbax-checkpoint-tmp/state.orbax-checkpoint-tmp/d", 1),
        (OPEN, ".result.json.tmp", 1),
    ],
    "EDQUOT": [
        (WRITE, ".environment.json.tmp", 1),
        (MAKE, "tensorboard", 1),
        (OPEN, "state.orbax-checkpoint-tmp/_sharding", 1),
        (SYNC, "8.orbax-checkpoint-tmp/state.orbax-checkpoint-tmp/ocdbt.process_0/manifest.ocdbt", 2),
        (WRITE, ".result.json.tmp", 1),
    ],
    "EROFS": [
        (RENAME | REMOVE, "/model.json$", 1),
        (MAKE | OPEN | REMOVE, "4.orbax-checkpoint-tmp", 1),
        (CHANGES | REMOVE, "8.orbax-checkpoint-tmp/state", 3),
        (OPEN | REMOVE, "result.json", 1),
    ],
    "EACCES": [
        (OPEN, ".model.json.tmp", 1),
        (OPEN, "tensorboard/", 1),
        (MAKE, "4.orbax-checkpoint-tmp/progress", 1),
        (WRITE, "8.orbax-checkpoint-tmp/_CHECKPOINT_METADATA", 2),
        (RENAME, "/result.json$", 1),
    ],
}

CONFIG = """
import flax.linen as nn
from jaxvit.config import base_config

class Linear(nn.Module):
    num_classes: int = 10

    @nn.compact
    def __call__(self, images, *, train: bool):
        return nn.Dense(self.num_classes)(images.reshape(images.shape[0], -1))

def get_config():
    config = base_config("linear:Linear")
    config.data.train, config.data.validation, config.data.test = "train[:60]", "train[60:90]", "test[:25]"
    config.augment.pad_crop = 1
    config.train.batch_size = 16
    config.train.duration = "2 epochs"
    return config
"""


class Verbs:
    """A running `verbs.py`, in a folder that contains the config."""

    def __init__(self, place: Path):
        self.place = place
        (place / "linear.py").write_text(CONFIG)
        library = place / "libfaults.so"
        env = os.environ | {"PYTHONWARNINGS": "ignore"}
        if COMPILER and sys.platform == "linux":
            command = [
                COMPILER,
                "-O1",
                "-Wall",
                "-Werror",
                "-shared",
                "-fPIC",
                "-o",
                library,
                HERE / "faults.c",
                "-ldl",
            ]
            subprocess.run(command, check=True)
            env["LD_PRELOAD"] = str(library)
        self._process = subprocess.Popen(
            [sys.executable, HERE / "verbs.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        self.cpu = 0.0

    def __call__(self, *argv: object, **asked: object) -> dict:
        words = {"argv": [str(word) for word in argv], "cwd": str(self.place), **asked}
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        self.cpu += answer["cpu"]
        return answer

    def fail(self, *argv: object, folder: Path, name: str, kinds: int, kind: str, number: int = 1, **asked: object):
        """Runs a verb with an injected error; checks that the error occurred and that the verb printed its line."""
        fault = {"folder": str(folder), "name": name, "kinds": kinds, "number": number}
        fault |= {"errno": getattr(errno, kind), "stays": kind in STAYS}
        answer = self(*argv, fault=fault, **asked)
        where = f"{kind} at call {number} of {name}: {answer}"
        assert len(answer["calls"]) >= number, where
        assert answer["code"] == 70, where
        said = [
            line for line in answer["err"].splitlines() if not line.startswith("writing ")
        ]  # export names its files
        assert len(said) == 1 and said[0].startswith("jaxvit: "), where
        assert all(text in answer["err"] for text in (*SAID[kind], str(folder))), where
        others = {remedy for _, remedy in SAID.values()} - {SAID[kind][1]}
        assert not any(remedy in answer["err"] for remedy in others), where
        return answer

    def close(self):
        self._process.stdin.close()
        self._process.wait(60)
        print(f"CPU seconds of all verbs: {self.cpu:.1f}")


@pytest.fixture(scope="module")
def verbs(tmp_path_factory):
    with contextlib.closing(Verbs(tmp_path_factory.mktemp("faults"))) as verbs:
        yield verbs


@pytest.fixture(scope="module")
def untouched(verbs):
    """A run without errors."""
    run = verbs.place / "untouched"
    answer = train(verbs, run)
    assert (answer["code"], answer["err"]) == (0, ""), answer
    return run


def train(verbs, run, *words, **asked):
    return verbs("train", "--config=./linear.py", f"--workdir={run}", *words, **asked)


def outcome(run):
    """Result and metrics of a run, without the times."""
    result = json.loads((run / "result.json").read_text())
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {k: v for k, v in result.items() if k not in ("seconds", "checksum")}, metrics


def half_written(folder):
    """Temporary, empty and damaged files and folders."""
    found = [p for p in folder.rglob("*") if p.is_file() and not p.stat().st_size]
    found = [p for p in found if p.name not in (".lock", "metrics.jsonl", "commit_success.txt")]  # of no bytes anyway
    return found + [
        p
        for p in folder.rglob("*")
        if ".tmp" in p.name
        or "-tmp" in p.name
        or ".damaged" in p.name
        or p.name.startswith((".making", "incomplete", ".exporting"))
    ]


def saved(run):
    folder = run / "checkpoints"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []


@needs_compiler
@pytest.mark.parametrize("kind", CHAINS)
def test_a_run_that_meets_one_error_after_another_ends_as_one_that_met_none(verbs, untouched, kind):
    run, steps = verbs.place / kind, []
    for kinds, name, number in CHAINS[kind]:
        words = ("train", "--config=./linear.py", f"--workdir={run}")
        verbs.fail(*words, folder=run, name=name, kinds=kinds, kind=kind, number=number)
        if not kinds & REMOVE:
            assert not half_written(run), (name, half_written(run))
        assert steps or kinds != MAKE or name != "checkpoints" or not run.exists()  # it held nothing yet
        assert set(steps[-1:]) <= set(saved(run)), f"the checkpoint of step {steps[-1:]} is lost"
        steps = saved(run)
    assert steps == [4, 8]
    answer = train(verbs, run)
    assert answer["code"] == 0 and not half_written(run), answer
    assert outcome(run) == outcome(untouched)


@needs_compiler
def test_an_error_while_a_checkpoint_is_read_is_no_damage(verbs, untouched):
    """No checkpoint is renamed, even with --fall_back: the next start may be able to read it."""
    run = shutil.copytree(untouched, verbs.place / "reads")
    (run / "result.json").unlink()
    words = ("train", "--config=./linear.py", f"--workdir={run}", "--fall_back")
    for kind, kinds, name in (
        ("EIO", READ, "8/state/d/"),
        ("EACCES", LOOK, "8/progress/metadata"),
        ("EIO", READ, "4/"),
    ):
        verbs.fail(*words, folder=run, name=name, kinds=kinds, kind=kind)
        assert saved(run) == [4, 8] and not half_written(run)
    for argv in (("evaluate", f"--workdir={run}"), ("predict", f"--workdir={run}", "./linear.py")):
        verbs.fail(*argv, "--own_code", folder=run, name="4/state/", kinds=READ, kind="EIO")
    assert train(verbs, run)["code"] == 0 and outcome(run) == outcome(untouched)


# What the verbs write besides: (words, the folder, part of the path, kinds).
WRITERS = {
    "evaluate": (["evaluate"], "evaluation", "test_confusion.csv", WRITE),
    "predict": (["predict", "image.png", "--figure=out/grid.png"], "out", "grid.png", WRITE),
    "report": (["report", "--figures"], "figures", "history.svg", WRITE),
    "hub": (["export", "--to=hub"], "export", "hub/.tmp", WRITE),
    "stablehlo": (["export", "--to=stablehlo"], "export", "model.stablehlo", RENAME),
}


@needs_compiler
@pytest.mark.parametrize(("verb", "kind"), [*zip(WRITERS, SAID, strict=True)])
def test_a_verb_that_cannot_write_leaves_nothing_half_written(verbs, untouched, verb, kind):
    words, folder, name, kinds = WRITERS[verb]
    run = verbs.place / f"of_{verb}"
    shutil.copytree(untouched, run, ignore=shutil.ignore_patterns("figures"))
    Image.fromarray(np.full((8, 8), 100, np.uint8)).save(run / "image.png")
    (run / "out").mkdir()
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    argv = [words[0], *([f"{run}"] if verb == "report" else [f"--workdir={run}"]), *words[1:], "--own_code"]
    argv = [word.replace("image.png", f"{run}/image.png").replace("=out", f"={run}/out") for word in argv]
    verbs.fail(*argv, folder=run / folder, name=name, kinds=kinds, kind=kind)
    assert not half_written(run), half_written(run)
    assert before.items() <= {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}.items()
    if verb != "report":  # which would draw all its figures once more
        answer = verbs(*argv)
        assert answer["code"] == 0 and any((run / folder).iterdir()), answer


@needs_compiler
def test_a_figure_that_cannot_be_written_is_told_and_the_result_is_there(verbs, untouched):
    run = shutil.copytree(untouched, verbs.place / "no_figure", ignore=shutil.ignore_patterns("figures", "result.json"))
    fault = {"folder": str(run), "name": "figures", "kinds": WRITE, "number": 1, "errno": errno.ENOSPC, "stays": True}
    answer = train(verbs, run, fault=fault)
    assert answer["code"] == 0 and outcome(run) == outcome(untouched) and not half_written(run), answer
    assert answer["err"].startswith("warning: figures/history.png is not drawn (the disk is full")
    assert answer["err"].count("\n") == 1


@needs_compiler
def test_an_error_while_images_are_decoded_leaves_nothing(verbs, untouched):
    data, run = verbs.place / "data", verbs.place / "decodes"
    words = ("train", "--config=./linear.py", f"--config.data.dir={data}", f"--workdir={run}")
    for name, kind in (("digits", "EIO"), ("stored.npy", "EDQUOT"), ("labels.npy", "EIO")):
        verbs.fail(*words, folder=data, name=name, kinds=WRITE, kind=kind)
        assert not run.exists() and not half_written(data), half_written(data)
    assert verbs(*words)["code"] == 0 and outcome(run)[1] == outcome(untouched)[1]


@needs_compiler
def test_compiled_programs_that_cannot_be_kept_are_no_reason_to_stop(verbs, untouched):
    run, cache = verbs.place / "no_cache", Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    fault = {"folder": str(cache), "kinds": CHANGES | READ | LOOK, "number": 1, "errno": errno.EIO, "stays": True}
    answer = train(verbs, run, fault=fault)
    assert (answer["code"], answer["err"]) == (0, "") and answer["calls"], answer
    assert outcome(run) == outcome(untouched)


def test_a_run_needs_no_standard_streams(verbs, untouched):
    run = verbs.place / "closed"
    answer = train(verbs, run, closed=[0, 1, 2])
    assert (answer["code"], answer["out"], answer["err"]) == (0, "", ""), answer
    assert outcome(run) == outcome(untouched)


def test_a_reader_that_went_away_is_no_reason_to_stop_a_run(verbs, untouched):
    run = verbs.place / "broken"
    answer = train(verbs, run, stdout="broken")
    assert (answer["code"], answer["err"]) == (0, "") and outcome(run) == outcome(untouched), answer


@pytest.mark.parametrize(
    ("words", "asked", "code", "says"),
    [
        (
            ["summary", "--list"],
            {"closed": [1]},
            2,
            "standard output is closed, and jaxvit summary prints there",
        ),
        (["--version"], {"closed": [1]}, 2, "standard output is closed"),
        (["train", "--help"], {"closed": [1]}, 2, "standard output is closed, and jaxvit train prints there"),
        (["predict", "--workdir=untouched", "--own_code", "-"], {"closed": [0]}, 2, "-: no images found"),
        (["train", "--config=./linear.py"], {"closed": [2]}, 2, ""),
        (["train", "--config=./linear.py"], {"closed": [0, 1]}, 2, "--workdir is missing"),
        (["summary", "--list"], {"stdout": "broken"}, 1, ""),
        (["train", "--help"], {"stdout": "broken"}, 0, ""),  # argparse takes no notice
        (["--version"], {"stdout": "/dev/full"}, 70, "the disk is full while writing standard output. Make room"),
    ],
)
def test_a_verb_that_prints_says_so_where_it_cannot(verbs, untouched, words, asked, code, says):
    answer = verbs(*words, **asked)
    assert answer["code"] == code and says in answer["err"], answer
    assert answer["err"].count("\n") == bool(says)


def test_streams_that_a_shell_closes():
    for redirection, code, says in ((">&-", 2, "jaxvit: standard output is closed"), ("<&- 2>&-", 0, "")):
        command = f"exec {sys.executable} -m jaxvit --version {redirection}"
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
        assert done.returncode == code and done.stderr.startswith(says) and done.stderr.count("\n") == bool(says)
