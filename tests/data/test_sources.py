"""Splits, class subsets, folders of images, damaged files, the cache and the fingerprint."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from jaxvit.data import cache, fingerprint, sources
from jaxvit.data.decoding import decode
from jaxvit.data.sources import open_dataset
from jaxvit.data.splits import resolve_split
from jaxvit.errors import RunFailedError, UsageError


@pytest.mark.parametrize(
    ("expression", "ranges"),
    [
        ("train", [("train", 0, 24000)]),
        ("train[:80%]", [("train", 0, 19200)]),
        ("train[-10000:]", [("train", 14000, 24000)]),
        ("train[:-10000]", [("train", 0, 14000)]),
        ("train[:16079]", [("train", 0, 16079)]),
        ("train[16079:]", [("train", 16079, 24000)]),
        ("train[10%:-10%] + test", [("train", 2400, 21600), ("test", 0, 10)]),
        ("test[:99]", [("test", 0, 10)]),
    ],
)
def test_split_expressions(expression, ranges):
    assert resolve_split(expression, {"train": 24000, "test": 10}, owner="x", key="k") == ranges


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("trian", "did you mean 'train'"),
        ("train[:", "not a split of x"),
        ("train[5]", "not a split of x"),
        ("train[8:2]", "holds no image"),
        ("", "not a split"),
    ],
)
def test_a_wrong_split_says_what_there_is(expression, says):
    with pytest.raises(UsageError, match=says) as error:
        resolve_split(expression, {"train": 9}, owner="x", key="k")
    assert "train (9)" in str(error.value)


def test_percentages_round_as_tfds_does(data_directory):
    dataset = open_dataset("digits", data_directory)
    builder = dataset._store._builder
    for expression in ("train[:33%]", "train[33%:67%]", "train[-5%:]", "test[:1%]", "train[3:-7]"):
        assert dataset.count(expression) == builder.info.splits[expression].num_examples, expression


def test_a_class_subset_is_renumbered_and_keeps_the_order(data_directory):
    whole = open_dataset("digits", data_directory).read("train")
    dataset = open_dataset("digits", data_directory, classes=(7, 2))
    part = dataset.read("train[:50]")
    rows = np.flatnonzero(np.isin(whole.labels, (7, 2)))[:50]
    np.testing.assert_array_equal(part.images, whole.images[rows])
    np.testing.assert_array_equal(part.labels, np.where(whole.labels[rows] == 7, 0, 1))
    assert dataset.class_names == part.class_names == ("7", "2")
    assert dataset.count("train") == np.isin(whole.labels, (7, 2)).sum()
    for classes, says in [((3, 10), "has the classes 0 to 9"), ((1, 1), "named twice")]:
        with pytest.raises(UsageError, match=says):
            open_dataset("digits", data_directory, classes=classes)


def test_parts_of_one_split_share_one_copy(data_directory):
    dataset = open_dataset("digits", data_directory)
    low, high = dataset.read("train[:1000]"), dataset.read("train[1000:]")
    assert low.images.base is not None and isinstance(low.images, np.memmap) and not low.images.flags.writeable
    assert np.shares_memory(dataset.read("train").images, high.images)
    assert low.labels.shape == (1000,) and low.labels.dtype == np.int32
    joined = dataset.read("train[:3]+test[:2]")
    assert len(joined) == 5 and joined.notes["order"] == "original order, by id"


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "pets" / split / name / f"{i}.png")
    return tmp_path / "pets"


def test_a_folder_of_images(folder, tmp_path):
    dataset = open_dataset(f"image_folder:{folder}", tmp_path / "tfds")
    assert dataset.class_names == ("cat", "dog") and dataset.image_shape == (12, 10, 3)
    assert dataset.split_sizes == {"train": 12, "validation": 4}
    source = dataset.read("train[:50%]")
    assert set(source.labels) == {0, 1}  # any part holds all classes
    assert source.notes["order"] == "stored order: the set has no ids"
    files = {
        (folder / "train" / n / f"{i}.png").read_bytes(): k for k, n in enumerate(("cat", "dog")) for i in range(6)
    }
    pixels = {decode(data, 3).tobytes(): label for data, label in files.items()}
    assert all(pixels[image.tobytes()] == label for image, label in zip(source.images, source.labels, strict=True))


def test_a_folder_without_splits_is_training(folder, tmp_path):
    dataset = open_dataset(f"image_folder:{folder / 'train'}", tmp_path)
    assert dataset.split_sizes == {"train": 12}
    with pytest.raises(UsageError, match="there is no such folder"):
        open_dataset("image_folder:/nowhere/at/all", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no images in folders named after their classes"):
        open_dataset(f"image_folder:{tmp_path / 'empty'}", tmp_path)


def test_images_of_many_sizes_need_a_side(folder, tmp_path):
    Image.fromarray(np.zeros((20, 40, 3), np.uint8)).save(folder / "train" / "cat" / "wide.png")
    dataset = open_dataset(f"image_folder:{folder}", tmp_path)
    with pytest.raises(UsageError, match=r"set config\.data\.side"):
        dataset.read("train")
    assert open_dataset(f"image_folder:{folder}", tmp_path, side=8).read("train").images.shape == (13, 8, 8, 3)


def test_decoding_cuts_the_centre_out():
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 10:30] = 255
    import io

    file = io.BytesIO()
    Image.fromarray(wide).save(file, "png")
    assert decode(file.getvalue(), 3, side=10).min() > 200
    assert decode(file.getvalue(), 1).shape == (20, 40, 1)


def test_a_damaged_image_stops_the_run_or_is_left_out_and_counted(folder, tmp_path, capsys):
    broken = folder / "train" / "dog" / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(RunFailedError, match=r"dog/3\.png cannot be decoded .*--config\.data\.on_error=skip") as error:
        open_dataset(f"image_folder:{folder}", tmp_path).read("train")
    assert "\n" not in str(error.value)
    dataset = open_dataset(f"image_folder:{folder}", tmp_path, on_error="skip")
    assert dataset.count("train") == 11
    source = dataset.read("train")
    assert len(source) == 11 and source.notes["skipped"] == 1 and source.notes["skipped_names"] == [str(broken)]
    assert "1 damaged images are left out" in capsys.readouterr().err


def test_a_damaged_tfds_record_is_named(data_directory, monkeypatch):
    dataset = open_dataset("digits", data_directory)
    store = dataset._store
    good = store.records("test")

    class Bad:
        def __len__(self):
            return len(good._source)

        def __getitems__(self, rows):
            return [self[row] for row in rows]

        def __getitem__(self, row):
            example = good._source[row]
            return {**example, "image": b"not an image"} if row == 17 else example

    records = type(good)(Bad(), "digits test")
    monkeypatch.setattr(store, "records", lambda split: records)
    monkeypatch.setattr(store, "content", lambda split: "damaged")
    with pytest.raises(RunFailedError, match=r"record 17 of digits test \(test_00017\) cannot be decoded"):
        dataset.read("test")


def test_the_cache_is_keyed_by_content_and_survives_a_kill(folder, tmp_path, monkeypatch):
    def read():
        return open_dataset(f"image_folder:{folder}", tmp_path / "d").read("validation")

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            read()
    assert list((tmp_path / "d" / ".jaxvit").iterdir()) == []
    first = read()
    with monkeypatch.context() as patch:  # the second time nothing is decoded
        patch.setattr(cache, "decode_records", killed)
        np.testing.assert_array_equal(read().images, first.images)
    Image.fromarray(np.zeros((12, 10, 3), np.uint8)).save(folder / "val" / "cat" / "0.png")
    assert (read().images == 0).all((1, 2, 3)).sum() == 1
    assert len(list((tmp_path / "d" / ".jaxvit").iterdir())) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder.chmod(0o500)
    assert cache.cache_folder(folder) != folder / ".jaxvit"


def test_without_any_place_to_write_it_is_decoded_in_memory(folder, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("read-only")

    expected = open_dataset(f"image_folder:{folder}", tmp_path / "a").read("train")
    monkeypatch.setattr(cache.tempfile, "mkdtemp", refuse)
    source = open_dataset(f"image_folder:{folder}", tmp_path / "b").read("train")
    np.testing.assert_array_equal(source.images, expected.images)


def test_ids_restore_the_original_order(tmp_path, monkeypatch):
    from jaxvit.data.decoding import Damage, Record

    def record(i):
        import io

        file = io.BytesIO()
        Image.fromarray(np.full((2, 2), i, np.uint8)).save(file, "png")
        return Record(file.getvalue(), i, f"train_{i:05d}", str(i))

    stored = [3, 0, 4, 1, 2]

    class Records:
        def __len__(self):
            return 5

        def read(self, rows):
            return [record(stored[row]) for row in rows]

    for read in (
        lambda: cache.decoded_split(Records(), tmp_path / "x", (2, 2, 1), 0, Damage("x")),
        lambda: cache._in_memory(Records(), (2, 2, 1), 0, Damage("x")),
    ):
        decoded = read()
        assert decoded.labels.tolist() == [0, 1, 2, 3, 4] and decoded.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
        assert decoded.order == "id"


def test_the_fingerprint_tells_order_and_content_apart(data_directory, capsys, monkeypatch):
    source = open_dataset("digits", data_directory).read("test")
    found = source.fingerprint
    turned = fingerprint.fingerprint(source.images[::-1], source.labels[::-1], 10)
    assert turned["content"] == found["content"] and turned["sha256"] != found["sha256"]
    swapped = fingerprint.fingerprint(source.images, np.roll(source.labels, 1), 10)
    assert swapped["content"] != found["content"]
    assert json.loads(source.memo.read_text()) == found
    monkeypatch.setitem(fingerprint.ORIGINALS, ("digits", "test"), "0" * 16)
    damaged = open_dataset("digits", data_directory).read("test")
    assert "not the original pixels" in damaged.notes["warning"] and "warning: digits test" in capsys.readouterr().err
    assert "JPEG" in fingerprint.warning("cifar10", "train", {"content": "1" * 16})


def test_a_set_too_large_to_keep_is_decoded_as_it_is_read(folder, tmp_path, monkeypatch):
    whole = open_dataset(f"image_folder:{folder}", tmp_path).read("train[2:9]")
    monkeypatch.setattr(sources, "CACHE_BYTES", 10)
    dataset = open_dataset(f"image_folder:{folder}", tmp_path)
    source = dataset.read("train[2:9]")
    assert isinstance(source, sources.StreamedSource) and len(source) == 7
    rows = np.array([4, 0, 6, 4])
    for got, expected in zip(source.batch(rows), whole.batch(rows), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert source.fingerprint["count"] == 7 == source.fingerprint["sampled"]
