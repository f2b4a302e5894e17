"""Several seeds: together or one after another, each is the single run with that seed."""

import json
import math
import shutil
import statistics
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from runs import StopAt, contents, metrics
from tiny import tiny_config

import jaxvit
from jaxvit.config.plan import resolve
from jaxvit.errors import STOPPED, RunFailedError, StoppedError, UsageError
from jaxvit.files import read_json
from jaxvit.run.messages import print_result
from jaxvit.run.seeds import combine, config_of_seed


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
            "augment__flip_mode": "alternate",
            "init__stem": "whitening",
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
    for seed in (0, 1):  # the first and the last lane
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
    assert all(one.pop("data") == result["data"] for one in each)  # said once
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


@pytest.mark.slow
def test_early_stopping_and_best_are_per_lane(tmp_path):
    """One lane stops early while another continues; each equals its single run."""
    changes = {"train__duration": "8 epochs", "train__patience": "1 epochs", "optim__ema_decay": 0.0}
    result = jaxvit.train(settings(**changes), tmp_path / "run")
    each = {one["seed"]: one for one in result["seeds"]}
    assert len({one["steps"] for one in each.values()}) > 1, "all lanes stopped at one step: the test shows nothing"
    for seed, one in each.items():
        single = jaxvit.train(config_of_seed(settings(**changes), seed), tmp_path / f"single_{seed}")
        assert (one["steps"], one["best_epoch"]) == (single["steps"], single["best_epoch"])
        assert one["test"]["loss"] == pytest.approx(single["test"]["loss"], abs=1e-4)
    # Taken further, each goes on from where it stopped; none loses what it had done beyond another.
    longer = jaxvit.train(settings(**changes | {"train__patience": "9 epochs"}), tmp_path / "run")
    assert {one["seed"]: one["extensions"][0]["step"] for one in longer["seeds"]} == {
        seed: one["steps"] for seed, one in each.items()
    }
    assert longer["extensions"][0]["step"] == result["steps"] and longer["steps"] == 32
    for seed in each:
        epochs = [r["step"] for r in metrics(tmp_path / "run" / f"seed_{seed}") if r["split"] == "validation"]
        assert epochs == list(range(4, 33, 4))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The same run, stopped at step 7."""
    path = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setattr("jaxvit.run.train.StopRequest", lambda: StopAt(6, STOPPED))
        with pytest.raises(StoppedError, match="stopped at step 7 of 10"):
            jaxvit.train(settings(), path)
    return path


@pytest.mark.parametrize(("mode", "killed"), [("together", False), ("together", True), ("in_turn", True)])
def test_stopped_and_started_again(together, stopped, tmp_path, capsys, mode, killed):
    """Stopped in the middle, also between the saves of two lanes, and taken up in the same or the other way."""
    path, result = together
    shutil.copytree(stopped, tmp_path / "run")
    if killed:  # one lane has not come as far as the others
        shutil.rmtree(tmp_path / "run" / "seed_3" / "checkpoints" / "7")
    again = jaxvit.train(settings(train__seeds=mode), tmp_path / "run")
    for a, b in zip(result["seeds"], again["seeds"], strict=True):
        assert (a["seed"], a["best_epoch"]) == (b["seed"], b["best_epoch"])
        if not killed:
            assert a["test"] == b["test"]
            assert metrics(path / f"seed_{a['seed']}") == metrics(tmp_path / "run" / f"seed_{a['seed']}")
        assert a["test"]["loss"] == pytest.approx(b["test"]["loss"], abs=1e-5)
    if (mode, killed) == ("together", True):
        out = capsys.readouterr().out
        assert "seed 3; resuming from step 4; first to step 7, where others are" in out
        assert "3 seeds together: 0, 3, 1; resuming from step 7" in out


def exhausted(*_, **__):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.")


@pytest.mark.slow
def test_what_was_trained_in_turn_is_kept_when_all_are_tried_together(together, tmp_path, monkeypatch, capsys):
    """No room, stopped in the first seed, the same command again; and at last there is room."""
    path, names = tmp_path / "run", []
    open_writers = jaxvit.run.execution.open_writers

    def noted(*arguments, **options):
        names.append(options["name"])
        return open_writers(*arguments, **options)

    monkeypatch.setattr("jaxvit.run.execution.open_writers", noted)
    monkeypatch.setattr("jaxvit.run.seeds._shall_be_together", lambda plan, options: True)
    for reads, step in ((6, 7), (0, 8)):
        with monkeypatch.context() as patch:
            patch.setattr("jaxvit.run.seeds.make_program", exhausted)
            patch.setattr("jaxvit.run.train.StopRequest", lambda reads=reads: StopAt(reads, STOPPED))
            with pytest.raises(StoppedError, match=f"stopped at step {step} of 10"):
                jaxvit.train(settings(train__seeds="auto"), path)
    assert "no room for all seeds together" in capsys.readouterr().out and names == ["run/seed_0"] * 2
    result = jaxvit.train(settings(train__seeds="auto"), path)
    out = capsys.readouterr().out
    assert "2 seeds together: 3, 1; first to step 8, where others are" in out
    assert "3 seeds together: 0, 3, 1; resuming from step 8" in out
    assert names[2:7] == [f"run/seed_{seed}" for seed in (3, 1, 0, 3, 1)]
    for a, b in zip(together[1]["seeds"], result["seeds"], strict=True):
        assert (a["seed"], a["best_epoch"]) == (b["seed"], b["best_epoch"])
        assert a["test"]["loss"] == pytest.approx(b["test"]["loss"], abs=1e-5)
        one, other = metrics(together[0] / f"seed_{a['seed']}"), metrics(path / f"seed_{a['seed']}")
        assert [(r["split"], r["step"]) for r in one] == [(r["split"], r["step"]) for r in other]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train__duration": "4 steps"}, "can only be made longer"),
        ({"train__duration": "4 steps", "train__seeds": "in_turn"}, "can only be made longer"),
        ({"train__duration": "12 steps", "data__feed": "stream"}, "does not go with config.data.feed='stream'"),
    ],
)
def test_a_refused_command_changes_nothing(together, tmp_path, changes, says):
    path = tmp_path / "run"
    shutil.copytree(together[0], path)
    before = contents(path)
    with pytest.raises(UsageError, match=says):
        jaxvit.train(settings(**changes), path)
    assert contents(path) == before
    assert jaxvit.train(settings(), path) == together[1]


@pytest.mark.parametrize("mode", ["together", "in_turn"])
def test_other_images_than_any_seed_began_with_are_refused(together, tmp_path, mode):
    path = tmp_path / "run"
    shutil.copytree(together[0], path)
    environment = read_json(path / "seed_3" / "environment.json")
    environment["data"]["train"]["sha256"] = "0" * 16
    (path / "seed_3" / "environment.json").write_text(json.dumps(environment))
    before = contents(path)
    with pytest.raises(UsageError, match=r"config.data.train: these are not the images that the run in .*seed_3 began"):
        jaxvit.train(settings(train__duration="12 steps", train__seeds=mode), path)
    assert contents(path) == before


def test_an_unfinished_run_notes_where_it_was_taken_further(together, tmp_path, monkeypatch):
    path = tmp_path / "run"
    shutil.copytree(together[0], path)
    for folder in (path, path / "seed_3"):
        (folder / "result.json").unlink()
    monkeypatch.setattr("jaxvit.run.train.StopRequest", lambda: StopAt(0, STOPPED))
    with pytest.raises(StoppedError):
        jaxvit.train(settings(train__duration="12 steps", train__seeds="in_turn"), path)
    assert [e["step"] for e in read_json(path / "config.json")["extensions"]] == [10]


@pytest.mark.parametrize(
    ("validated", "weights", "all_of", "says"),
    [
        (True, "best best", "best", "weights of epochs 5, 6, the best on validation; 8 steps"),
        (False, "last last", "last", "last weights; 8 steps"),
        (True, "last last", "last", "last weights, since the best on validation are damaged; 8 steps"),
        (
            True,
            "best last",
            "mixed",
            "weights of epochs 5, the best on validation; of seeds 1 the last, since the best are damaged; 8 steps",
        ),
    ],
)
def test_it_says_which_weights_were_measured(capsys, tmp_path, validated, weights, all_of, says):
    one = {
        "test": {},
        "validation": {"top1": 0.5} if validated else {},
        "weights": "model",
        "params": 1,
        "steps": 8,
        "stopped_early": False,
        "seconds": {"train": 1.0},
        "data": {},
    }
    run = SimpleNamespace(config_hash="", extensions=[])
    results = {i: one | {"weights_of": of, "best_epoch": 5 + i} for i, of in enumerate(weights.split())}
    result = combine(results, run)
    print_result(result, tmp_path)
    assert result["weights_of"] == all_of and says in capsys.readouterr().out


def test_when_there_is_no_room_for_all_they_are_trained_in_turn(tmp_path, monkeypatch, capsys):
    import jaxvit.run.seeds as seeds

    monkeypatch.setattr(seeds, "_shall_be_together", lambda plan, options: True)
    monkeypatch.setattr(seeds, "make_program", exhausted)
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
    with pytest.raises(UsageError, match=r"config.seed: this key has no effect .*config.seeds=\(0, 3, 1\)"):
        resolve(settings(), overrides=["seed"])
    with pytest.raises(UsageError, match=r"train.seeds: this key has no effect"):
        resolve(tiny_config(), overrides=["train.seeds"])
