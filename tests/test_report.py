"""Runs side by side, and the figures of a run."""

from __future__ import annotations

import csv
import json
import re
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config, train_family

import jaxvit
from jaxvit.errors import UsageError
from jaxvit.report import find_runs, main


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of one seed and one of two, beside each other."""
    folder = tmp_path_factory.mktemp("runs")
    with jax.numpy_dtype_promotion("standard"):
        jaxvit.train(tiny_config(), folder / "one")
        jaxvit.train(tiny_config(train__duration="1 epochs", seeds=(0, 1)), folder / "deep" / "two")
    return folder


def test_every_run_once_and_the_best_first(runs, capsys):
    assert [run.name for run in find_runs(runs)] == ["two", "one"]
    assert main([str(runs), str(runs / "one"), "--format=csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    accuracies = [float(row["top1"]) for row in rows]
    assert len(rows) == 2 and accuracies == sorted(accuracies, reverse=True)
    by_name = {row["run"].rpartition("/")[2]: row for row in rows}
    one = json.loads((runs / "one" / "result.json").read_text())
    two = json.loads((runs / "deep" / "two" / "result.json").read_text())
    assert float(by_name["one"]["loss"]) == one["test"]["loss"] and by_name["one"]["top1_std"] == ""
    assert int(by_name["one"]["params"]) == one["params"] == int(by_name["two"]["params"])
    assert (by_name["two"]["seeds"], float(by_name["two"]["top1_std"])) == ("2", two["test"]["std"]["top1"])
    from jaxvit.models.count import count_macs

    loaded = jaxvit.load(runs / "one")
    assert int(by_name["one"]["macs"]) == count_macs(loaded.model, loaded.input_shape)["all"]


def test_a_table_for_a_page(runs, capsys):
    main([str(runs / "one"), "--format=markdown"])
    heading, rule, row = capsys.readouterr().out.strip().splitlines()
    assert heading.count("|") == rule.count("|") == row.count("|")
    accuracy = json.loads((runs / "one" / "result.json").read_text())["test"]["top1"]
    assert f"{accuracy:.2%}" in row


def test_a_run_that_goes_on_is_told(runs, tmp_path, capsys):
    shutil.copytree(runs / "one", tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    main([str(tmp_path)])
    out = capsys.readouterr().out
    assert "not finished" in out.replace("\n", " ")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The folder of the figures of a TokenLearner with a fuser."""
    run = train_family(tmp_path_factory.mktemp("drawn") / "run", "fuser")
    assert main([str(run), "--figures", "--n=2"]) == 0
    return run / "figures"


def test_all_figures_that_fit_the_model(drawn):
    expected = {
        *("architecture", "attention_rollout", "calibration", "confusion", "history", "mistakes", "patches"),
        *("positions", "predictions", "token_learner"),
        *(f"token_maps_token_learner_{i}" for i in (1, 2)),
        *(f"token_fuser_token_fuser_{i}" for i in (1, 2)),
    }
    assert {file.stem for file in drawn.glob("*.png")} == expected == {file.stem for file in drawn.glob("*.svg")}
    for file in drawn.glob("*.png"):
        with Image.open(file) as image:
            assert min(image.size) >= 300 and len(np.unique(np.asarray(image.convert("L")))) > 10, file.name


def test_the_page_shows_them_all(drawn):
    page = (drawn / "index.html").read_text()
    assert set(re.findall(r'src="([^"]+)"', page)) == {file.name for file in drawn.glob("*.png")}
    assert all((drawn / name).exists() for name in re.findall(r'href="([^"]+)"', page))
    assert "<script" not in page


def test_figures_of_a_shiftvit(tmp_path):
    run = train_family(tmp_path / "run", "shiftvit")
    main([str(run), "--figures", "--n=1"])
    names = {file.name for file in (run / "figures").iterdir()}
    assert {"shift.gif", "shift_block.png", "receptive_field.png", "architecture.svg"} <= names
    assert not names & {"attention_rollout.png", "positions.png", "pool_weights.png"}
    with Image.open(run / "figures" / "shift.gif") as animation:
        assert animation.n_frames > 10


def test_without_the_data_the_others_are_drawn(drawn, tmp_path, capsys):
    shutil.copytree(drawn.parent, tmp_path / "run", ignore=shutil.ignore_patterns("figures"))
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace('"digits"', '"fashion_mnist"'))
    assert main([str(tmp_path / "run"), "--figures"]) == 0
    err = capsys.readouterr().err
    assert "left out: predictions, mistakes, confusion" in err and "fashion_mnist" in err
    names = {file.stem for file in (tmp_path / "run" / "figures").glob("*.png")}
    assert names == {"history", "architecture", "token_learner", "positions"}


def test_a_run_that_cannot_be_drawn_leaves_the_others(runs, drawn, tmp_path, capsys):
    shutil.copytree(runs / "one", tmp_path / "a")
    shutil.copytree(drawn.parent, tmp_path / "b", ignore=shutil.ignore_patterns("figures"))
    shutil.rmtree(tmp_path / "a" / "checkpoints")
    assert main([str(tmp_path), "--figures", "--n=1"]) == 1
    assert "holds no checkpoint yet" in capsys.readouterr().err
    assert (tmp_path / "b" / "figures" / "index.html").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name runs"),
        (["missing"], "missing: there is no such folder"),
        (["{empty}"], "there are no runs here"),
        (["{run}", "--n=0"], "--n=0"),
        (["{run}", "--figure"], "did you mean '--figures'"),
    ],
)
def test_mistakes_are_one_line(runs, tmp_path, arguments, says):
    with pytest.raises(UsageError, match=says):
        main([a.format(run=runs / "one", empty=tmp_path) for a in arguments])
