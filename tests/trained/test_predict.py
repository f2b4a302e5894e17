"""Image files in, names and confidences out."""

from __future__ import annotations

import csv
import io
import itertools
import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config, train_config

import jaxvit
from jaxvit.cli import predict as verb
from jaxvit.data.decoding import decode
from jaxvit.errors import UsageError
from jaxvit.trained import predict as predicting
from jaxvit.trained.image_files import find_images, read_images
from jaxvit.trained.inference import Predictor
from jaxvit.trained.rows import writing


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_config(tmp_path_factory.mktemp("predicting") / "run", tiny_config())


@pytest.fixture
def images(tmp_path):
    """Four files of class 1, two of class 7, one empty and one broken."""
    rng = np.random.default_rng(0)
    for letter, count in (("1", 4), ("7", 2)):
        (tmp_path / "images" / letter).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 255, (8, 8), np.uint8)).save(tmp_path / "images" / letter / f"{i}.png")
    (tmp_path / "images" / "7" / "2.png").touch()
    (tmp_path / "images" / "7" / "3.jpg").write_text("no picture")
    (tmp_path / "images" / "7" / "notes.txt").write_text("no image file")
    return tmp_path / "images"


def test_the_model_gets_the_very_pixels_of_the_data_set(run, tmp_path, capsys):
    """Predictions for the exported test images have the accuracy of the run's test."""
    from jaxvit.cli.data import main as data

    data(["export", "digits", str(tmp_path / "images"), "--split=test[:25]", "--n=25"])
    capsys.readouterr()
    assert verb.main([f"--workdir={run}", str(tmp_path / "images"), "--format=jsonl", "--top=99"]) == 0
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    test = json.loads((run / "result.json").read_text())["test"]
    assert np.mean([line["top"][0][0] == line["true"] for line in lines]) == pytest.approx(test["top1"])
    losses = [-np.log(dict(line["top"])[line["true"]]) for line in lines]
    assert np.mean(losses) == pytest.approx(test["loss"], rel=1e-5)
    assert f"{round(25 * test['top1'])} of 25 right" in err
    for line in lines:
        probabilities = [probability for _, probability in line["top"]]
        assert len(probabilities) == 10 and sum(probabilities) == pytest.approx(1)
        assert probabilities == sorted(probabilities, reverse=True)


def test_broken_files_are_named_and_the_others_done(run, images, capsys):
    assert verb.main([f"--workdir={run}", str(images), "--format=jsonl", "--batch_size=3"]) == 1
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    names = [str(Path(line["file"]).relative_to(images)) for line in lines]
    assert names == ["1/0.png", "1/1.png", "1/2.png", "1/3.png", "7/0.png", "7/1.png", "7/2.png", "7/3.jpg"]
    assert [line.get("error") for line in lines] == [None] * 6 + ["it is empty", "not an image"]
    loaded = jaxvit.load(run)
    for line in lines[:6]:
        pixels = np.asarray(Image.open(line["file"]))[None, ..., None]
        expected = np.asarray(loaded(pixels))[0]
        assert line["top"][0][0] == loaded.class_names[expected.argmax()]
        assert line["top"][0][1] == pytest.approx(expected.max(), rel=1e-5)
    assert f"jaxvit: {images / '7' / '2.png'}: it is empty" in err and "2 could not be read" in err


def test_files_patterns_and_lists(run, images, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{images}/1/3.png\n\n{images}/1/0.png\n"))
    words = [f"{images}/7/[01].png", "-", f"{images}/1/2.png", f"{images}/none.png"]
    assert verb.main([f"--workdir={run}", *words, "--format=csv", "--top=2"]) == 1
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [Path(row["file"]).name for row in rows] == ["0.png", "1.png", "3.png", "0.png", "2.png", "none.png"]
    assert [row["true"] for row in rows] == ["7", "7", "1", "1", "1", ""]
    assert rows[-1]["error"] == "there is no such file" and rows[-1]["class1"] == ""
    assert float(rows[0]["probability1"]) >= float(rows[0]["probability2"]) > 0


def test_the_table_reads_as_people_say_it(run, images, capsys):
    verb.main([f"--workdir={run}", f"{images}/1/0.png", "--top=3"])
    line = capsys.readouterr().out.strip()
    name, _, rest = line.partition(": ")
    pairs = [pair.rsplit(" ", 1) for pair in rest.split("  (")[0].split(", ")]
    shares = [float(share.removesuffix("%")) for _, share in pairs]
    assert name.endswith("0.png") and len(shares) == 3 and shares == sorted(shares, reverse=True)
    assert rest.endswith(("(right)", "(wrong, it is 1)"))


def test_the_figure_tells_right_from_wrong(run, images, tmp_path, monkeypatch):
    drawn = []
    from jaxvit.figures import predictions

    plain = predictions.draw_predictions
    monkeypatch.setattr(predictions, "draw_predictions", lambda *a: drawn.append(a) or plain(*a))
    figure = tmp_path / "grid.png"
    verb.main([f"--workdir={run}", str(images), f"--figure={figure}", "--pictures=5"])
    pictures, captions, _ = drawn[0]
    loaded = jaxvit.load(run)
    files = [*sorted((images / "1").iterdir()), *sorted((images / "7").iterdir())][:5]
    assert len(pictures) == 5
    for picture, (text, right), file in zip(pictures, captions, files, strict=True):
        assert (picture[..., 0] == np.asarray(Image.open(file))).all()
        predicted = loaded.class_names[int(np.asarray(loaded(picture[None])).argmax())]
        assert text.startswith(predicted) and right == (predicted == file.parent.name)
        assert text.endswith(f"\n{file.name}") and (right or f"it is {file.parent.name}\n" in text)
    assert Image.open(figure).size[0] > 300


def _bytes(image, **how):
    file = io.BytesIO()
    image.save(file, **how)
    return file.getvalue()


def picture():
    """8×12, red on the left, blue below."""
    pixels = np.zeros((8, 12, 3), np.uint8)
    pixels[:, :4, 0], pixels[6:, :, 2] = 250, 250
    return Image.fromarray(pixels)


@pytest.mark.parametrize("how", ["PNG", "BMP", "WEBP", "JPEG", "TIFF", "palette", "RGBA", "GIF", "16-bit"])
def test_the_same_picture_in_any_format(how):
    image = picture()
    expected = np.asarray(image)
    if how == "palette":
        data = _bytes(image.quantize(4), format="PNG")
    elif how == "RGBA":
        data = _bytes(image.convert("RGBA"), format="PNG")
    elif how == "16-bit":
        deep = np.asarray(image.convert("L")).astype(np.uint16) * 257
        data = _bytes(Image.fromarray(deep), format="PNG")
        np.testing.assert_array_equal(decode(data, 1)[..., 0], np.asarray(image.convert("L")))
        expected = np.asarray(image.convert("L").convert("RGB"))
    else:
        data = _bytes(image, format=how, **({"lossless": True} if how == "WEBP" else {}))
    # JPEG alone keeps colours at half the size, and so blurs their edges.
    difference = abs(decode(data, 3).astype(int) - expected)
    assert np.median(difference) <= 3 if how == "JPEG" else difference.max() == 0


def test_what_is_transparent_is_white():
    image = picture().convert("RGBA")
    image.putalpha(Image.fromarray(np.repeat([[255] * 6 + [0] * 6], 8, axis=0).astype(np.uint8)))
    decoded = decode(_bytes(image, format="PNG"), 3)
    assert (decoded[:, 6:] == 255).all() and (decoded[:, :6] == np.asarray(picture())[:, :6]).all()
    assert decode(_bytes(image.convert("LA"), format="PNG"), 1)[:, 6:].min() == 255


@pytest.mark.parametrize("size", [(8, 8), (4, 12), (16, 6)])
def test_any_size_is_covered_and_cut_to_its_centre(size):
    image = Image.new("RGB", (60, 40), "black")
    image.paste("white", (28, 18, 32, 22))
    pixels = decode(_bytes(image, format="PNG"), 3, size)[..., 0].astype(float)
    assert pixels.shape == size
    rows, columns = np.indices(size)
    middle = (np.array(size) - 1) / 2
    np.testing.assert_allclose(
        [np.average(rows, weights=pixels), np.average(columns, weights=pixels)], middle, atol=0.1
    )


def test_files_are_read_only_so_far_ahead(images):
    taken = itertools.count()
    names = (f"{images}/1/{next(taken) % 4}.png" for _ in range(100_000))
    chunks = read_images(names, (8, 8, 1), chunk=5)
    assert [file.pixels.shape for file in next(chunks)] == [(8, 8, 1)] * 5
    assert next(taken) <= 11
    chunks.close()


def test_a_long_list_is_compiled_once(run, images, monkeypatch):
    compiled = []

    class Counted(Predictor):
        def logits(self, batches):
            yield from super().logits(batches)
            compiled.append((self.batch_size, self._run._cache_size()))

    monkeypatch.setattr(predicting, "Predictor", Counted)
    loaded = jaxvit.load(run)
    one = f"{images}/1/0.png"
    for count, size in ((1, 1), (3, 4), (150, 64)):
        said = [said for _, said in predicting.predict_files(loaded, iter([one] * count))]
        assert len(said) == count and len({s.top for s in said}) == 1
        assert compiled.pop() == (size, 1)


def test_folders_are_walked_in_the_order_of_names(images):
    found = [str(Path(name).relative_to(images)) for name in find_images([str(images)])]
    assert found == sorted(found) and "7/notes.txt" not in found and len(found) == 8


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--workdir={run}"], "name images"),
        (["x.png"], "--workdir is missing"),
        (["--workdir={run}", "x.png", "--top=0"], "--top=0"),
        (["--workdir={run}", "x.png", "--figure=x.gif"], "must end in .png"),
        (["--workdir={run}", "x.png", "--figure=missing/x.png"], "there is no folder missing"),
        (["--workdir={run}", "x.png", "--figure=/proc/x.png"], "/proc cannot be written"),
        (["--workdir={run}", "x.png", "--figure={folder}"], "x.png: this is a folder"),
        (["--workdir={run}", "{empty}"], "no images found"),
        (["--workdir={run}", "x.png", "--fromat=csv"], "did you mean '--format'"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, capsys, arguments, says):
    folder = tmp_path / "x.png"
    folder.mkdir()
    with pytest.raises(UsageError, match=says):
        verb.main([*(a.format(run=run, empty=tmp_path / "x.png", folder=folder) for a in arguments), "--format=csv"])
    assert not capsys.readouterr().out  # not even a heading


def test_what_holds_no_images_is_named_among_others(run, images, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{images}/1\n \n{tmp_path}/empty\n"))
    assert verb.main([f"--workdir={run}", "-", f"{images}/*.webp", "--format=jsonl", "--top=1"]) == 1
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [Path(line["file"]).name for line in lines] == ["0.png", "1.png", "2.png", "3.png", "empty", "*.webp"]
    assert ["error" in line for line in lines] == [False] * 4 + [True] * 2
    assert f"jaxvit: {tmp_path}/empty: there are no images in this folder" in err
    assert f"jaxvit: {images}/*.webp: no file matches this pattern" in err


def test_the_figure_replaces_none_of_the_images(run, images, tmp_path):
    shutil.copytree(images, tmp_path / "photos")
    photo = tmp_path / "photos" / "1" / "1.png"
    before = photo.read_bytes()
    for words in ([str(tmp_path / "photos")], [str(photo.parent / "0.png"), str(photo)]):
        with pytest.raises(UsageError, match=r"1\.png: this is one of the images; name another file"):
            verb.main([f"--workdir={run}", *words, f"--figure={photo.parent / '..' / '1' / '1.png'}"])
    assert photo.read_bytes() == before


def test_the_figure_has_the_name_asked_for(run, images, tmp_path, capsys):
    figure = tmp_path / "Grid.PNG"
    verb.main([f"--workdir={run}", f"{images}/1/0.png", f"--figure={figure}"])
    assert str(figure) in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["Grid.PNG"]


def test_rows_go_into_a_file(run, images, tmp_path, capsys):
    assert verb.main([f"--workdir={run}", str(images), f"--out={tmp_path / 'x.csv'}", "--top=2"]) == 1
    said = capsys.readouterr()
    assert not said.out and said.err.splitlines()[-1].endswith(f"; 2 could not be read; {tmp_path / 'x.csv'}")
    assert verb.main([f"--workdir={run}", str(images), "--format=csv", "--top=2"]) == 1
    assert (tmp_path / "x.csv").read_text() == capsys.readouterr().out


def test_a_loaded_model_says_what_the_verb_says(run, tmp_path):
    """For a path, a Pillow image that is not decoded yet, and an array; rotated, transparent, 16-bit, large or grey."""
    loaded, rng = jaxvit.load(run), np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (30, 20, 3), np.uint8))
    exif = Image.Exif()
    exif[274] = 6
    (tmp_path / "3").mkdir()
    files = {name: tmp_path / "3" / name for name in ("turned.jpg", "clear.png", "deep.png", "grey.png", "tall.png")}
    colour.save(files["turned.jpg"], exif=exif, quality=95)
    clear = colour.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(colour.size))
    clear.save(files["clear.png"])
    Image.fromarray(rng.integers(0, 65536, (30, 20)).astype(np.uint16)).save(files["deep.png"])
    colour.convert("L").save(files["grey.png"])
    Image.fromarray(rng.integers(0, 256, (300, 2, 3), np.uint8)).save(files["tall.png"])
    every = jaxvit.predict(loaded, [*files.values()], top=10)
    for said, (name, file) in zip(every, files.items(), strict=True):
        wanted = [probability for _, probability in said.top]
        with Image.open(file) as image:
            found = [loaded.predict(str(file), top=10), loaded.predict(image, top=10)]
            assert image.size in ((20, 30), (2, 300))  # the caller's image stays as it was
            found += [loaded.predict(np.asarray(image), top=10)] if name != "turned.jpg" else []
        for one in found:
            assert one.top[0][0] == said.top[0][0], name
            np.testing.assert_allclose([p for _, p in one.top], wanted, rtol=1e-5)
        assert found[0].truth == said.truth == "3"
    several = loaded.predict([files["grey.png"], np.zeros((5, 9), np.uint8), tmp_path / "none.png"])
    assert [len(one.top) for one in several] == [5, 5, 0] and several[2].error == "there is no such file"


def test_what_is_no_image_is_one_line(run, tmp_path):
    loaded = jaxvit.load(run)
    for wrong, says in (
        (str(tmp_path / "none.png"), "none.png: there is no such file"),
        (np.zeros((8, 8, 2), np.uint8), r"uint8 \[8, 8, 2\]: must be a uint8 array"),
        (np.zeros((8, 8)), r"float64 \[8, 8\]"),
        (np.zeros((0, 8), np.uint8), r"\[0, 8\]"),
    ):
        with pytest.raises(UsageError, match=says):
            loaded.predict(wrong)
    assert loaded.predict([]) == []


def test_memory_does_not_grow_with_the_number_of_files(run, images, tmp_path):
    count, traced = 1600, {}
    with writing(tmp_path / "x.csv", 2) as write:
        names = (f"{images}/1/{i % 4}.png" for i in range(count))
        for i, (_, said) in enumerate(predicting.predict_files(jaxvit.load(run), names, top=2, batch=16)):
            write(said)
            if i == 0:
                tracemalloc.start()
            elif i in (count // 4, count - 1):
                traced[i] = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    first, last = traced.values()
    assert last - first < 100_000  # 1,200 rows kept in memory would take about 1 MB
    assert (tmp_path / "x.csv").read_text().count("\n") == count + 1
