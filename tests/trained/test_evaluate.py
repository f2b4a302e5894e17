"""Evaluating a finished run: the same numbers as the run's own, as scikit-learn's, and as plain loops."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import f1_score, log_loss, top_k_accuracy_score
from tiny import tiny_config

import jaxvit
from jaxvit.cli.evaluate import main
from jaxvit.errors import RunFailedError, UsageError
from jaxvit.files import checksum, read_json
from jaxvit.trained.evaluate import evaluate_source, read_split
from jaxvit.trained.inference import Predictor, judge
from jaxvit.trained.scores import calibration, score, write_tables


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("evaluated") / "run"
    with jax.numpy_dtype_promotion("standard"):
        return workdir, jaxvit.train(tiny_config(eval__batch_size=25), workdir)


@pytest.fixture(scope="module")
def loaded(run):
    return jaxvit.load(run[0])


def test_it_says_what_the_run_itself_measured(run, loaded):
    split, source = read_split(loaded)
    found, _ = evaluate_source(loaded, source, split=split)
    theirs = run[1]["test"]
    assert (found["split"], found["count"], found["step"]) == ("test", 25, loaded.step)
    assert (found["top1"], found["top5"], found["count"]) == (theirs["top1"], theirs["top5"], theirs["count"])
    assert found["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
    assert found["keras"] == {"precision": theirs["precision"], "recall": theirs["recall"]}


@pytest.fixture(scope="module")
def random_scores():
    rng = np.random.default_rng(0)
    return rng.normal(0, 2, (200, 7)), rng.choice([0, 1, 2, 4, 5, 6], 200)  # class 3 never occurs


def test_every_number_against_scikit_learn_and_plain_loops(random_scores):
    logits, labels = random_scores
    names = [f"c{i}" for i in range(7)]
    found = score(judge(logits, labels, np.arange(200)), names, places=7)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    predicted = probabilities.argmax(axis=1)
    assert found["loss"] == pytest.approx(log_loss(labels, probabilities, labels=range(7)))
    assert found["top5"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=range(7)))
    assert found["f1"]["macro"] == pytest.approx(f1_score(labels, predicted, average="macro", labels=np.unique(labels)))
    assert found["f1"]["weighted"] == pytest.approx(f1_score(labels, predicted, average="weighted"))
    confusion = np.zeros((7, 7), int)
    positives = true_positives = 0
    for label, row in zip(labels, probabilities, strict=True):
        confusion[label, row.argmax()] += 1
        for k in range(7):
            positives += row[k] > 0.5
            true_positives += row[k] > 0.5 and k == label
    assert found["confusion"] == confusion.tolist()
    assert found["keras"] == {"precision": true_positives / positives, "recall": true_positives / 200}
    for k, row in enumerate(found["per_class"]):
        assert row["count"] == (labels == k).sum() and row["name"] == names[k]
        assert row["recall"] == pytest.approx(confusion[k, k] / confusion[k].sum() if confusion[k].sum() else 0)
        assert row["precision"] == pytest.approx(confusion[k, k] / confusion[:, k].sum())
    pair = found["most_confused"][0]
    assert pair["count"] == (confusion - np.diag(np.diag(confusion))).max()
    assert confusion[names.index(pair["true"]), names.index(pair["predicted"])] == pair["count"]
    ece = 0.0
    for m in range(15):
        inside = [i for i in range(200) if m / 15 < probabilities[i].max() <= (m + 1) / 15]
        if inside:
            accuracy = np.mean([predicted[i] == labels[i] for i in inside])
            ece += len(inside) / 200 * abs(accuracy - np.mean([probabilities[i].max() for i in inside]))
    assert found["ece"] == pytest.approx(ece)


def test_certainty_belongs_to_the_last_bin():
    outcomes = judge(np.array([[1e3, 0.0], [0.0, 1e3]]), np.array([0, 0]), np.arange(2))
    assert calibration(outcomes) == [{"from": 14 / 15, "to": 1.0, "count": 2, "confidence": 1.0, "accuracy": 0.5}]


def test_ties_go_to_the_lower_class_and_k_is_clamped():
    outcomes = judge(np.zeros((3, 3)), np.array([0, 1, 2]), np.arange(3))
    assert outcomes.predicted.tolist() == [0, 0, 0] and outcomes.rank.tolist() == [0, 1, 2]
    found = score(outcomes, ["a", "b", "c"], places=3)
    assert (found["top1"], found["top5"]) == (pytest.approx(1 / 3), 1.0)


def test_a_place_without_a_class_is_wrong_and_shown():
    found = score(judge(np.array([[0.0, 1.0, 2.0]]), np.array([1]), np.arange(1)), ["a", "b"], places=3)
    assert found["top1"] == 0 and found["class_names"] == ["a", "b", "(no class 2)"]
    assert found["confusion"][1] == [0, 0, 1] and len(found["per_class"]) == 3


@pytest.mark.parametrize("batch_size", [1, 7, 24, 25, 64])
def test_every_image_counts_once_at_any_batch_size(loaded, batch_size):
    source = read_split(loaded, "test[:24]")[1]
    alone = judge(np.asarray(loaded.logits(source.images)), source.labels, np.arange(24))
    outcomes = Predictor(loaded, batch_size).outcomes(source)
    assert outcomes.index.tolist() == list(range(24))
    np.testing.assert_array_equal(outcomes.predicted, alone.predicted)
    np.testing.assert_allclose(outcomes.loss, alone.loss, rtol=1e-5)


DEVICES = """
import jax, jaxvit
from jaxvit.trained.evaluate import evaluate_source, read_split
loaded = jaxvit.load(WORKDIR)
split, source = read_split(loaded, "test[:23]")
for devices in (1, 2, 3):
    for batch_size in (1, 5, 23):
        found, outcomes = evaluate_source(loaded, source, batch_size=batch_size, devices=devices)
        print(found["count"], round(found["loss"], 5), found["confusion"])
"""


def test_every_image_counts_once_on_any_number_of_devices(run):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=3"
    done = subprocess.run(
        [sys.executable, "-c", f"WORKDIR = {str(run[0])!r}\n{DEVICES}"],
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": flags},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 9 and len(set(lines)) == 1 and lines[0].startswith("23 ")


def test_the_files_hold_what_was_found(run, capsys):
    workdir, result = run
    assert main([f"--workdir={workdir}"]) == 0
    assert f"({round(25 * result['test']['top1'])} of 25 images)" in capsys.readouterr().out
    folder = workdir / "evaluation"
    found = read_json(folder / "test.json")
    said = json.loads((folder / "test.json").read_text())
    assert said.pop("checksum") == checksum(said) and said == found
    assert {"split", "count", "loss", "top1", "top5", "per_class", "confusion", "ece"} <= set(found)
    rows = list(csv.DictReader((folder / "test.csv").open()))
    assert [row["name"] for row in rows] == list("0123456789") and sum(int(row["count"]) for row in rows) == 25
    matrix = list(csv.reader((folder / "test_confusion.csv").open()))
    assert [[int(n) for n in row[1:]] for row in matrix[1:]] == found["confusion"]
    images = list(csv.DictReader((folder / "test_images.csv").open()))
    assert np.mean([row["true"] == row["predicted"] for row in images]) == pytest.approx(found["top1"])
    assert np.mean([float(row["loss"]) for row in images]) == pytest.approx(found["loss"], rel=1e-4)


def test_other_weights_and_splits_have_files_of_their_own(run, capsys):
    workdir, _ = run
    assert main([f"--workdir={workdir}", "--split=test[5:9]", "--checkpoint=latest", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["count"] == 4
    assert (workdir / "evaluation" / "test_5_9_latest.json").exists()


def test_a_folder_of_labelled_images_is_a_data_set(tmp_path, capsys):
    """Of any size: they are brought to the model's."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for i in range(8):
                picture = Image.fromarray(rng.integers(0, 255, (12, 12, 3), np.uint8))
                picture.save(tmp_path / "images" / split / name / f"{i}.png")
    name = f"image_folder:{tmp_path / 'images'}"
    splits = {"data__train": "train", "data__validation": "", "data__test": "validation", "data__side": 8}
    config = tiny_config(**splits, data__name=name, train__duration="1 steps")
    with jax.numpy_dtype_promotion("standard"):
        jaxvit.train(config, tmp_path / "run")
    (tmp_path / "other" / "b").mkdir(parents=True)
    (tmp_path / "other" / "a").mkdir()
    for i, letter in enumerate("aab"):
        Image.new("RGB", (40 + i, 30), "red").save(tmp_path / "other" / letter / f"{i}.png")
    arguments = [f"--workdir={tmp_path / 'run'}", "--split=train", "--json"]
    assert main([*arguments, f"--data=image_folder:{tmp_path / 'other'}"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["count"] == 3 and [row["count"] for row in found["per_class"]] == [2, 1]
    with pytest.raises(UsageError, match=r"digits: its classes \(0, 1, 2, 3, …\) are not those of the model \(a, b\)"):
        main([*arguments, "--data=digits"])


def test_images_that_are_not_those_of_the_run_are_told(run, tmp_path, capsys):
    shutil.copytree(run[0], tmp_path / "run")
    file = tmp_path / "run" / "environment.json"
    environment = read_json(file)  # without its checksum
    environment["data"]["test"]["sha256"] = "0" * 16
    file.write_text(json.dumps(environment))
    main([f"--workdir={tmp_path / 'run'}", "--json"])
    assert "these are not the images that the run used for test" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--workdir is missing"),
        (["--workdir={missing}"], "there is no such folder"),
        (["--workdir={run}", "--split=tset"], "--split='tset'.*did you mean 'test'"),
        (["--workdir={run}", "--split=test[400:]"], "--split"),
        (["--workdir={run}", "--weights=ema"], "keeps no average"),
        (["--workdir={run}", "--batch_size=-1"], "--batch_size=-1"),
        (["--workdir={run}", "--devices=99"], "--devices=99"),
        (["--workdir={run}", "--data=nonsense"], "nonsense"),
        (["--workdir={run}", "--out={file}/x"], "cannot be written"),
        (["--workdir={run}", "--out=/proc"], "/proc cannot be written .*--out=DIR"),
        (["--workdir={run}", "--spilt=test"], "did you mean '--split'"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, arguments, says):
    file = tmp_path / "file"
    file.touch()
    words = [a.format(run=run[0], missing=tmp_path / "missing", file=file) for a in arguments]
    with pytest.raises(UsageError, match=says) as caught:
        main(words)
    assert "\n" not in str(caught.value)


def test_a_table_of_the_user_is_not_replaced(random_scores, tmp_path):
    logits, labels = random_scores
    outcomes = judge(logits, labels, np.arange(len(labels)))
    found = score(outcomes, [str(i) for i in range(logits.shape[1])], places=logits.shape[1])
    assert len(write_tables(found, outcomes, tmp_path / "test")) == 3
    write_tables(found, outcomes, tmp_path / "test")
    (tmp_path / "test_images.csv").write_text("file,label\n1.jpg,cat\n")
    (tmp_path / "test.csv").unlink()
    with pytest.raises(UsageError, match=r"test_images\.csv is there already, and is another table"):
        write_tables(found, outcomes, tmp_path / "test")
    assert (tmp_path / "test_images.csv").read_text() == "file,label\n1.jpg,cat\n"
    assert not (tmp_path / "test.csv").exists()


def test_names_in_brackets_are_shown(random_scores, capsys, tmp_path):
    from jaxvit.cli import evaluate as verb

    logits, labels = random_scores
    outcomes = judge(logits, labels, np.arange(len(labels)))
    names = ["[red]", "[/x]", *map(str, range(2, logits.shape[1]))]
    found = score(outcomes, names, places=logits.shape[1])
    verb._show({**found, "data": "image_folder:[a]: test", "step": 1, "weights": "model"}, tmp_path / "test")
    out = capsys.readouterr().out
    assert out.count("[red]") >= 2 and out.count("[/x]") >= 2 and "image_folder:[a]" in out


def test_a_split_of_which_nothing_can_be_decoded_is_refused(loaded):
    source = read_split(loaded, "test[:1]")[1]

    class Damaged:
        name = source.name

        def __len__(self):
            return 1

        def batch(self, rows):
            images, labels, good = source.batch(rows)
            return images, labels, ~good

    with pytest.raises(RunFailedError, match="not one of its images"):
        Predictor(loaded, 5).outcomes(Damaged())


def test_scores_that_are_not_numbers_are_refused(loaded):
    broken = jax.tree.map(lambda x: x * np.float32("nan"), loaded.variables)
    predictor = Predictor(loaded, 5)
    predictor._variables = broken
    with pytest.raises(RunFailedError, match="not finite"):
        predictor.outcomes(read_split(loaded)[1])
