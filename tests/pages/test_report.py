"""Comparison of runs, and the figures of a run."""

from __future__ import annotations

import collections
import csv
import dataclasses
import json
import shutil
from html.parser import HTMLParser

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import edit_json, tiny_config, train_family

import jaxvit
from jaxvit.cli.report import main
from jaxvit.errors import RunFailedError, UsageError
from jaxvit.pages.comparison import WRITERS, find_runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with one seed and a run with two."""
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


@pytest.mark.parametrize("finished", [True, False])
def test_the_validation_told_is_the_one_that_decides(runs, tmp_path, capsys, finished):
    shutil.copytree(runs / "one", tmp_path / "run")
    best = json.loads((tmp_path / "run" / "result.json").read_text())["best_epoch"]
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 1, "epoch": best, "split": "validation_ema", "top1": 0.015625}) + "\n")
    if not finished:
        (tmp_path / "run" / "result.json").unlink()
    main([str(tmp_path), "--format=csv"])
    (row,) = csv.DictReader(capsys.readouterr().out.splitlines())
    assert row["validation"] == "0.015625"


def test_the_weights_that_runs_started_from(capsys):
    rows = [{"run": "a", "model": "vit", "data": "d", "state": "finished"}]
    WRITERS["markdown"](rows)
    assert "starts from" not in capsys.readouterr().out
    WRITERS["markdown"]([*rows, {**rows[0], "source": "runs/five"}])
    heading, _, one, two = capsys.readouterr().out.splitlines()
    places = [line.split(" | ")[3] for line in (heading, one, two)]
    assert places == ["starts from", "", "runs/five"]


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
    page = Page()
    page.feed((drawn / "index.html").read_text())
    page.close()
    assert page.open == [] and page.seen["title"] == page.seen["h1"] == page.seen["body"] == 1
    assert "script" not in page.seen
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert sorted(picture["src"] for picture in pictures) == sorted(file.name for file in drawn.glob("*.png"))
    assert all(len(picture["alt"]) > 15 for picture in pictures)
    assert len({picture["alt"] for picture in pictures}) == len(pictures)
    targets = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert len(targets) == len(pictures) and all((drawn / target).is_file() for target in targets)


class Page(HTMLParser):
    """Parses a page, and checks that all tags are closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.seen = [], [], collections.Counter()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.seen[tag] += 1
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_diverged_run_shows_how_it_came_to_that(runs, monkeypatch, tmp_path, capsys):
    """Its logits are not finite: figures of predictions are skipped, curves and architecture are drawn."""
    from jaxvit.trained import inference

    shutil.copytree(runs / "one", tmp_path / "run")

    def not_finite(*_):
        raise RunFailedError("the model's scores are not finite numbers")

    monkeypatch.setattr(inference, "_fetch", not_finite)
    assert main([str(tmp_path / "run"), "--figures", "--n=1"]) == 0
    assert "left out: predictions, mistakes, confusion, calibration: the model's scores" in capsys.readouterr().err
    page = (tmp_path / "run" / "figures" / "index.html").read_text()
    assert "history.png" in page and "architecture.png" in page and "confusion.png" not in page


def test_weights_of_unknown_places_are_left_out(runs, monkeypatch, tmp_path, capsys):
    """For a user's model whose feature map is not where jaxvit's models have it."""
    from jaxvit.trained import introspection

    shutil.copytree(runs / "one", tmp_path / "run")
    plain = introspection.record

    def record(loaded, images):
        recorded = plain(loaded, images)
        learned = introspection.RecordedStep("learn", "token_learner_0", np.full((len(images), 2, 9), 1 / 9), "softmax")
        return dataclasses.replace(recorded, grid=None, steps=(*recorded.steps, learned))

    monkeypatch.setattr(introspection, "record", record)
    assert main([str(tmp_path / "run"), "--figures", "--n=1"]) == 0
    assert "left out: token_maps: 9 weights" in capsys.readouterr().err
    monkeypatch.setattr(introspection, "record", plain)

    def unknown(*_):
        raise ValueError("pool='max' is not known here")

    monkeypatch.setattr(introspection, "attention_rollout", unknown)
    assert main([str(tmp_path / "run"), "--figures", "--n=1"]) == 0
    assert "left out: attention_rollout: attention rollout: pool='max'" in capsys.readouterr().err


def test_folders_in_brackets_are_shown(runs, tmp_path, capsys, monkeypatch):
    shutil.copytree(runs / "one", tmp_path / "[red]")
    monkeypatch.chdir(tmp_path)
    main(["[red]"])
    assert "[red]" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_drawn(runs, tmp_path):
    shutil.copytree(runs / "one", tmp_path / "run", ignore=shutil.ignore_patterns("figures"))
    (tmp_path / "run" / "figures").symlink_to("/proc")
    with pytest.raises(UsageError, match=r"figures cannot be written .*copy the run"):
        main([str(tmp_path / "run"), "--figures"])


@pytest.mark.slow
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
    edit_json(config, '"digits"', '"fashion_mnist"')
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
    assert "train again with another --workdir" in capsys.readouterr().err
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
