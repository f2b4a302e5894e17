"""`evaluate` on what people have: some of the classes, more of them, only test/, other colours."""

import csv
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import edit_json, tiny_config

import jaxvit
from jaxvit.cli.evaluate import main
from jaxvit.errors import UsageError
from jaxvit.pages import gallery
from jaxvit.trained.adapted import convert


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run on digits, which are grey, and one on RGB files of the classes a, b and c."""
    folder, rng = tmp_path_factory.mktemp("adapted"), np.random.default_rng(0)
    for name in "abc":
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (10, 8, 3), np.uint8)).save(folder / "photos" / name / f"{i}.png")
    (folder / "photos" / "b" / "bad.png").write_text("no image")
    with jax.numpy_dtype_promotion("standard"):
        jaxvit.train(tiny_config(train__duration="1 steps", data__validation=""), folder / "grey")
        config = tiny_config(train__duration="1 steps", data__validation="", data__train="train", data__side=8)
        config.data.name, config.data.test, config.augment.mean = f"image_folder:{folder / 'photos'}", "", (0.5,)
        config.data.on_error = "skip"
        jaxvit.train(config, folder / "rgb")
    return folder


def save(folder, pixels, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)


def evaluate(run, capsys, *words):
    assert main([f"--workdir={run}", "--json", *words]) == 0
    said = capsys.readouterr()
    return json.loads(said.out.splitlines()[-1]), said.err


def test_colours_are_converted_as_by_pillow():
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), np.uint8)
    weights = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    grey = convert(images, 1)
    assert grey.shape == (3, 40, 50, 1) and abs(grey[..., 0] - images @ weights).max() < 0.51
    np.testing.assert_array_equal(convert(grey, 3), np.concatenate([grey] * 3, axis=-1))
    assert convert(images, 3) is images and convert(images[:0], 1).shape == (0, 40, 50, 1)


def test_some_classes_of_a_folder_that_has_only_test(runs, tmp_path, capsys):
    """Numbered as in the model, not as in the folder; an empty class that the model does not know is ignored."""
    source = runs / "photos"
    for name in "bc":
        for i in range(4):
            save(tmp_path / "new", np.asarray(Image.open(source / name / f"{i}.png")), f"test/{name}/{i}.png")
    (tmp_path / "new" / "test" / "zebra").mkdir()
    found, said = evaluate(runs / "rgb", capsys, f"--data={tmp_path / 'new'}")
    assert found["class_names"] == ["a", "b", "c"] and [row["count"] for row in found["per_class"]] == [0, 4, 4]
    assert "has images of 2 of the model's 3 classes" in said and "class folders without an image" in said
    loaded = jaxvit.load(runs / "rgb")
    right = [loaded.predict(str(tmp_path / "new" / "test" / n / f"{i}.png")).right for n in "bc" for i in range(4)]
    assert found["top1"] == pytest.approx(np.mean(right)) and found["split"] == "test"
    save(tmp_path / "more", np.zeros((8, 8, 3), np.uint8), "test/b/0.png", "train/zebra/0.png", "train/b/1.png")
    found, said = evaluate(runs / "rgb", capsys, f"--data={tmp_path / 'more'}")
    assert found["count"] == 1 and "classes without images that the model does not know: zebra" in said


def test_a_run_whose_folder_has_only_test_left(runs, tmp_path, capsys):
    """The run cut its other parts off train; the given part test is evaluated without train."""
    save(tmp_path / "left", np.zeros((8, 8, 3), np.uint8), "test/a/0.png", "test/c/1.png")
    shutil.copytree(runs / "rgb", tmp_path / "run")
    edit_json(tmp_path / "run" / "config.json", str(runs / "photos"), str(tmp_path / "left"))
    edit_json(tmp_path / "run" / "config.json", '"test": ""', '"test": "test", "cut": "content"')
    found, said = evaluate(tmp_path / "run", capsys)
    assert [row["count"] for row in found["per_class"]] == [1, 0, 1] and "2 of the model's 3 classes" in said


def test_images_of_other_classes_are_refused(runs, tmp_path):
    save(tmp_path, np.zeros((8, 8, 3), np.uint8), "b/0.png", "zebra/0.png")
    with pytest.raises(UsageError, match=r"classes that the model does not know \(zebra\); take them out"):
        main([f"--workdir={runs / 'rgb'}", f"--data={tmp_path}"])


def test_rgb_images_for_a_grey_model(runs, tmp_path, capsys):
    rng = np.random.default_rng(1)
    for name in "370":
        save(tmp_path, rng.integers(0, 256, (8, 8, 3), np.uint8), f"{name}/x.png")
    found, said = evaluate(runs / "grey", capsys, f"--data={tmp_path}")
    assert "RGB images are converted to grey" in said and "3 of the model's 10 classes" in said
    loaded = jaxvit.load(runs / "grey")
    said = [loaded.predict(str(tmp_path / name / "x.png"), top=10) for name in "037"]
    assert found["loss"] == pytest.approx(np.mean([-np.log(dict(s.top)[s.truth]) for s in said]), rel=1e-4)


def test_grey_images_for_an_rgb_model(runs, tmp_path, capsys):
    from jaxvit.cli.predict import main as predict

    save(tmp_path, np.zeros((8, 8), np.uint8), "b/0.png")
    found, _ = evaluate(runs / "rgb", capsys, f"--data={tmp_path}")  # files are decoded as RGB, as in training
    assert found["count"] == 1
    assert predict([f"--workdir={runs / 'rgb'}", str(tmp_path)]) == 0
    assert "note: 1 image in grey was converted to RGB for this model" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"its classes .* are not those of the model"):
        main([f"--workdir={runs / 'rgb'}", "--data=digits"])


def test_a_prepared_set_of_another_size_is_resized_as_by_predict(tmp_path, capsys):
    config = tiny_config(train__duration="1 steps", data__side=12)
    with jax.numpy_dtype_promotion("standard"):
        jaxvit.train(config, tmp_path)
    own, said = evaluate(tmp_path, capsys, "--split=test")
    assert "resized" not in said
    other, said = evaluate(
        tmp_path, capsys, "--data=digits", f"--split={config.data.test}", f"--out={tmp_path / 'out'}"
    )
    assert "note: digits: images of 8×8 are resized to 12×12, as by `predict`" in said
    assert (other["loss"], other["count"]) == (own["loss"], own["count"])


def test_rows_and_mistakes_name_their_files(runs, capsys, tmp_path, monkeypatch):
    """The damaged file is left out, and the names of those after it do not shift."""
    evaluate(runs / "rgb", capsys, "--split=train", f"--out={tmp_path}")
    rows = list(csv.DictReader((tmp_path / "train_images.csv").open()))
    assert sorted(row["file"] for row in rows) == [f"{name}/{i}.png" for name in "abc" for i in range(4)]
    loaded = jaxvit.load(runs / "rgb")
    for row in rows:
        said = loaded.predict(str(runs / "photos" / row["file"]))
        assert (row["true"], row["predicted"]) == (said.truth, said.top[0][0])
        assert float(row["confidence"]) == pytest.approx(said.top[0][1], rel=1e-4)
    drawn = []
    monkeypatch.setattr(gallery, "draw_predictions", lambda images, captions, *_: drawn.append(captions) or [])
    run = gallery._RunFigures(loaded, tmp_path, "train", 3, "", 0, 0)
    gallery._mistakes(run)
    wrong = {row["file"].split("/")[1] for row in rows if row["true"] != row["predicted"]}
    assert wrong and {text.splitlines()[-1] for text, _ in drawn[0]} == wrong
