"""Somebody's own images, from training to figures: odd names, odd formats, and nothing of their EXIF data."""

import io
import json
import os

import jax
import numpy as np
import pytest
from PIL import ExifTags, Image, TiffImagePlugin
from tiny import tiny_config

import jaxvit
from jaxvit.cli.data import main as data_verb
from jaxvit.cli.embed import main as embed
from jaxvit.cli.evaluate import main as evaluate
from jaxvit.cli.predict import main as predict
from jaxvit.config.identity import config_hash
from jaxvit.errors import UsageError
from jaxvit.files import read_json

SECRET = "Somebody Secret"
CLASSES = ("caf\\xe9", "dog, =1+1", "猫")


def photo(rng, kind):
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = SECRET
    exif[ExifTags.Base.Orientation] = 6
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSAreaInformation] = SECRET
    stream = io.BytesIO()
    how = {"exif": exif}
    if kind == "TIFF":
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[ExifTags.Base.Orientation], tags[ExifTags.Base.Artist] = 6, SECRET
        how = {"tiffinfo": tags}
    Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(stream, kind, **how)
    assert SECRET.encode() in stream.getvalue()
    return stream.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Classes whose names are Latin-1, a formula and Chinese, in four formats under wrong endings."""
    folder = tmp_path_factory.mktemp("own") / "photos"
    rng = np.random.default_rng(0)
    for name in (b"caf\xe9", b"dog, =1+1", "猫".encode()):
        place = os.path.join(os.fsencode(folder), name)
        os.makedirs(place)
        for i, kind in enumerate(("JPEG", "TIFF", "PNG", "AVIF")):
            with open(os.path.join(place, b"x%d.jpg" % i), "wb") as file:
                file.write(photo(rng, kind))
    (folder / "猫" / "._x0.jpg").write_bytes(b"of a Mac")
    (folder / "猫" / "Thumbs.db").write_bytes(b"of Windows")
    (folder / "猫" / "album.png").mkdir()
    return folder


@pytest.fixture(scope="module")
def run(photos):
    """Trained by a relative path, from the folder beside."""
    workdir, here = photos.parent / "run", os.getcwd()
    os.chdir(photos.parent)
    try:
        config = tiny_config(train__duration="1 steps", data__validation="", data__side=8, data__train="train")
        config.data.name, config.data.test, config.augment.mean = "image_folder:photos", "", (0.5,)
        with jax.numpy_dtype_promotion("standard"):
            jaxvit.train(config, workdir)
        assert config.data.name == "image_folder:photos"  # the caller's own config
    finally:
        os.chdir(here)
    return workdir


def holds_secrets(folder):
    return [file for file in folder.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]


def test_a_relative_path_is_found_from_elsewhere(run, photos, monkeypatch, capsys):
    stored = read_json(run / "config.json")["config"]["data"]["name"]
    assert stored == f"image_folder:{photos}"
    config = tiny_config(train__duration="1 steps", data__validation="", data__side=8, data__train="train")
    config.data.test, config.augment.mean = "", (0.5,)
    hashes = set()
    for place, name in ((photos.parent, "photos"), (photos, "../photos"), (run, str(photos))):
        monkeypatch.chdir(place)
        config.data.name = f"image_folder:{name}"
        hashes.add(config_hash(config))
        assert jaxvit.train(config, run)["steps"] == 1  # the same run, finished
    assert len(hashes) == 1 and "finished" in capsys.readouterr().out


def test_classes_of_any_name_are_evaluated(run, capfd):
    assert evaluate([f"--workdir={run}", "--split=train"]) == 0
    said = capfd.readouterr()
    assert "12 images" in said.out and "warning" not in said.err.lower()
    found = json.loads((run / "evaluation" / "train.json").read_text(encoding="utf-8"))
    assert tuple(found["class_names"]) == CLASSES and found["count"] == 12
    for file in ("train.csv", "train_confusion.csv", "train_images.csv"):
        assert (run / "evaluation" / file).read_text(encoding="utf-8")
    assert "caf\\xe9" in (run / "evaluation" / "train.csv").read_text(encoding="utf-8")


def test_predict_knows_them_and_says_what_it_passes_over(run, photos, tmp_path, capfd):
    assert predict([f"--workdir={run}", str(photos), "--format=jsonl", f"--figure={tmp_path / 'said.svg'}"]) == 0
    said = capfd.readouterr()
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert {line["true"] for line in lines} == set(CLASSES) and len(lines) == 12
    passed, counts = said.err.splitlines()
    assert passed.startswith("skipped: ") and "album.png" in passed
    for each in ("hidden files or folders: 1 (", "files that are not images: 1 (", "named like an image: 1 ("):
        assert each in passed
    assert counts.startswith("12 images")
    words = ["--batch_size=16", f"--out={tmp_path / 'x.npz'}", f"--figure={tmp_path / 'map.svg'}", "--map=pca"]
    assert embed([f"--workdir={run}", str(photos), *words]) == 0
    assert "Glyph" not in capfd.readouterr().err
    assert len([*tmp_path.iterdir()]) == 3 and not holds_secrets(tmp_path)


def test_nothing_of_the_exif_data_gets_out(run, photos, tmp_path, capfd):
    named = [f"image_folder:{photos}", "--config.data.side=8"]
    assert data_verb(["export", *named, "--split=train", str(tmp_path / "exported")]) == 0
    assert len(list((tmp_path / "exported").rglob("*.png"))) == 12
    quick = ["--config.augment.mean=(0.5,)", "--config.data.test=", "--config.data.validation="]
    with jax.numpy_dtype_promotion("standard"):
        assert data_verb(["show", *named, str(tmp_path / "shown"), "--n=4", *quick, "--config.model.patch=4"]) == 0
    assert "Glyph" not in capfd.readouterr().err and (tmp_path / "shown" / "batch.png").exists()
    assert len(list(tmp_path.rglob("*"))) > 16 and not holds_secrets(tmp_path) and not holds_secrets(run)


def test_one_class_is_refused(photos, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat").symlink_to(photos / "猫")
    config = tiny_config(data__name=f"image_folder:{tmp_path / 'photos'}", data__side=8, data__train="train")
    config.data.validation = config.data.test = ""
    with pytest.raises(UsageError, match=r"all of its images are of one class \(cat\).*two classes or more"):
        jaxvit.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
