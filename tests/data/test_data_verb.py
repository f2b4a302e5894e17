"""`jaxvit data`: what each action writes and says."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from jaxvit.data import speed
from jaxvit.data.__main__ import main
from jaxvit.data.sources import open_dataset
from jaxvit.errors import UsageError
from jaxvit.figures.images import _describe, _tile


def test_export_writes_images_into_folders_of_their_classes(tmp_path, data_directory, capsys):
    assert main(["export", "digits", str(tmp_path / "images"), "--split=test[5:]", "--n", "6"]) == 0
    source = open_dataset("digits", data_directory).read("test[5:11]")
    files = sorted((tmp_path / "images").rglob("*.png"), key=lambda p: p.name)
    assert [p.parent.name for p in files] == [source.class_names[i] for i in source.labels]
    for file, image in zip(files, source.images, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), image[..., 0])
    assert "6 images of digits" in capsys.readouterr().out


def test_show_draws_the_batch_and_the_patches(tmp_path, data_directory):
    words = ["show", "digits", str(tmp_path), "--n=4", "--config.augment.mixup=0.8", "--config.train.batch_size=8"]
    assert main(words) == 0
    for name in ("batch.png", "patches.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 300 and np.asarray(picture.convert("L")).std() > 10


def test_what_stands_over_an_image():
    names = ("cat", "dog", "emu")
    assert _describe(np.array([0.0, 1.0, 0.0]), names) == "dog"
    assert _describe(np.array([0.3, 0.0, 0.7]), names) == "emu 0.70\ncat 0.30"
    assert _describe(np.array([0.9, 0.05, 0.05]), names) == "cat 0.90"


def test_patches_are_tiled_with_gaps():
    patches = np.arange(4, dtype=np.uint8).reshape(2, 2, 1, 1, 1)
    tiled = _tile(patches)
    assert tiled.shape == (3, 3, 3) and tiled[::2, ::2, 0].tolist() == [[0, 1], [2, 3]]


def test_benchmark_measures_every_stage(monkeypatch, data_directory, capsys):
    monkeypatch.setattr(speed, "SECONDS", 0.01)
    monkeypatch.setattr(speed.seconds_each, "__defaults__", (0.01,))
    with jax.numpy_dtype_promotion("standard"):  # optax mixes types
        assert (
            main(["benchmark", "digits", "--json", "--config.train.batch_size=16", "--config.augment.flip=true"]) == 0
        )
    found = json.loads(capsys.readouterr().out)
    rates = ("decode_images_per_s", "stream_images_per_s", "resident_images_per_s", "step_ms", "input_ms")
    assert all(found[name] > 0 for name in rates) and found["batch"] == 16
    assert found["input_share_of_step"] == pytest.approx(found["input_ms"] / found["step_ms"], rel=0.01)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["prepare"], "name a data set: cifar10"),
        (["prepare", "cifar11"], "did you mean 'cifar10'"),
        (["prepare", "cifar10", "--form=x"], "did you mean '--from'"),
        (["preprae"], "did you mean 'prepare'"),
        (["export", "digits"], "name a data set and a folder"),
        (["export", "digits", "x", "--n=0"], "--n=0: must be 1 or more"),
        (["export", "digits", "x", "--split=tets"], "did you mean 'test'"),
        (["show"], "name a data set or give --config=FILE"),
        (["show", "digits", "--config.augment.polcy=x"], "did you mean 'augment.policy'"),
        (["show", "digits", "--config.augment.fill=edge"], "neither rotation nor zoom"),
    ],
)
def test_mistakes_are_one_line(words, says, data_directory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as error:
        main(words)
    assert says in str(error.value) and "\n" not in str(error.value)
