"""Several seeds: together or one after another, each is the single run with that seed."""

import math
import shutil
import statistics

import jax
import numpy as np
import pytest
from test_train import StopAt, metrics
from tiny import tiny_config

import jaxvit
from jaxvit.errors import STOPPED, RunFailedError, StoppedError, UsageError
from jaxvit.plan import resolve
from jaxvit.run_directory import read_json
from jaxvit.seeds import config_of_seed


@pytest.fixture(autouse=True)
def _optax_mixes_dtypes():
    with jax.numpy_dtype_promotion("standard"):
        yield


def settings(**changes):
    """Everything on that a seed can change: order, images, noise; 10 steps, seen one by one."""
    return tiny_config(
        **{
            "seeds": (0, 3, 1),
            "augment__flip": True,
            "augment__mixup": 0.4,
            "optim__name": "sgd",
            "optim__peak_lr": 0.05,
            "optim__ema_decay": 0.5,
            "train__duration": "10 steps",
            "log__every": "1 steps",
            "train__seeds": "together",
            **changes,
        }
    )


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    path = tmp_path_factory.mktemp("together") / "run"
    with jax.numpy_dtype_promotion("standard"):
        result = jaxvit.train(settings(), path)
    return path, result


def test_a_lane_is_the_single_run_with_its_seed(together, tmp_path):
    path, _ = together
    for seed in (0, 3, 1):
        jaxvit.train(config_of_seed(settings(), seed), tmp_path / f"single_{seed}")
        one, lane = metrics(tmp_path / f"single_{seed}"), metrics(path / f"seed_{seed}")
        assert [(r["split"], r["step"]) for r in one] == [(r["split"], r["step"]) for r in lane]
        for a, b in zip(one, lane, strict=True):
            np.testing.assert_allclose(a["loss"], b["loss"], atol=1e-5)
        configs = [read_json(d / "config.json") for d in (path / f"seed_{seed}", tmp_path / f"single_{seed}")]
        assert configs[0] == configs[1]
    last = [metrics(path / f"seed_{seed}")[-1]["loss"] for seed in (0, 3, 1)]
    assert len(set(last)) == 3


def test_the_result_holds_mean_spread_and_each_seed(together):
    path, result = together
    assert result == read_json(path / "result.json")
    each = [read_json(path / f"seed_{seed}" / "result.json") for seed in (0, 3, 1)]
    assert result["seeds"] == [{"seed": seed, **one} for seed, one in zip((0, 3, 1), each, strict=True)]
    for name in ("top1", "top5", "loss"):
        values = [one["test"][name] for one in each]
        assert result["test"][name] == pytest.approx(sum(values) / 3)
        mean = sum(values) / 3
        assert result["test"]["std"][name] == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in values) / 2))
        assert statistics.stdev(values) == pytest.approx(result["test"]["std"][name])
    assert result["test"]["n"] == 3 and result["test"]["count"] == 25
    assert result["params"] == each[0]["params"] and result["steps"] == 10


def test_a_finished_run_of_seeds_is_shown_and_loads_by_seed(together, capsys):
    path, result = together
    assert jaxvit.train(settings(), path) == result
    out = capsys.readouterr().out
    assert "nothing was trained" in out and "mean ± standard deviation of 3 seeds" in out
    with pytest.raises(UsageError, match=r"holds a run for each of 3 seeds; name one, such as .*seed_0"):
        jaxvit.load(path)
    assert jaxvit.load(path / "seed_3").weights == "ema"


def test_early_stopping_and_best_are_per_lane(tmp_path):
    """One lane stops while another goes on; each as it would by itself."""
    changes = {"train__duration": "8 epochs", "train__patience": "1 epochs", "optim__ema_decay": 0.0}
    result = jaxvit.train(settings(**changes), tmp_path / "run")
    each = {one["seed"]: one for one in result["seeds"]}
    assert len({one["steps"] for one in each.values()}) > 1, "all lanes stopped at one step: the test shows nothing"
    for seed, one in each.items():
        single = jaxvit.train(config_of_seed(settings(**changes), seed), tmp_path / f"single_{seed}")
        assert (one["steps"], one["best_epoch"]) == (single["steps"], single["best_epoch"])
        assert one["test"]["loss"] == pytest.approx(single["test"]["loss"], abs=1e-4)


@pytest.mark.parametrize("mode", ["together", "in_turn"])
def test_stopped_and_started_again(together, tmp_path, monkeypatch, mode):
    """Stopped in the middle, also between the saves of two lanes, and taken up in the same or the other way."""
    path, result = together
    monkeypatch.setattr(jaxvit.train, "StopRequest", lambda: StopAt(6, STOPPED))
    with pytest.raises(StoppedError, match="stopped at step 7 of 10"):
        jaxvit.train(settings(), tmp_path / "run")
    monkeypatch.undo()
    # As a kill would leave it: one lane has not come as far as the others.
    shutil.rmtree(tmp_path / "run" / "seed_3" / "checkpoints" / "7")
    again = jaxvit.train(settings(train__seeds=mode), tmp_path / "run")
    for a, b in zip(result["seeds"], again["seeds"], strict=True):
        assert (a["seed"], a["best_epoch"]) == (b["seed"], b["best_epoch"])
        if mode == "together":
            assert a["test"] == b["test"]
            assert metrics(path / f"seed_{a['seed']}") == metrics(tmp_path / "run" / f"seed_{a['seed']}")
        assert a["test"]["loss"] == pytest.approx(b["test"]["loss"], abs=1e-5)


def test_when_there_is_no_room_for_all_they_are_trained_in_turn(tmp_path, monkeypatch, capsys):
    import jaxvit.seeds as seeds

    def exhausted(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.")

    monkeypatch.setattr(seeds, "_shall_be_together", lambda plan, options: True)
    monkeypatch.setattr(seeds, "make_job", exhausted)
    result = jaxvit.train(settings(train__seeds="auto", train__duration="2 steps"), tmp_path / "run")
    assert "no room for all seeds together" in capsys.readouterr().out and result["test"]["n"] == 3


def test_a_loss_that_is_not_finite_names_the_seed(tmp_path):
    for mode in ("together", "in_turn"):
        with pytest.raises(RunFailedError, match=r"seed 0: \w+ is not finite at step"):
            jaxvit.train(settings(optim__peak_lr=1e30, train__seeds=mode), tmp_path / mode)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seeds": (0, 0)}, r"config.seeds=\(0, 0\): must be different whole numbers"),
        ({"seeds": (-1,)}, "must be different whole numbers"),
        ({"data__feed": "stream"}, "train.seeds='together' does not go with config.data.feed='stream'"),
    ],
)
def test_what_does_not_go(tmp_path, changes, says):
    with pytest.raises(UsageError, match=says):
        jaxvit.train(settings(**changes), tmp_path / "run")


def test_the_single_seed_is_not_read_beside_seeds():
    with pytest.raises(UsageError, match=r"config.seed: nothing reads this key in this run: config.seeds=\(0, 3, 1\)"):
        resolve(settings(), overrides=["seed"])
    with pytest.raises(UsageError, match=r"train.seeds: nothing reads this key"):
        resolve(tiny_config(), overrides=["train.seeds"])
