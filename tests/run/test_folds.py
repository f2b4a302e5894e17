"""`jaxvit train --data`, trained: cross-validation with its spread, taken up again; classes of unequal size."""

import json
import os
import statistics

import jax
import pytest
from photos import photos

import jaxvit
from jaxvit.cli.train import main
from jaxvit.errors import UsageError
from jaxvit.files import read_json

TINY = ["--config.model.depth=1", "--config.model.dim=8", "--config.model.heads=2"]
TINY += ["--config.augment.policy=", "--config.augment.erase=0", "--config.log.writers=('jsonl',)"]
TINY += ["--config.augment.train=whole", "--config.augment.mixup=0", "--config.augment.cutmix=0"]
TINY += ["--config.train.duration=2 epochs", "--config.optim.ema_decay=0"]


@pytest.fixture(autouse=True)
def _optax_mixes_dtypes():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The working folder of the runs, with photos of 14 cats and 6 dogs."""
    path = tmp_path_factory.mktemp("work")
    photos(path / "pets", cat=14, dog=6)
    return path


@pytest.fixture(scope="module")
def crossed(folder):
    os.chdir(folder)
    with jax.numpy_dtype_promotion("standard"):
        assert main(["--data=pets", "--folds=2", *TINY]) == 0
    return folder / "runs" / "pets-2folds"


def test_folds_have_their_mean_and_spread(crossed):
    result = read_json(crossed / "result.json")
    each = [read_json(crossed / f"fold_{fold}" / "result.json") for fold in (0, 1)]
    assert result["folds"] == [{"fold": fold, **one} for fold, one in enumerate(each)]
    for name in ("top1", "loss"):
        values = [one["test"][name] for one in each]
        assert result["test"][name] == pytest.approx(sum(values) / 2)
        assert result["test"]["std"][name] == pytest.approx(statistics.stdev(values))
    assert result["test"]["count"] == 20 and result["test"]["n"] == 2
    tests = [one["data"]["test"] for one in each]
    assert [test["classes"] for test in tests] == [[7, 3], [7, 3]] and tests[0]["content"] != tests[1]["content"]
    whole, first = (read_json(path / "config.json")["config"] for path in (crossed, crossed / "fold_0"))
    assert (whole["data"]["fold"], first["data"]["fold"]) == (-1, 0) and whole["data"]["folds"] == 2


def test_the_same_command_shows_or_goes_on(crossed, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    before = read_json(crossed / "result.json")
    assert main(["--data=pets", "--folds=2", *TINY]) == 0
    out = capsys.readouterr().out
    assert "nothing was trained" in out and "mean ± standard deviation of 2 folds, 20 images" in out
    (crossed / "result.json").unlink()
    (crossed / "fold_1" / "result.json").unlink()  # as if it had been killed before its test
    assert main(["--data=pets", "--folds=2", *TINY]) == 0
    out = capsys.readouterr().out
    assert "the training is done; the test follows" in out
    after = read_json(crossed / "result.json")
    assert after["test"] == before["test"] and after["folds"][0] == before["folds"][0]


def test_a_fold_is_a_run_and_the_whole_names_one(crossed):
    assert jaxvit.evaluate(crossed / "fold_1")["top1"] == read_json(crossed / "fold_1" / "result.json")["test"]["top1"]
    with pytest.raises(UsageError, match=r"holds a run for each of 2 folds; name one, such as .*fold_0"):
        jaxvit.load(crossed)


def test_classes_of_unequal_size(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    words = ["--config.data.balance=loss", "--config.train.monitor=macro_f1"]
    assert main(["--data=pets", *TINY, *words]) == 0
    out = capsys.readouterr().out
    assert "all classes alike: macro F1" in out
    run = folder / "runs" / "pets"
    test, found = read_json(run / "result.json")["test"], jaxvit.evaluate(run)
    assert test["macro_f1"] == pytest.approx(found["f1"]["macro"])
    assert test["balanced_accuracy"] == pytest.approx(found["recall"]["macro"])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validations = [line["macro_f1"] for line in lines if line["split"] == "validation"]
    assert max(validations) == read_json(run / "result.json")["validation"]["macro_f1"]
    with pytest.raises(UsageError, match=r"this folder holds a run of another config \(data.balance: 'loss' there"):
        main(["--data=pets", *TINY, *words, "--config.data.balance=sampling"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "--config or --data is missing"),
        (["--data=pets", "--folds=1"], "--folds=1: must be 2 or more"),
        (["--data=pets", "--folds=2", "--config.data.folds=3"], "set the same key; give only one of them"),
        (["--data=pets", "--config.data.name=digits"], "set the same key; give only one of them"),
        (["--data=pets", "--folds=2", "--config.seeds=(0, 1)"], "config.data.folds=2 both make several runs"),
        (["--data=pets", "--config.data.fold=1"], "config.data.folds=0 makes no folds"),
        (["--data=pets", "--folds=2", "--config.data.fold=2"], "the 2 folds are 0 to 1"),
        (
            ["--data=pets", "--config.data.balance=even"],
            "config.data.balance='even': must be one of none, sampling, loss",
        ),
        (
            ["--data=pets", "--config.data.balance=sampling", "--config.augment.flip_mode=alternate"],
            "draws some images several times",
        ),
    ],
)
def test_what_does_not_go_together_is_said(folder, monkeypatch, words, says):
    monkeypatch.chdir(folder)
    with pytest.raises(UsageError, match=says.replace("(", r"\(")):
        main([*words, *TINY, "--dry_run"] if words else words)
