"""Verbs, help and exit codes, called as a user calls them."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from jaxvit._version import __version__
from jaxvit.cli import command_line
from jaxvit.errors import RunFailedError, StoppedError, UsageError

DIGITS = str(Path(__file__).parents[2] / "configs" / "digits.py")


def call(capsys, *words):
    with pytest.raises(SystemExit) as left:
        command_line.main(list(words))
    captured = capsys.readouterr()
    return left.value.code, captured.out, captured.err


def test_version_and_help(capsys):
    assert call(capsys, "--version") == (0, f"jaxvit {__version__}\n", "")
    code, out, _ = call(capsys, "--help")
    assert code == 0 and all(verb in out for verb in command_line.VERBS)
    assert call(capsys)[0] == 2


@pytest.mark.parametrize("verb", command_line.VERBS)
def test_every_verb_teaches(capsys, verb):
    code, out, _ = call(capsys, verb, "--help")
    assert code == 0 and "example" in out and f"jaxvit {verb}" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["tran"], "did you mean 'train'"),
        (["train"], "--config or --data is missing"),
        (["train", f"--config={DIGITS}"], "--workdir is missing"),
        (["train", "--config"], "expected one argument"),
        (["train", f"--config={DIGITS}", "--workdri=x"], "did you mean '--workdir'"),
        (["train", f"--config={DIGITS}", "--epochs=3"], "did you mean '--config.train.duration'"),
        (["train", f"--config={DIGITS}", "stray"], "unknown argument 'stray'"),
        (["train", "--config=configs/nothing.py", "--workdir=x"], "there is no file"),
        (["train", f"--config={DIGITS}", "--dry_run", "--config.model.heads=5"], "heads=5"),
        (["train", f"--config={DIGITS}", "--dry_run", "--config.model.patch=3"], "patch=3"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, words, says):
    code, out, err = call(capsys, *words)
    assert code == 2 and out == "" and says in err
    assert err.startswith("jaxvit: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), 2),
        (RunFailedError("x"), 70),
        (OSError(errno.ENOSPC, "No space left on device", "x.npy"), 70),
        (StoppedError("x", 75), 75),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(capsys, monkeypatch, error, code):
    def verb(argv):
        raise error

    # The real exit cannot be undone; what it is called with is what counts here.
    monkeypatch.setattr(command_line.os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as left:
        command_line.run(verb, [])
    assert left.value.code == code and capsys.readouterr().err.count("\n") == 1


def test_a_bug_of_ours_keeps_its_traceback():
    def verb(argv):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        command_line.run(verb, [])


def test_dry_run_shows_plan_parameters_and_curve_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, "train", f"--config={DIGITS}", "--dry_run", "--workdir=run")
    assert (code, err) == (0, "")
    for part in ("train.steps_per_epoch", "optim.warmup_steps", "Parameters", "total", "Learning rate", "█"):
        assert part in out
    assert list(tmp_path.iterdir()) == []


def test_dry_run_shows_what_is_on_muon(capsys):
    size = ["--config.model.depth=2", "--config.model.dim=8", "--config.model.heads=2", "--config.model.mlp_ratio=2.0"]
    code, out, _ = call(capsys, "train", f"--config={DIGITS}", "--dry_run", "--config.optim.name=muon", *size)
    block = 4 * 8 * 8 + 2 * 8 * 16  # query, key, value, out; and the MLP's two
    assert code == 0 and f"on Muon: {2 * block:,} parameters in 12 matrices" in out
    (row,) = (line for line in out.splitlines() if "encoder/block_1" in line)
    assert row.strip("│ ").split("│")[-1].strip() == str(block)
    (row,) = (line for line in out.splitlines() if "head/logits" in line)
    assert row.strip("│ ").split("│")[-1].strip() == "0"
    _, out, _ = call(capsys, "train", f"--config={DIGITS}", "--dry_run")
    assert "Muon" not in out and "muon" not in out


def test_module_and_script_are_the_same():
    for words in ([], ["train"]):
        done = subprocess.run([sys.executable, "-m", "jaxvit", *words, "--help"], capture_output=True, text=True)
        assert done.returncode == 0 and "jaxvit" in done.stdout
    done = subprocess.run([sys.executable, "-m", "jaxvit", "train"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("jaxvit: --config or --data is missing")
