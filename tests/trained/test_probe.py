"""A probe of frozen features, against loops and known answers."""

import json
import shutil

import jax
import numpy as np
import pytest
from photos import photos
from tiny import train_family

import jaxvit
from jaxvit.cli import probe as verb
from jaxvit.errors import UsageError
from jaxvit.trained.intervals import wilson
from jaxvit.trained.probe import Features, probe

RNG = np.random.default_rng(0)
LABELS = np.arange(60) % 3
X = (RNG.standard_normal((60, 5)) + 1.5 * np.eye(3, 5)[LABELS]).astype(np.float32)
TRAIN, TEST = Features(X[:36], LABELS[:36]), Features(X[36:], LABELS[36:])


def test_nearest_neighbours_by_loops():
    right = 0
    for x, label in zip(TEST.x, TEST.labels, strict=True):
        cosines = [float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)) for y in TRAIN.x]
        votes = [0.0] * 3
        for i in sorted(range(36), key=lambda i: -cosines[i])[:10]:
            votes[TRAIN.labels[i]] += 1 + cosines[i]
        right += int(np.argmax(votes) == label)
    found = probe("nearest", TRAIN, TEST)
    assert found.top1 == right / 24 and (found.low, found.high) == wilson(found.top1, 24)
    assert (found.count, found.train_count, found.classes, found.features) == (24, 36, 3, 5)


def test_the_regularisation_is_chosen_on_images_that_are_not_tested():
    by_folds, by_validation = probe("linear", TRAIN, TEST), probe("linear", TRAIN, TEST, Features(X[:6], LABELS[:6]))
    assert by_folds.chosen_on == "cross-validation" and by_validation.chosen_on == "validation"
    assert by_folds.top1 > 0.6
    labels = RNG.permutation(TRAIN.labels)  # nothing to learn: the strongest regularisation does best
    assert probe("linear", Features(TRAIN.x, labels), TEST).strength <= 1
    one = Features(TRAIN.x[:3], TRAIN.labels[:3])
    assert probe("linear", one, TEST).chosen_on == "fixed"
    with pytest.raises(UsageError, match=r"two classes or more"):
        probe("linear", Features(TRAIN.x[:1], TRAIN.labels[:1]), TEST)


@pytest.mark.slow
def test_the_verb(tmp_path, capsys):
    run = train_family(tmp_path / "run", "vit")
    with jax.numpy_dtype_promotion("standard"):
        before = jaxvit.load(run).variables
        out = tmp_path / "found.json"
        assert verb.main([str(run), "--data=digits", "--kind=nearest", "--shots=3", "--json", f"--out={out}"]) == 0
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert found["train_count"] == 30 and found["classes"] == 10 and found["features"] == 8
        assert json.loads(out.read_text())["top1"] == found["top1"]
        assert verb.main([str(run), "--data=digits", "--shots=5"]) == 0
        said = capsys.readouterr().out.splitlines()[-1]
        assert said.startswith("linear probe: accuracy ") and "chosen on validation" in said
        jax.tree.map(np.testing.assert_array_equal, before, jaxvit.load(run).variables)
        photos(tmp_path / "pets" / "train", cat=3, dog=3)
        for part in ("val", "test"):
            shutil.copytree(tmp_path / "pets" / "train", tmp_path / "pets" / part)
        assert verb.main([str(run), f"--data={tmp_path / 'pets'}", "--kind=nearest"]) == 0
        assert "6 of the 6 test images are in train too" in capsys.readouterr().err
