"""The verb from end to end, on real digits."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from runs import StopAt, contents, metrics, newest_state
from tiny import tiny_config

import jaxvit
from jaxvit.config.keys import model_config
from jaxvit.config.plan import resolve
from jaxvit.errors import INTERRUPTED, STOPPED, RunFailedError, StoppedError, UsageError
from jaxvit.files import read_json
from jaxvit.run.assembly import assemble

TESTS = str(Path(__file__).parents[1])


@pytest.fixture(autouse=True)
def _optax_mixes_dtypes():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, curves):
    """One uninterrupted run, shared."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    with jax.numpy_dtype_promotion("standard"), curves.drawn():
        return workdir, jaxvit.train(tiny_config(), workdir)


def test_the_run_directory_explains_itself(finished):
    workdir, result = finished
    assert {"config.json", "environment.json", "metrics.jsonl", "result.json", "checkpoints", "tensorboard"} <= {
        p.name for p in workdir.iterdir()
    }
    assert (workdir / "figures" / "history.png").read_bytes()[:4] == b"\x89PNG"
    assert read_json(workdir / "result.json") == json.loads(json.dumps(result))
    assert set(result["test"]) == {"loss", "top1", "top5", "precision", "recall", "count"}
    assert result["test"]["count"] == 25 and result["steps"] == 12
    assert set(result["seconds"]) == {"compile", "train", "eval", "save"}
    environment = read_json(workdir / "environment.json")
    assert environment["data"]["train"]["count"] == 60
    assert result["data"] == environment["data"]
    assert {"split", "count", "classes", "mean", "std", "sha256", "content"} <= result["data"]["test"].keys()
    assert environment["starts"][0]["packages"]["jax"] == jax.__version__


def test_metrics_hold_every_epoch_and_every_log_step(finished):
    workdir, result = finished
    records = metrics(workdir)
    assert [r["step"] for r in records if r["split"] == "train"] == [4, 8, 12]
    assert [r["step"] for r in records if r["split"] == "validation"] == [4, 8, 12]
    assert [r["step"] for r in records if r["split"] == "steps"] == [2, 4, 6, 8, 10, 12]
    assert [r["count"] for r in records if r["split"] == "train"] == [60] * 3
    assert [r["count"] for r in records if r["split"] == "validation"] == [30] * 3
    for record in records:
        if record["split"] == "steps":
            assert {"learning_rate", "gradient_norm", "parameter_norm", "update_norm"} <= set(record)
    best = max((r for r in records if r["split"] == "validation"), key=lambda r: r["top1"])
    assert result["best_epoch"] == best["epoch"]  # max keeps the first of equals, and so must the run


def test_a_finished_run_is_reported_not_repeated(finished, capsys):
    workdir, result = finished
    before = (workdir / "metrics.jsonl").read_bytes()
    assert jaxvit.train(tiny_config(), workdir) == json.loads(json.dumps(result))
    out = capsys.readouterr().out
    assert "finished; nothing was trained" in out and "of 25 images" in out and str(workdir) in out
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_another_config_is_refused_with_the_difference(finished):
    workdir, _ = finished
    with pytest.raises(UsageError, match=r"optim.peak_lr: 0.001 there, 0.5 here"):
        jaxvit.train(tiny_config(optim__peak_lr=0.5), workdir)


def test_keys_that_change_no_result_may_differ(finished):
    workdir, result = finished
    assert jaxvit.train(tiny_config(log__every="3 steps"), workdir)["test"] == result["test"]


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match="holds other files"):
        jaxvit.train(tiny_config(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("reads", [1, 4, 9])
def test_stopped_and_started_again_equals_never_stopped(finished, tmp_path, monkeypatch, reads):
    workdir, result = finished
    monkeypatch.setattr("jaxvit.run.train.StopRequest", lambda: StopAt(reads, STOPPED))
    with pytest.raises(StoppedError, match=r"stopped at step \d+ of 12; saved") as stop:
        jaxvit.train(tiny_config(), tmp_path / "run")
    assert stop.value.exit_code == STOPPED
    assert not (tmp_path / "run" / "result.json").exists()
    monkeypatch.undo()
    again = jaxvit.train(tiny_config(), tmp_path / "run")
    for key in ("test", "best_epoch", "steps", "config_hash", "validation"):
        assert again[key] == result[key], key
    assert metrics(tmp_path / "run") == metrics(workdir)
    ours, theirs = newest_state(tmp_path / "run", tiny_config()), newest_state(workdir, tiny_config())
    jax.tree.map(np.testing.assert_array_equal, ours[0], theirs[0])
    assert len(read_json(tmp_path / "run" / "environment.json")["starts"]) == 2


def test_a_finished_run_can_be_taken_further(finished, tmp_path):
    config = tiny_config()
    jaxvit.train(config, tmp_path / "run")
    longer = jaxvit.train(tiny_config(train__duration="4 epochs"), tmp_path / "run")
    assert longer["steps"] == 16
    assert [r["step"] for r in metrics(tmp_path / "run") if r["split"] == "train"] == [4, 8, 12, 16]
    assert read_json(tmp_path / "run" / "result-12.json")["steps"] == 12
    with pytest.raises(UsageError, match="can only be made longer"):
        jaxvit.train(tiny_config(train__duration="2 epochs"), tmp_path / "run")


def test_a_finished_run_without_its_checkpoints_is_not_begun_anew(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(UsageError, match="this run is finished, and its checkpoints are missing; put them back into"):
        jaxvit.train(tiny_config(train__duration="4 epochs"), tmp_path / "run")
    with pytest.raises(UsageError, match="this run is finished, and its checkpoints are missing; put them back into"):
        jaxvit.load(tmp_path / "run")
    after = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name != ".lock"}
    assert after == {p: content for p, content in before.items() if p.name != ".lock"}
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_taken_further_equals_one_as_long_from_the_start(tmp_path, capsys):
    """Also if the shorter run ended between two lines of metrics."""
    changes = {"optim__schedule": "constant", "optim__warmup": "0 steps", "log__every": "3 steps"}
    for duration in ("1 epochs", "2 epochs"):
        jaxvit.train(tiny_config(**changes, train__duration=duration), tmp_path / "run")
    assert "the learning rate follows the longer schedule from step 4" in capsys.readouterr().out
    jaxvit.train(tiny_config(**changes, train__duration="2 epochs"), tmp_path / "whole")
    lines = [[r for r in metrics(tmp_path / d) if r["split"] != "test"] for d in ("run", "whole")]
    assert lines[0] == lines[1]
    assert [r["step"] for r in lines[0] if r["split"] == "steps"] == [3, 6, 8]


def test_a_shorter_duration_is_called_shorter(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jaxvit.run.train.StopRequest", lambda: StopAt(2, STOPPED))
    with pytest.raises(StoppedError):
        jaxvit.train(tiny_config(), tmp_path / "run")
    monkeypatch.undo()
    jaxvit.train(tiny_config(train__duration="2 epochs"), tmp_path / "run")
    assert "the learning rate follows the shorter schedule from step 3" in capsys.readouterr().out


def test_early_stopping_ends_with_the_best_weights_and_says_which(tmp_path, capsys):
    # A learning rate of zero never improves on the first epoch.
    config = tiny_config(optim__peak_lr=0.0, train__duration="9 epochs", train__patience="2 epochs")
    result = jaxvit.train(config, tmp_path / "run")
    assert result["stopped_early"] and result["best_epoch"] == 1 and result["steps"] == 12
    assert "the best is" in capsys.readouterr().out
    best = next(r for r in metrics(tmp_path / "run") if r["split"] == "validation")
    assert result["validation"] == {"top1": best["top1"]}


def test_the_test_is_measured_with_the_best_weights(tmp_path):
    # A learning rate that soon destroys the model: the last weights are not the best.
    config = tiny_config(
        optim__peak_lr=0.3, optim__schedule="constant", optim__warmup="11 steps", data__test="train[60:90]"
    )
    result = jaxvit.train(config, tmp_path / "run")
    validation = [r for r in metrics(tmp_path / "run") if r["split"] == "validation"]
    best = max(validation, key=lambda r: r["top1"])
    assert best["step"] < 12
    assert result["test"]["loss"] == pytest.approx(best["loss"], rel=1e-6)


def test_without_validation_the_last_weights_count(tmp_path):
    result = jaxvit.train(tiny_config(data__validation="", train__duration="1 epochs"), tmp_path / "run")
    assert result["best_epoch"] == 1 and result["validation"] == {}


def test_without_a_test_split_nothing_is_measured(tmp_path):
    result = jaxvit.train(tiny_config(data__test="", train__duration="1 epochs"), tmp_path / "run")
    assert result["test"] == {}


@pytest.mark.parametrize("debug", [False, True])
def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_checkpoint(tmp_path, debug):
    config = tiny_config(
        optim__peak_lr=1e38, optim__schedule="constant", optim__warmup="6 steps", optim__weight_decay=0.0
    )
    with pytest.raises(RunFailedError, match=r"is not finite at step \d+; ") as error:
        jaxvit.train(config, tmp_path / "run", debug_nans=debug)
    assert "\n" not in str(error.value)
    hint = "the update itself is not" if debug else "--debug_nans names the module"
    assert hint in str(error.value)
    assert not (tmp_path / "run" / "result.json").exists()


def test_debug_nans_names_the_module(tmp_path):
    from jaxvit.training import nans
    from jaxvit.training.step import loss

    config = tiny_config(model__dropout=0.0)
    assembly = assemble(resolve(config))
    state = jax.jit(assembly.create_state)()
    state.params["encoder"]["block_0"]["mlp"]["dense_1"]["bias"] = np.full(8, np.nan, np.float32)
    batch = {
        "image": np.zeros((4, 8, 8, 1), np.uint8),
        "label": np.zeros(4, np.int32),
        "mask": np.ones(4, np.float32),
    }
    found = nans.explain(assembly.prepare, partial(loss, apply=assembly.apply), state, batch)
    assert "encoder/block_0/mlp/dense_1" in found


def run_command(workdir, *more):
    """Runs the command in a real process, with a new config file."""
    file = workdir.parent / "long.py"
    file.write_text(
        "import sys\n"
        f"sys.path.insert(0, {TESTS!r})\n"
        "from tiny import tiny_config\n"
        "def get_config(): return tiny_config(train__duration='400 epochs', checkpoint__every='400 epochs',"
        " data__validation='')\n"
    )
    return subprocess.Popen(
        [sys.executable, "-m", "jaxvit", "train", f"--config={file}", f"--workdir={workdir}", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, STOPPED), (signal.SIGHUP, STOPPED), (signal.SIGINT, INTERRUPTED)]
)
def test_a_signal_saves_and_leaves_with_its_code(tmp_path, number, code):
    workdir = tmp_path / "run"
    process = run_command(workdir)
    deadline = time.monotonic() + 120
    while not (workdir / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1.0)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, (out, err)
    lines = err.splitlines()
    assert len(lines) == (2 if number == signal.SIGINT else 1), err
    assert "saved. The same command resumes from here" in lines[-1]
    assert "Traceback" not in out + err
    assert any(p.name.isdigit() for p in (workdir / "checkpoints").iterdir())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, STOPPED), (signal.SIGINT, INTERRUPTED)])
def test_a_signal_during_the_final_test_says_what_is_true(tmp_path, monkeypatch, capfd, number, code):
    from jaxvit.data.feed import evaluation_stream

    def signalled(*arguments):
        for batch in evaluation_stream(*arguments):
            yield batch
            os.kill(os.getpid(), number)

    config = tiny_config(train__duration="2 steps", data__validation="")
    monkeypatch.setattr("jaxvit.run.program.evaluation_stream", signalled)
    with pytest.raises(StoppedError, match="stopped before the test was done; the training is saved") as error:
        jaxvit.train(config, tmp_path / "run")
    assert error.value.exit_code == code and not (tmp_path / "run" / "result.json").exists()
    promise = (
        "stopping; the training is saved, and the same command resumes with the test; Ctrl-C again stops at once\n"
    )
    assert capfd.readouterr().err == (promise if number == signal.SIGINT else "")
    monkeypatch.undo()
    assert jaxvit.train(config, tmp_path / "run")["test"]["count"] == 25


@pytest.mark.slow
def test_a_reader_that_goes_away_does_not_end_the_run(tmp_path):
    file = tmp_path / "config.py"
    file.write_text(
        f"import sys; sys.path.insert(0, {TESTS!r})\nfrom tiny import tiny_config\n"
        "def get_config(): return tiny_config()\n"
    )
    command = f"{sys.executable} -u -m jaxvit train --config={file} --workdir={tmp_path / 'run'} | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done
    assert done.stdout.count("\n") == 1 and read_json(tmp_path / "run" / "result.json")["steps"] == 12


@pytest.mark.slow
def test_two_processes_do_not_share_a_run(tmp_path):
    workdir = tmp_path / "run"
    first = run_command(workdir)
    deadline = time.monotonic() + 120
    while not (workdir / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    second = run_command(workdir)
    _, err = second.communicate(timeout=120)
    first.kill()
    first.communicate()
    assert second.returncode == 2 and "another process uses this run folder" in err


def test_tensorflow_is_never_imported(tmp_path):
    code = (
        "import sys\n"
        f"sys.path.insert(0, {TESTS!r})\n"
        "import jaxvit\n"
        "assert 'jax' not in sys.modules, 'import jaxvit is not lazy'\n"
        "from tiny import tiny_config\n"
        f"jaxvit.train(tiny_config(train__duration='3 steps'), {str(tmp_path / 'run')!r})\n"
        "assert not [m for m in sys.modules if m.partition('.')[0] in ('tensorflow', 'torch', 'keras')]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class TooLarge(nn.Module):
    """A model that needs more memory than any address space, so that the allocation fails immediately."""

    @nn.compact
    def __call__(self, images, *, train: bool):
        ballast = self.param("ballast", nn.initializers.zeros, (2**46,))
        return nn.Dense(10)(images.reshape(images.shape[0], -1)) + ballast[0]


def test_out_of_memory_is_one_line_with_what_helps(tmp_path, monkeypatch):
    # Such a model is refused before it is compiled, unless the size of the memory is unknown.
    monkeypatch.setattr("jaxvit.run.assembly.memory_of_device", lambda: 0)
    config = tiny_config(eval__batch_size=7)
    with config.unlocked():
        config.model = model_config(f"{__name__}:TooLarge")
    with pytest.raises(RunFailedError) as error:
        jaxvit.train(config, tmp_path / "run")
    line = str(error.value)
    assert (
        line.startswith("out of device memory (262,144.00 GiB could not be allocated); change one of: ")
        and "\n" not in line
    )
    for setting in ("train.batch_size, now=16", "eval.batch_size, now=7", "data.feed=stream, now=auto"):
        assert f"config.{setting}" in line


def test_a_device_error_without_text_is_one_line_too(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise jax.errors.JaxRuntimeError

    monkeypatch.setattr("jaxvit.run.execution.fit", fail)
    with pytest.raises(RunFailedError, match="the device failed: JaxRuntimeError"):
        jaxvit.train(tiny_config(), tmp_path / "run")


OWN_MODEL = """
import flax.linen as nn
import jax

class Linear(nn.Module):
    width: int = 4
    classes: int = 10

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        hidden = nn.relu(nn.Dense(self.width)(images.reshape(images.shape[0], -1)))
        return nn.Dense(self.classes)(hidden)
"""


def test_a_model_of_ones_own_plugs_in(tmp_path, monkeypatch):
    (tmp_path / "own_model.py").write_text(OWN_MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    config = tiny_config(train__duration="1 epochs")
    config.model = model_config("own_model:Linear", width=5)
    result = jaxvit.train(config, tmp_path / "run")
    assert result["params"] == 64 * 5 + 5 + 5 * 10 + 10
    config.model.classes = 3
    with pytest.raises(UsageError, match=r"outputs of shape \(1, 3\) for one image, and digits has 10 classes"):
        jaxvit.train(config, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_an_extension_that_was_killed_before_it_saved_is_not_forgotten(tmp_path, monkeypatch):
    def early(**changes):
        return tiny_config(optim__peak_lr=0.0, **changes)

    stopped = jaxvit.train(early(train__duration="9 epochs", train__patience="2 epochs"), tmp_path / "run")
    assert stopped["stopped_early"] and stopped["steps"] == 12
    longer = early(train__duration="9 epochs", train__patience="5 epochs")

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxvit.run.execution.fit", killed)
    with pytest.raises(KeyboardInterrupt):
        jaxvit.train(longer, tmp_path / "run")
    monkeypatch.undo()
    result = jaxvit.train(longer, tmp_path / "run")
    assert result["steps"] == 32  # three epochs done, patience of five begins anew
    assert [e["step"] for e in result["extensions"]] == [12]
    assert result["config_hash"] != stopped["config_hash"]


def test_other_images_than_the_run_began_with_are_refused(finished, tmp_path, monkeypatch):
    workdir, _ = finished
    shutil.copytree(workdir, tmp_path / "run")
    environment = read_json(tmp_path / "run" / "environment.json")
    environment["data"]["train"]["sha256"] = "0" * 16
    (tmp_path / "run" / "environment.json").write_text(json.dumps(environment))
    before = contents(tmp_path / "run")
    with pytest.raises(UsageError, match=r"config.data.train: these are not the images"):
        jaxvit.train(tiny_config(train__duration="4 epochs"), tmp_path / "run")
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("changes", "options", "says"),
    [
        ({"train__duration": "2 epochs"}, {}, "can only be made longer"),
        ({"train__duration": "4 epochs", "train__batch_size": 8}, {}, "holds a run of another config"),
        ({"train__duration": "4 epochs"}, {"profile": (3, 12)}, "--profile=3:12: the run resumes from step 12"),
        ({"train__duration": "4 epochs"}, {"profile": (17, 20)}, "--profile=17:20: the run has only 16 steps"),
        ({"train__duration": "4 epochs"}, {"overrides": ["augment.fill"]}, "this key has no effect"),
    ],
)
def test_a_refused_command_changes_nothing(finished, tmp_path, changes, options, says):
    shutil.copytree(finished[0], tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(UsageError, match=says):
        jaxvit.train(tiny_config(**changes), tmp_path / "run", **options)
    assert contents(tmp_path / "run") == before


def test_a_full_disk_beside_the_checkpoints_is_one_line_too(tmp_path, monkeypatch):
    def full(self):
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")

    monkeypatch.setattr("jaxvit.training.journal.JsonLines.flush", full)
    with pytest.raises(RunFailedError, match=r"the disk is full while writing metrics.jsonl"):
        jaxvit.train(tiny_config(train__duration="4 steps"), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "override", "says"),
    [
        ({}, "model.learner_tokens", r"this key has no effect in this run: model.learner='none'"),
        ({"model__mlp_dim": 16}, "model.mlp_ratio", "mlp_dim=16"),
        ({"model__heads": 0}, "model.heads", "heads=0 must be 1 or more"),
        ({"model__dropout": 1.5}, "model.dropout", "dropout=1.5 must be at least 0 and below 1"),
        ({"model__dtype": "float3"}, "model.dtype", "dtype='float3' must be one of"),
        ({"model__remat": "some"}, "model.remat", "remat='some' must be one of none, full, dots, dots_no_batch"),
    ],
)
def test_model_attributes_that_cannot_be_or_have_no_effect(changes, override, says):
    with pytest.raises(UsageError, match=says):
        assemble(resolve(tiny_config(**changes)), [override])


class Unnamed(nn.Module):
    """A plug-in with neither kernels nor numbered blocks."""

    @nn.compact
    def __call__(self, images, *, train: bool):
        flat = images.reshape(images.shape[0], -1)
        return flat @ self.param("matrix", nn.initializers.zeros, (flat.shape[-1], 10))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, r"config.optim.decay_mask='kernels': no parameter of .* is named 'kernel'"),
        (
            {"optim__decay_mask": "all", "optim__layer_decay": 0.5},
            r"config.optim.layer_decay=0.5: no part of this model",
        ),
        ({"optim__decay_mask": "all"}, None),
        ({"optim__weight_decay": 0.0}, None),
    ],
)
def test_an_optimizer_that_goes_by_names_which_the_model_does_not_have(changes, says):
    config = tiny_config(**changes)
    with config.unlocked():
        config.model = model_config(f"{__name__}:Unnamed")
    with pytest.raises(UsageError, match=says) if says else contextlib.nullcontext():
        assemble(resolve(config))


@pytest.mark.parametrize("way", [("remat", "full"), ("scan", True)])
def test_debug_nans_sees_into_blocks_that_are_run_another_way(way):
    from jaxvit.training import nans
    from jaxvit.training.step import loss

    assembly = assemble(resolve(tiny_config(**{f"model__{way[0]}": way[1], "model__depth": 2})))
    state = jax.jit(assembly.create_state)()
    state.params["encoder"]["block_1"]["mlp"]["dense_1"]["bias"] = np.full(8, np.nan, np.float32)
    batch = {"image": np.zeros((4, 8, 8, 1), np.uint8), "label": np.zeros(4, np.int32), "mask": np.ones(4, np.float32)}
    apply = partial(assembly.apply, plain=True)
    assert "encoder/block_1/mlp/dense_1" in nans.explain(assembly.prepare, partial(loss, apply=apply), state, batch)
