"""Splits that are cut from what a set stores: of a folder, of a prepared set, with classes, damage and streams."""

import numpy as np
import pytest
from photos import photo, photos
from PIL import Image

from jaxvit.data import content, stored
from jaxvit.data.cut import Cut
from jaxvit.data.sources import open_dataset
from jaxvit.errors import RunFailedError, UsageError

PARTS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """30 cats, 4 dogs, 12 eels, of which four show the same in three formats; one file is broken."""
    path = photos(tmp_path_factory.mktemp("pets"), cat=30, dog=4, eel=8)
    for name in ("a.png", "b.png", "c.bmp", "d.tiff"):
        photo(path / "eel" / name, number=1)
    (path / "cat" / "broken.png").write_bytes(b"no image")
    return path


def images_of(dataset):
    """{part: [bytes of each image]}."""
    return {part: [image.tobytes() for image in dataset.read(part).images[:]] for part in dataset.split_sizes}


def test_a_folder_is_cut_into_parts(folder, tmp_path):
    dataset = open_dataset(f"image_folder:{folder}", tmp_path, on_error="skip", cut=Cut())
    assert dataset.split_sizes == {"train": 36, "validation": 5, "test": 5}
    found = images_of(dataset)
    whole = open_dataset(f"image_folder:{folder}", tmp_path, on_error="skip").read("train")
    assert sorted(image for part in found.values() for image in part) == sorted(
        image.tobytes() for image in whole.images
    )
    assert len(set(found["train"]) | set(found["test"]) | set(found["validation"])) == 43  # 46 with 4 copies of one
    assert not set(found["train"]) & set(found["test"]) and not set(found["validation"]) & set(found["test"])
    label_of = dict(zip((i.tobytes() for i in whole.images), whole.labels, strict=True))
    for part in PARTS:
        assert [label_of[image] for image in found[part]] == dataset.read(part).labels.tolist()
    assert dataset.read("train[:50%]").labels.tolist() == dataset.read("train").labels[:18].tolist()
    assert dataset.shared("train", "test") == 0 and dataset.count("train+test") == 41
    prints = [dataset.read(part).fingerprint["sha256"] for part in PARTS]
    again = open_dataset(f"image_folder:{folder}", tmp_path, on_error="skip", cut=Cut())
    assert [again.read(part).fingerprint["sha256"] for part in PARTS] == prints and len(set(prints)) == 3


def test_the_cut_is_the_same_at_every_side_and_files_are_looked_at_once(folder, tmp_path, monkeypatch):
    def rows_at(side):
        dataset = open_dataset(f"image_folder:{folder}", tmp_path, side=side, on_error="skip", cut=Cut())
        return {part: dataset._rows_of(part)[0][1].tolist() for part in PARTS}

    small, decoded = rows_at(4), []
    original = content.decode
    monkeypatch.setattr(content, "decode", lambda data, *rest: decoded.append(data) or original(data, *rest))
    assert rows_at(8) == small and decoded == [b"no image"]  # nothing is known of what cannot be decoded


def test_classes_can_be_left_out_of_a_cut(folder, tmp_path):
    every = open_dataset(f"image_folder:{folder}", tmp_path, on_error="skip", cut=Cut())
    some = open_dataset(f"image_folder:{folder}", tmp_path, on_error="skip", classes=(2, 0), cut=Cut())
    assert some.class_names == ("eel", "cat")
    for part in PARTS:
        labels = every.read(part).labels
        assert some.read(part).labels.tolist() == [{2: 0, 0: 1}[c] for c in labels if c != 1]


def test_given_parts_stay_and_only_what_lacks_is_cut(tmp_path):
    photos(tmp_path / "p" / "train", a=20, b=20)
    photos(tmp_path / "p" / "test", a=3, b=2)
    dataset = open_dataset(f"image_folder:{tmp_path / 'p'}", tmp_path, cut=Cut())
    assert dataset.split_sizes == {"train": 36, "validation": 4, "test": 5}


def test_folds_test_every_image_once(folder, tmp_path):
    tested = []
    for fold in range(3):
        dataset = open_dataset(f"image_folder:{folder}", tmp_path, on_error="skip", cut=Cut(3, fold))
        found = images_of(dataset)
        assert sum(map(len, found.values())) == 46
        assert not set(found["test"]) & (set(found["train"]) | set(found["validation"]))
        assert set(dataset.read("test").labels) == {0, 1, 2}
        tested += found["test"]
    whole = open_dataset(f"image_folder:{folder}", tmp_path, on_error="skip").read("train")
    assert sorted(tested) == sorted(image.tobytes() for image in whole.images)


def test_folds_take_the_validation_part_too_and_leave_the_test_part(tmp_path):
    photos(tmp_path / "p" / "train", a=10, b=10)
    photos(tmp_path / "p" / "val", a=2, b=2)
    photos(tmp_path / "p" / "test", a=5, b=5)
    dataset = open_dataset(f"image_folder:{tmp_path / 'p'}", tmp_path, cut=Cut(2, 1))
    assert sum(dataset.split_sizes.values()) == 24 and set(dataset.split_sizes) == set(PARTS)


def test_a_stream_is_cut_the_same_way(folder, tmp_path, monkeypatch):
    kept = open_dataset(f"image_folder:{folder}", tmp_path, side=8, on_error="skip", cut=Cut())
    expected = {part: (kept.read(part).images[:], kept.read(part).labels) for part in PARTS}
    monkeypatch.setattr(stored, "CACHE_BYTES", 100)
    streamed = open_dataset(f"image_folder:{folder}", tmp_path, side=8, on_error="skip", cut=Cut())
    for part, (images, labels) in expected.items():
        source = streamed.read(part)
        assert not streamed.is_kept(part) and source.labels.tolist() == labels.tolist()
        np.testing.assert_array_equal(source.batch(np.arange(len(source)))[0], images)


def test_a_prepared_set_is_cut(data_directory):
    dataset = open_dataset("digits", data_directory, cut=Cut())
    sizes = dataset.split_sizes
    assert sizes["test"] == 360 and sizes["train"] + sizes["validation"] == 1437
    counts = np.bincount(dataset.read("validation").labels)
    whole = np.bincount(open_dataset("digits", data_directory).read("train").labels)
    assert counts.tolist() == [round(n / 10) for n in whole]


def test_too_few_images_and_damage_are_said(tmp_path):
    photos(tmp_path / "few", a=1, b=1)
    with pytest.raises(UsageError, match=r"the 2 images of .* are too few to cut test off"):
        open_dataset(f"image_folder:{tmp_path / 'few'}", tmp_path, cut=Cut()).count("train")
    with pytest.raises(UsageError, match=r"config.data.folds=3: .* too few (images )?for"):
        open_dataset(f"image_folder:{photos(tmp_path / 'three', a=2, b=1)}", tmp_path, cut=Cut(3)).count("train")
    photos(tmp_path / "bad", a=5, b=5)
    Image.new("RGB", (8, 8)).save(tmp_path / "bad" / "a" / "x.png")
    (tmp_path / "bad" / "a" / "x.png").write_bytes((tmp_path / "bad" / "a" / "x.png").read_bytes()[:-30])
    with pytest.raises(RunFailedError, match=r"x.png cannot be decoded .*on_error=skip"):
        open_dataset(f"image_folder:{tmp_path / 'bad'}", tmp_path, cut=Cut()).count("train")
