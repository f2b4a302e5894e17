"""Hooks: their calls and arguments, stopping a run, and errors."""

import jax
import numpy as np
import pytest
from tiny import tiny_config

import jaxvit
from jaxvit.config.plan import resolve
from jaxvit.errors import RunFailedError, UsageError
from jaxvit.files import read_json
from jaxvit.training.checkpoint import saved_steps
from jaxvit.training.journal import read_jsonl

HERE = __name__
CALLS = []


@pytest.fixture(autouse=True)
def _optax_mixes_dtypes():
    CALLS.clear()
    with jax.numpy_dtype_promotion("standard"):
        yield


def watch(state, metrics):
    CALLS.append(({"step": int(state.step), "params": jax.device_get(state.params)}, metrics))


def stop_after_two(state, metrics):
    return metrics["epoch"] >= 2 and "that is\nenough"


def stop(state, metrics):
    return np.bool_(metrics["seed"] == 3)


def fail_at_two(state, metrics):
    if metrics["epoch"] == 2:
        raise OSError(f"no network{chr(10)}today")


def leave(state, metrics):
    raise SystemExit(3)


def give_back(state, metrics):
    return state


def alone(state):
    return None


def named(*names):
    return tuple(f"{HERE}:{name}" for name in names)


def calls():
    return [seen["step"] for seen, _ in CALLS]


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A run of three epochs with a hook, and what the hook was given."""
    CALLS.clear()
    path = tmp_path_factory.mktemp("hooks") / "run"
    config = tiny_config(train__hooks=named("watch"), optim__ema_decay=0.5)
    with jax.numpy_dtype_promotion("standard"):
        result = jaxvit.train(config, path)
    return path, result, CALLS[:]


def test_a_hook_is_given_each_epochs_state_and_metrics(watched):
    path, result, seen = watched
    records = read_jsonl(path / "metrics.jsonl")
    assert [at["step"] for at, _ in seen] == [4, 8, 12]
    for epoch, (_, metrics) in enumerate(seen, 1):
        assert (metrics["step"], metrics["epoch"]) == (4 * epoch, epoch) and metrics["seed"] == 0
        assert metrics["workdir"] == str(path)
        for split in ("train", "validation", "validation_ema"):
            (line,) = (r for r in records if r["split"] == split and r["step"] == 4 * epoch)
            assert metrics[split] == {key: line[key] for key in line if key not in ("step", "epoch", "split")}
        steps = next(r for r in records if r["split"] == "steps" and r["step"] == 4 * epoch)
        assert metrics["learning_rate"] == steps["learning_rate"]
    assert [metrics["best_epoch"] for _, metrics in seen][-1] == result["best_epoch"]
    assert [metrics["epoch"] for _, metrics in seen if metrics["is_best"]][-1] == result["best_epoch"]
    last = jaxvit.load(path, checkpoint="latest", weights="model").variables["params"]
    jax.tree.map(np.testing.assert_array_equal, seen[-1][0]["params"], jax.device_get(last))


def test_a_hook_ends_the_training_and_the_test_follows(tmp_path, capsys):
    result = jaxvit.train(tiny_config(train__hooks=named("watch", "stop_after_two")), tmp_path / "run")
    assert result["stopped_early"] and result["steps"] == 8 and result["test"]["count"] == 25
    assert f"stopped early: hook {HERE}:stop_after_two: that is enough\n" in capsys.readouterr().out
    assert saved_steps(tmp_path / "run" / "checkpoints")[-1] == 8
    # Without the hook the run goes on from there, and says so.
    longer = jaxvit.train(tiny_config(train__hooks=named("watch")), tmp_path / "run")
    assert longer["steps"] == 12 and calls() == [4, 8, 12]
    assert [e["step"] for e in longer["extensions"]] == [8]


def test_a_failing_hook_ends_the_run_in_one_line_and_is_called_again(tmp_path, monkeypatch, watched):
    config = tiny_config(train__hooks=named("watch", "fail_at_two"), optim__ema_decay=0.5, checkpoint__every="3 epochs")
    for _ in range(2):  # a second start meets it at once
        with pytest.raises(RunFailedError) as raised:
            jaxvit.train(config, tmp_path / "run")
        text = str(raised.value)
        assert "\n" not in text and f"config.train.hooks: '{HERE}:fail_at_two' at the end of epoch 2 (step 8)" in text
        assert "fails: OSError: no network (test_hooks.py, line " in text and "the state is saved" in text
        assert saved_steps(tmp_path / "run" / "checkpoints")[-1] == 8
    assert calls() == [4, 8, 8]
    assert CALLS[1][1] == CALLS[2][1]
    jax.tree.map(np.testing.assert_array_equal, CALLS[1][0], CALLS[2][0])
    monkeypatch.setattr(f"{HERE}.fail_at_two", lambda state, metrics: None)
    result = jaxvit.train(config, tmp_path / "run")
    assert calls() == [4, 8, 8, 8, 12]
    # The run that never failed.
    assert result["test"] == watched[1]["test"]
    for (at, metrics), (other, theirs) in zip([CALLS[0], *CALLS[3:]], watched[2], strict=True):
        jax.tree.map(np.testing.assert_array_equal, at, other)
        assert {**metrics, "workdir": ""} == {**theirs, "workdir": ""}


def test_a_hook_that_fails_at_the_last_epoch_is_called_again_before_the_test(tmp_path, monkeypatch):
    config = tiny_config(train__hooks=named("fail_at_two"), train__duration="2 epochs", data__validation="")
    with pytest.raises(RunFailedError, match="OSError: no network"):
        jaxvit.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()
    monkeypatch.setattr(f"{HERE}.fail_at_two", watch)
    assert jaxvit.train(config, tmp_path / "run")["steps"] == 8
    assert calls() == [8] and CALLS[0][1]["validation"] == {} and CALLS[0][1]["is_best"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("leave", "fails: SystemExit: 3 (test_hooks.py, line "),
        ("give_back", "returns a TrainState; it must return nothing, True or a reason (str)"),
    ],
)
def test_what_a_hook_must_not_do(tmp_path, name, says):
    with pytest.raises(RunFailedError) as raised:
        jaxvit.train(tiny_config(train__hooks=named(name), train__duration="1 epochs"), tmp_path / "run")
    assert says in str(raised.value) and "\n" not in str(raised.value)


def test_each_seed_has_its_own_calls_when_several_are_trained_together(tmp_path):
    config = tiny_config(train__hooks=named("watch", "stop"), seeds=(0, 3), train__seeds="together")
    result = jaxvit.train(config, tmp_path / "run")
    assert [one["steps"] for one in result["seeds"]] == [12, 4]
    seen = [(metrics["seed"], at["step"]) for at, metrics in CALLS]
    assert seen == [(0, 4), (3, 4), (0, 8), (0, 12)]
    assert CALLS[1][1]["workdir"] == str(tmp_path / "run" / "seed_3")
    assert read_json(tmp_path / "run" / "seed_3" / "result.json")["stopped_early"]
    state = jaxvit.load(tmp_path / "run" / "seed_3", checkpoint="latest").variables["params"]
    jax.tree.map(np.testing.assert_array_equal, CALLS[1][0]["params"], jax.device_get(state))


@pytest.mark.parametrize(
    ("hooks", "says"),
    [
        (named("alone"), f"config.train.hooks='{HERE}:alone': must take (state, metrics); it takes (state)"),
        (named("HERE"), f"config.train.hooks='{HERE}:HERE': is not a function"),
        ((3,), "config.train.hooks=(3,): must be a tuple of words"),
        (("a", "b"), "'a' names no function; write ('package.module:function',), with the comma"),
        (("no_such_module:f",), "there is no module 'no_such_module'"),
    ],
)
def test_what_is_no_hook_is_refused_before_anything_is_written(hooks, says):
    with pytest.raises(UsageError) as raised:
        resolve(tiny_config(train__hooks=hooks))
    assert says in str(raised.value) and "\n" not in str(raised.value)
