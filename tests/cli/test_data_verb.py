"""`jaxvit data`: output of each action."""

import json

import jax
import numpy as np
import pytest
from photos import photos
from PIL import Image

from jaxvit.cli.data import main
from jaxvit.config.keys import base_config
from jaxvit.config.overrides import parse_overrides
from jaxvit.config.plan import dataset_of, resolve
from jaxvit.data.batches import TrainBatches
from jaxvit.data.image_folder import save_images
from jaxvit.data.sources import open_dataset
from jaxvit.errors import UsageError
from jaxvit.figures.images import _describe, _tile
from jaxvit.pages import training
from jaxvit.run.assembly import assemble
from jaxvit.speed import input as speed


def test_export_writes_images_into_folders_of_their_classes(tmp_path, data_directory, capsys):
    assert main(["export", "digits", str(tmp_path / "images"), "--split=test[5:]", "--n", "6"]) == 0
    source = open_dataset("digits", data_directory).read("test[5:11]")
    files = sorted((tmp_path / "images").rglob("*.png"), key=lambda p: p.name)
    assert [p.parent.name for p in files] == [source.class_names[i] for i in source.labels]
    for file, image in zip(files, source.images, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), image[..., 0])
    assert "6 images of 355 (use --n for more) of digits" in capsys.readouterr().out


def test_export_replaces_no_other_image(tmp_path, data_directory):
    words = ["export", "digits", str(tmp_path / "images"), "--n=3"]
    assert main(words) == main(words) == 0
    own = sorted((tmp_path / "images").rglob("*.png"))[-1]
    own.write_bytes(b"my own")
    with pytest.raises(UsageError, match=rf"{own.name} already exists, and is another image; name another folder"):
        main([*words[:-1], "--n=5"])
    assert own.read_bytes() == b"my own" and len(list((tmp_path / "images").rglob("*.png"))) == 3


def test_export_stays_in_its_folder_whatever_a_class_is_called(tmp_path):
    pixels = np.zeros((2, 2, 1), np.uint8)
    save_images(tmp_path / "out" / "images", [(pixels, name, "x") for name in (".", "..", "a/b")])
    assert sorted(p.parent.name for p in (tmp_path / "out" / "images").rglob("x.png")) == ["_", "__", "a_b"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["images"]


def test_show_draws_the_batch_and_the_patches(tmp_path, data_directory):
    words = ["show", "digits", str(tmp_path), "--n=4", "--config.augment.mixup=0.8", "--config.train.batch_size=8"]
    assert main(words) == 0
    for name in ("batch.png", "patches.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 300 and np.asarray(picture.convert("L")).std() > 10


def test_show_takes_a_folder_of_photos_as_train_does(tmp_path, monkeypatch, capsys):
    photos(tmp_path / "pets", cat=12, dog=12)
    monkeypatch.chdir(tmp_path)
    given = ["--config.train.batch_size=8", f"--data_dir={tmp_path}/tfds", "--config.model.depth=1"]
    assert main(["show", "pets", "pictures", *given]) == 0
    said = capsys.readouterr().out
    assert f"24 images of 2 classes in image_folder:{tmp_path}/pets" in said and "classes: cat 12, dog 12" in said
    assert {"batch.png", "patches.png"} <= {file.name for file in (tmp_path / "pictures").iterdir()}
    assert main(["export", "pets", "out", "--split=train", "--n=3", "--config.data.side=8"]) == 0
    assert len([*(tmp_path / "out").rglob("*.png")]) == 3
    with pytest.raises(UsageError, match=r"^./gone: .*/gone does not exist"):
        main(["show", "./gone", "pictures"])


def test_show_draws_what_training_sees_within_0_and_1(tmp_path, data_directory, monkeypatch):
    """Neither noise far outside [0, 1] nor pixels left in 0..255 turn the image black."""
    drawn = []
    monkeypatch.setattr(training, "draw_batch", lambda pictures, *_: drawn.append(pictures))
    monkeypatch.setattr(training, "draw_patches", lambda *_: None)
    words = ["--n=16", "--config.train.batch_size=16", "--config.augment.pad_crop=2", "--config.augment.erase=0.5"]
    for more in ([], ["--config.augment.where=host"], ["--config.augment.std=(0.00392156862745098,)"]):
        assert main(["show", "digits", str(tmp_path), *words, *more]) == 0
        overrides = ["--config.data.name=digits", *words[1:], *more]
        config, _, _ = parse_overrides(base_config(), overrides)
        plan = resolve(config)
        assembly = assemble(plan)
        batch = TrainBatches(dataset_of(config).read("train"), 16, plan.seed)[0]
        host = assembly.host_transform()
        prepared = assembly.prepare(np.int32(0), host(0, batch) if host else batch)["image"]
        expected = np.clip(prepared * np.float32(plan.augment.std[0]) + np.float32(plan.augment.mean[0]), 0, 1)
        np.testing.assert_allclose(drawn[-1], expected, atol=1e-5)
        assert drawn[-1].max() == 1 and drawn[-1].mean() > 0.1


def test_export_of_images_that_vary_in_size(tmp_path):
    for i, side in enumerate((9, 12)):
        (tmp_path / "pets" / "train" / "cat").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (side, 10)).save(tmp_path / "pets" / "train" / "cat" / f"{i}.png")
    name, out = f"image_folder:{tmp_path / 'pets'}", tmp_path / "out"
    words = ["export", name, str(out), "--split=train", f"--data_dir={tmp_path}"]
    with pytest.raises(UsageError, match=r"set config\.data\.side"):
        main(words)
    for among in ("pets/train", "pets/train/cat"):
        with pytest.raises(UsageError, match="the images are read from there, and would be there twice"):
            main(["export", name, str(tmp_path / among), *words[3:], "--config.data.side=8"])
    assert main([*words, "--config.data.side=8"]) == 0
    assert [Image.open(file).size for file in out.rglob("*.png")] == [(8, 8)] * 2
    with pytest.raises(UsageError, match=r"--config\.augment\.flip: this key has no effect on an export"):
        main([*words, "--config.augment.flip=true"])


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, data_directory):
    (tmp_path / "file").write_text("")
    for words in (["show", "digits", "--config.train.batch_size=4"], ["export", "digits"]):
        with pytest.raises(UsageError, match=r"file.* cannot be written .Not a directory."):
            main([*words, str(tmp_path / "file" / "x")])


def test_force_prepares_digits_anew(tmp_path):
    assert main(["prepare", "digits", f"--data_dir={tmp_path}"]) == 0
    (tmp_path / "digits" / "left").write_text("")
    assert main(["prepare", "digits", f"--data_dir={tmp_path}", "--force"]) == 0
    assert not (tmp_path / "digits" / "left").exists() and open_dataset("digits", tmp_path).count("test") == 360


def test_benchmark_of_fewer_images_than_a_batch(data_directory, monkeypatch):
    monkeypatch.setattr(speed.seconds_each, "__defaults__", (0.01,))
    dataset = open_dataset("digits", data_directory)
    source = dataset.read("train[:5]")
    assert speed.stream_speed(source, 16, batches=2) > 0
    transform = jax.jit(lambda key, i, batch: (batch["image"].astype("float32"), batch["mask"]))
    assert speed.resident_seconds(source, 16, transform, 2) > 0


def test_decoding_is_measured_on_the_split_of_the_config(data_directory, monkeypatch):
    seen = []
    monkeypatch.setattr(speed, "decode_records", lambda records, rows, *_: seen.append((len(records), rows)) or [])
    speed.decoding_speed(open_dataset("digits", data_directory), "test[10:30]")
    assert seen == [(360, range(10, 30))]


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
        (["show"], "a table of labels, or give --config=NAME"),
        (["show", "digits", "--config.augment.polcy=x"], "did you mean 'augment.policy'"),
        (["show", "digits", "--config.augment.fill=edge"], "neither rotation nor zoom"),
    ],
)
def test_mistakes_are_one_line(words, says, data_directory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as error:
        main(words)
    assert says in str(error.value) and "\n" not in str(error.value)
