"""Promises about runs that are stopped, moved, killed and damaged."""

import json
import shutil
import subprocess

import jax
import numpy as np
import pytest
from kill_harness import run_harness
from test_train import StopAt, metrics, newest_state
from tiny import tiny_config

import jaxvit
from jaxvit.errors import STOPPED, StoppedError, UsageError
from jaxvit.run_directory import read_json


@pytest.fixture(autouse=True)
def _optax_mixes_dtypes():
    with jax.numpy_dtype_promotion("standard"):
        yield


def everything_on():
    """Augmentation, dropout, stochastic depth, averaged weights, accumulation, early stopping, two-epoch saves."""
    return tiny_config(
        model__depth=2,
        model__drop_path=0.2,
        augment__flip=True,
        optim__ema_decay=0.9,
        optim__decay="independent",
        optim__layer_decay=0.8,
        optim__clip_norm=1.0,
        train__accumulate=2,
        train__duration="6 epochs",
        train__patience="2 epochs",
        checkpoint__every="2 epochs",
    )


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    with jax.numpy_dtype_promotion("standard"):
        return workdir, jaxvit.train(everything_on(), workdir)


@pytest.mark.parametrize("reads", [2, 12])
def test_exact_resume_with_everything_on(never_stopped, tmp_path, monkeypatch, reads):
    workdir, result = never_stopped
    monkeypatch.setattr(jaxvit.train, "StopRequest", lambda: StopAt(reads, STOPPED))
    with pytest.raises(StoppedError):
        jaxvit.train(everything_on(), tmp_path / "run")
    monkeypatch.undo()
    again = jaxvit.train(everything_on(), tmp_path / "run")
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in result.items() if k != "seconds"}
    assert metrics(tmp_path / "run") == metrics(workdir)
    ours, theirs = newest_state(tmp_path / "run", everything_on()), newest_state(workdir, everything_on())
    jax.tree.map(np.testing.assert_array_equal, ours[0], theirs[0])


def test_averaged_weights_are_evaluated_beside_the_others_and_chosen(never_stopped):
    workdir, result = never_stopped
    assert result["weights"] == "ema"
    records = metrics(workdir)
    plain, average = ([r for r in records if r["split"] == s] for s in ("validation", "validation_ema"))
    assert [r["step"] for r in plain] == [r["step"] for r in average]
    assert [r["loss"] for r in plain] != [r["loss"] for r in average]
    assert result["validation"]["top1"] == max(r["top1"] for r in average)


def damage(workdir):
    """Cuts the files of the newest checkpoint's arrays in half, as a disk does that lost its last blocks."""
    newest = max((p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    for file in (newest / "state").rglob("*"):
        if file.is_file() and file.stat().st_size:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return newest


def test_a_damaged_checkpoint_is_named_and_the_one_before_used_if_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jaxvit.train, "StopRequest", lambda: StopAt(9, STOPPED))
    with pytest.raises(StoppedError):
        jaxvit.train(tiny_config(), tmp_path / "run")
    monkeypatch.undo()
    shutil.copytree(tmp_path / "run", tmp_path / "whole")
    newest = damage(tmp_path / "run")
    with pytest.raises(
        UsageError, match=r"cannot be read: its files are damaged; --fall_back goes on from step 8"
    ) as error:
        jaxvit.train(tiny_config(), tmp_path / "run")
    assert str(newest) in str(error.value) and "\n" not in str(error.value)
    result = jaxvit.train(tiny_config(), tmp_path / "run", fall_back=True)
    assert newest.with_name(newest.name + ".damaged").exists()
    assert "set aside" in capsys.readouterr().out
    assert result["test"] == jaxvit.train(tiny_config(), tmp_path / "whole")["test"]
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


def test_a_profile_of_chosen_steps(tmp_path):
    jaxvit.train(tiny_config(train__duration="6 steps"), tmp_path / "run", profile=(3, 4))
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    """The short form; `python tests/kill_harness.py --kills=50` is the long one."""
    report = run_harness(tmp_path, kills=5, seed=0)
    assert report["kills"] == 5 and report["equal"], json.dumps(report)


@pytest.mark.slow
def test_moving_to_eight_devices_in_the_middle(tmp_path):
    from kill_harness import train_process

    def settings():
        return {"model__dropout": 0.0, "augment__pad_crop": 0, "optim__name": "sgd", "data__validation": ""}

    one, moved = tmp_path / "one", tmp_path / "moved"
    train_process(one, settings(), duration="4 epochs").communicate()
    train_process(moved, settings(), duration="2 epochs").communicate()
    process = train_process(moved, settings(), duration="4 epochs", devices=8)
    process.communicate()
    assert process.returncode == 0
    # A constant rate: the longer duration changes no learning rate.
    losses = [[r["loss"] for r in metrics(d) if r["split"] == "train"] for d in (one, moved)]
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-5)
    assert read_json(moved / "environment.json")["starts"][-1]["devices"] == ["cpu"] * 8


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB; skipped by name where mounting is not allowed."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_good_checkpoint(small_disk, tmp_path):
    from kill_harness import train_process

    settings = {"model__dim": 64, "checkpoint__every": "1 epochs", "log__writers": ("jsonl",)}
    process = train_process(small_disk / "run", settings, duration="30 epochs")
    _, err = process.communicate()
    assert process.returncode == 70, err
    assert err.count("\n") == 1 and "the disk is full" in err, err
    kept = max(int(p.name) for p in (small_disk / "run" / "checkpoints").iterdir() if p.name.isdigit())
    assert f"the checkpoint of step {kept} is kept" in err
    # With room again, the same command goes on from there.
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    again = train_process(small_disk / "run", settings, duration="30 epochs")
    out, err = again.communicate()
    assert again.returncode == 0 and f"going on from step {kept}" in out, err
