"""Promises about runs that are stopped, moved, killed and damaged."""

import contextlib
import errno
import json
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from kill_harness import run_harness
from runs import StopAt, metrics, newest_state
from tiny import tiny_config

import jaxvit
from jaxvit.data.sources import open_dataset
from jaxvit.errors import STOPPED, RunFailedError, StoppedError, UsageError
from jaxvit.files import read_json


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
        augment__flip_mode="alternate",
        init__attention="mimetic",
        init__positions="sincos",
        init__stem="whitening",
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
    monkeypatch.setattr("jaxvit.run.train.StopRequest", lambda: StopAt(reads, STOPPED))
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
    monkeypatch.setattr("jaxvit.run.train.StopRequest", lambda: StopAt(9, STOPPED))
    with pytest.raises(StoppedError):
        jaxvit.train(tiny_config(), tmp_path / "run")
    monkeypatch.undo()
    shutil.copytree(tmp_path / "run", tmp_path / "whole")
    newest = damage(tmp_path / "run")
    with pytest.raises(
        UsageError, match=r"cannot be read: its files are damaged; --fall_back resumes from step 8"
    ) as error:
        jaxvit.train(tiny_config(), tmp_path / "run")
    assert str(newest) in str(error.value) and "\n" not in str(error.value)
    result = jaxvit.train(tiny_config(), tmp_path / "run", fall_back=True)
    assert newest.with_name(newest.name + ".damaged").exists()
    assert "set aside" in capsys.readouterr().out
    assert result["test"] == jaxvit.train(tiny_config(), tmp_path / "whole")["test"]
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run stopped in its third epoch, with checkpoints of steps 4, 8 and 10 or 8 and 10, to be copied."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setattr("jaxvit.run.train.StopRequest", lambda: StopAt(9, STOPPED))
        with pytest.raises(StoppedError):
            jaxvit.train(tiny_config(), workdir)
    return workdir


def checkpoints_of(workdir):
    return sorted(p.name for p in (workdir / "checkpoints").iterdir())


@pytest.mark.parametrize(
    "error",
    [jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), OSError(errno.EMFILE, "Too many open files")],
)
def test_falling_back_is_not_for_errors_that_are_no_damage(stopped, tmp_path, monkeypatch, error):
    shutil.copytree(stopped, tmp_path / "run")
    before = checkpoints_of(tmp_path / "run")

    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("orbax.checkpoint.StandardCheckpointHandler.restore", fail)
    with pytest.raises(RunFailedError):
        jaxvit.train(tiny_config(), tmp_path / "run", fall_back=True)
    assert checkpoints_of(tmp_path / "run") == before


def test_nothing_is_set_aside_before_another_checkpoint_was_read(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "run")
    before = checkpoints_of(tmp_path / "run")
    for step in before:
        (tmp_path / "run" / "checkpoints" / step / "state" / "manifest.ocdbt").write_bytes(b"")
    with pytest.raises(UsageError, match=r"no other checkpoint can be read either: use a new --workdir"):
        jaxvit.train(tiny_config(), tmp_path / "run", fall_back=True)
    assert checkpoints_of(tmp_path / "run") == before


def test_a_checkpoint_that_does_not_say_which_is_best(stopped, tmp_path, capsys):
    shutil.copytree(stopped, tmp_path / "run")
    newest = max((tmp_path / "run" / "checkpoints").iterdir(), key=lambda p: int(p.name))
    (newest / "metrics" / "metrics").write_text('{"best')
    with pytest.raises(UsageError, match=rf"{newest} cannot be read: its files are damaged; --fall_back resumes from"):
        jaxvit.train(tiny_config(), tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    shutil.copytree(stopped, tmp_path / "whole")
    result = jaxvit.train(tiny_config(), tmp_path / "run", fall_back=True)
    assert "set aside" in capsys.readouterr().out and newest.with_name(f"{newest.name}.damaged").is_dir()
    assert result["test"] == jaxvit.train(tiny_config(), tmp_path / "whole")["test"]


def test_damaged_best_weights_are_named_and_the_last_used_if_asked(tmp_path, capsys):
    # The rate soon destroys the model: the last weights are not the best.
    config = tiny_config(optim__peak_lr=0.3, optim__schedule="constant", optim__warmup="11 steps")
    best = jaxvit.train(config, tmp_path / "run")
    assert best["weights_of"] == "best" and best["best_epoch"] < 3
    (tmp_path / "run" / "result.json").unlink()
    step = 4 * best["best_epoch"]
    damaged = tmp_path / "run" / "checkpoints" / str(step)
    (damaged / "state" / "manifest.ocdbt").write_bytes(b"")
    with pytest.raises(UsageError, match=rf"{damaged} cannot be read: .*; it has the best weights; --fall_back uses"):
        jaxvit.train(config, tmp_path / "run")
    capsys.readouterr()
    last = jaxvit.train(config, tmp_path / "run", fall_back=True)
    assert last["weights_of"] == "last" and read_json(tmp_path / "run" / "result.json")["weights_of"] == "last"
    assert f"last weights, since those of epoch {best['best_epoch']}, the best" in capsys.readouterr().out
    newest = [r for r in metrics(tmp_path / "run") if r["split"] == "validation"][-1]
    assert newest["step"] == 12 and last["test"]["loss"] != best["test"]["loss"]


def test_one_state_at_a_time_when_the_best_weights_come_back(tmp_path, monkeypatch):
    from jaxvit.training.checkpoint import Checkpoints

    seen, restore = [], Checkpoints.restore

    def watched(self, step, like, *more):
        seen.append((step, {type(x) for x in jax.tree.leaves(like)}, kernels()))
        return restore(self, step, like, *more)

    def kernels():
        """Arrays of the embedding's unusual shape: parameters, and two moments."""
        return sum(x.shape == (4, 4, 1, 24) for x in jax.live_arrays())

    before = kernels()
    monkeypatch.setattr(Checkpoints, "restore", watched)
    config = tiny_config(model__dim=24, optim__peak_lr=0.3, optim__schedule="constant", optim__warmup="11 steps")
    jaxvit.train(config, tmp_path / "run")
    ((step, kinds, live),) = seen
    assert step < 12 and kinds == {jax.ShapeDtypeStruct} and live == before


@pytest.mark.parametrize("ends", ["in its middle", "after its end", "early", "by a signal", "by an error"])
def test_a_profile_of_chosen_steps_is_written_however_the_run_ends(tmp_path, monkeypatch, ends):
    changes, profile = {"train__duration": "6 steps"}, (3, 4) if ends == "in its middle" else (3, 99)
    error = contextlib.nullcontext()
    if ends == "early":
        changes = {"optim__peak_lr": 0.0, "train__patience": "1 epochs"}
    elif ends == "by a signal":
        monkeypatch.setattr("jaxvit.run.train.StopRequest", lambda: StopAt(4, STOPPED))
        error = pytest.raises(StoppedError)
    elif ends == "by an error":
        changes |= {"optim__peak_lr": 1e38, "optim__schedule": "constant", "optim__weight_decay": 0.0}
        changes |= {"optim__warmup": "4 steps"}
        error = pytest.raises(RunFailedError)
    with error:
        jaxvit.train(tiny_config(**changes), tmp_path / "run", profile=profile)
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    """The short form; `python tests/kill_harness.py --kills=50` is the long one."""
    report = run_harness(tmp_path, kills=5, seed=0)
    assert report["kills"] == 5 and report["equal"], json.dumps(report)
    assert report["fell"].get("saving", 0) + report["fell"].get("training", 0) >= 2, json.dumps(report)


@pytest.mark.slow
def test_moving_to_eight_devices_in_the_middle(tmp_path):
    from kill_harness import train_process

    def settings():
        # Dropout, drop path and augmentation are on: under jit their numbers do not depend on where a batch lies.
        noise = {"model__dropout": 0.2, "model__drop_path": 0.2, "augment__flip": True, "augment__rotation": 0.05}
        return {**noise, "model__depth": 2, "optim__name": "sgd", "data__validation": ""}

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

    settings = {"model__dim": 80, "checkpoint__every": "1 epochs"}
    process = train_process(small_disk / "run", settings, duration="30 epochs")
    _, err = process.communicate()
    assert process.returncode == 70, err
    assert err.count("\n") == 1 and "the disk is full" in err, err
    kept = max(int(p.name) for p in (small_disk / "run" / "checkpoints").iterdir() if p.name.isdigit())
    assert f"the checkpoint of step {kept} is kept" in err
    # With room again, the same command resumes from there.
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    again = train_process(small_disk / "run", settings, duration="30 epochs")
    out, err = again.communicate()
    assert again.returncode == 0 and f"resuming from step {kept}" in out, err


@pytest.mark.slow
def test_a_full_disk_while_images_are_decoded_is_one_line(small_disk, tmp_path):
    from kill_harness import train_process

    settings = {"data__dir": str(small_disk), "data__side": 64}  # 1,437 images of 64 x 64: twice the room there is
    process = train_process(tmp_path / "run", settings, duration="1 epochs")
    _, err = process.communicate()
    assert process.returncode == 70, err
    assert err.count("\n") == 1 and "the disk is full" in err, err
    assert not list(small_disk.glob(".jaxvit/*"))


@pytest.mark.slow
def test_a_kill_while_images_are_decoded_leaves_nothing_half_made(tmp_path):
    """Real kills, earlier and later; the next process finds no half of a cache and clears away what was left."""
    from PIL import Image

    folder, data = tmp_path / "pets", tmp_path / "data"
    rng = np.random.default_rng(0)
    (folder / "train" / "cat").mkdir(parents=True)
    for i in range(3000):
        Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(
            folder / "train" / "cat" / f"{i:04}.png"
        )
    script = (
        "import sys; from pathlib import Path; from jaxvit.data.sources import open_dataset\n"
        "open_dataset(f'image_folder:{sys.argv[1]}', Path(sys.argv[2]), side=256).read('train'); print('done')"
    )
    caches, killed = data / ".jaxvit", 0
    for wait in (0.0, 0.15, 0.3, 0.6):
        process = subprocess.Popen([sys.executable, "-c", script, folder, data], stdout=subprocess.PIPE, text=True)
        while process.poll() is None and not list(caches.glob(".making-*")):
            time.sleep(0.01)
        time.sleep(wait)
        process.kill()
        killed += "done" not in process.communicate()[0]
        assert len(list(caches.glob(".making-*"))) <= 1
    assert killed >= 2
    source = open_dataset(f"image_folder:{folder}", data, side=256).read("train")
    assert list(caches.glob(".making-*")) == [] and source.images.shape == (3000, 256, 256, 3)
    fresh = open_dataset(f"image_folder:{folder}", tmp_path / "other", side=256).read("train")
    assert source.fingerprint == fresh.fingerprint
