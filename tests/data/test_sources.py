"""Splits, class subsets, folders of images, damaged files, the cache and the fingerprint."""

import dataclasses
import io
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxvit.data import cache, fingerprint, prepared, stored
from jaxvit.data.decoding import Damage, Record, decode, decode_records
from jaxvit.data.feed import evaluation_stream
from jaxvit.data.gathered import Gathered
from jaxvit.data.parts import StreamedSource
from jaxvit.data.sources import open_dataset
from jaxvit.data.splits import resolve_split
from jaxvit.errors import RunFailedError, UsageError
from jaxvit.files import checked_json, file_hash, write_json


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
        ("test[:10]", [("test", 0, 10)]),
        ("test[14%:37%]", [("test", 1, 4)]),  # to the nearest image
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
        ("train[:10]", "train of x has only 9 images"),
        ("train[-10:]", "train of x has only 9 images"),
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
    file = io.BytesIO()
    Image.fromarray(wide).save(file, "png")
    assert decode(file.getvalue(), 3, (10, 10)).min() > 200
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
    assert "1 damaged image is left out" in capsys.readouterr().err


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
    monkeypatch.setattr(cache, "_place_to_build", refuse)
    source = open_dataset(f"image_folder:{folder}", tmp_path / "b").read("train")
    np.testing.assert_array_equal(source.images, expected.images)


def test_ids_restore_the_original_order(tmp_path, monkeypatch):
    def record(i):
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
    assert checked_json(source.memo.read_bytes()) == found
    monkeypatch.setitem(fingerprint.ORIGINALS, ("digits", "test"), "0" * 16)
    damaged = open_dataset("digits", data_directory).read("test")
    assert "not the original pixels" in damaged.notes["warning"] and "warning: digits test" in capsys.readouterr().err
    assert "JPEG" in fingerprint.warning("cifar10", "train", {"content": "1" * 16})


def test_a_set_too_large_to_keep_is_decoded_as_it_is_read(folder, tmp_path, monkeypatch):
    whole = open_dataset(f"image_folder:{folder}", tmp_path).read("train[2:9]")
    monkeypatch.setattr(stored, "CACHE_BYTES", 10)
    dataset = open_dataset(f"image_folder:{folder}", tmp_path)
    source = dataset.read("train[2:9]")
    assert isinstance(source, StreamedSource) and len(source) == 7
    rows = np.array([4, 0, 6, 4])
    for got, expected in zip(source.batch(rows), whole.batch(rows), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert source.fingerprint["count"] == 7 == source.fingerprint["sampled"]
    assert dataset.read("train[2:9]") is source  # so that its fingerprint is worked out once
    with pytest.raises(UsageError, match=r"k='train\+validation': .* too large to be kept decoded cannot be joined"):
        dataset.count("train+validation", "k")


def test_of_a_set_too_large_to_keep_nothing_is_decoded_beforehand(folder, tmp_path, monkeypatch, capsys):
    broken = folder / "train" / "dog" / "3.png"
    broken.write_bytes(b"no image")
    monkeypatch.setattr(stored, "CACHE_BYTES", 10)
    monkeypatch.setattr(stored, "decoded_split", lambda *_: pytest.fail("decoded whole"))
    with pytest.raises(UsageError, match=r"config\.data\.classes=\(1,\): the train split .* too large"):
        open_dataset(f"image_folder:{folder}", tmp_path, classes=(1,)).count("train")
    dataset = open_dataset(f"image_folder:{folder}", tmp_path, on_error="skip")
    assert dataset.count("train") == 12 and dataset.read("train").fingerprint["sampled"] == 11


def test_a_damaged_image_of_a_stream_counts_nowhere_and_is_told(folder, tmp_path, monkeypatch, capsys):
    broken = folder / "train" / "dog" / "3.png"
    broken.write_bytes(b"no image")
    monkeypatch.setattr(stored, "CACHE_BYTES", 10)
    source = open_dataset(f"image_folder:{folder}", tmp_path, on_error="skip").read("train")
    assert "skipped" not in source.notes
    for _ in range(2):  # epochs; the second finds nothing new
        batches = list(evaluation_stream(source, 5))
        assert [batch["mask"].sum() for batch in batches].count(5) >= 1
        assert sum(batch["mask"].sum() for batch in batches) == 11
        good = np.concatenate([batch["image"][batch["mask"] > 0] for batch in batches])
        assert len({image.tobytes() for image in good}) == 11  # none twice
    assert source.notes["skipped"] == 1 and source.notes["skipped_names"] == [str(broken)]
    assert capsys.readouterr().err.count(f"{broken} is left out (not an image)") == 1
    with pytest.raises(RunFailedError, match=r"3\.png cannot be decoded"):
        list(evaluation_stream(open_dataset(f"image_folder:{folder}", tmp_path).read("train"), 5))
    shutil.rmtree(folder / "train")
    with pytest.raises(RunFailedError, match="is the folder still there"):
        source.batch(np.arange(5))


def test_damage_counts_each_name_once_from_many_threads(capsys):
    damage = Damage("pets", "skip", announced=2)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: damage.found(f"image {i % 50}", ValueError("x")), range(2000)))
    assert damage.count == 50 and len(damage.names) == 20
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "only counted" in said[1]


class Stored:
    """Records from pixels: (pixels, label, id)."""

    def __init__(self, *items):
        self._items = items

    def __len__(self):
        return len(self._items)

    def read(self, rows):
        return [
            Record(png(pixels), label, own, f"record {own}") for pixels, label, own in (self._items[r] for r in rows)
        ]


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def test_an_image_without_a_label_is_refused():
    records = Stored((np.zeros((2, 2), np.uint8), -1, "a"))
    with pytest.raises(UsageError, match=r"record a has no label.*set config\.data\.test") as error:
        list(decode_records(records, range(1), (2, 2, 1), 0, Damage("imagenet2012")))
    assert "\n" not in str(error.value)


def test_numbers_in_ids_are_numbers(tmp_path):
    order = [10, 9, 100, 1, 2]
    records = Stored(*((np.full((2, 2), i, np.uint8), i, str(i)) for i in order))
    for decoded in (
        cache.decoded_split(records, tmp_path / "x", (2, 2, 1), 0, Damage("x")),
        cache._in_memory(records, (2, 2, 1), 0, Damage("x")),
    ):
        assert decoded.labels.tolist() == [1, 2, 9, 10, 100] == decoded.images[:, 0, 0, 0].tolist()
    assert cache._order(["train_9", "train_10", "train_x"]) is None
    assert cache._order(["train_10", "train_9"]).tolist() == [1, 0]


def _replace(name, array):
    def change(folder, meta):
        np.save(folder / name, array)
        meta["sha256"][name] = file_hash(folder / name)

    return change


FOREIGN = {
    "images of another size": _replace("images.npy", np.zeros((2, 3, 3, 1), np.uint8)),
    "images of another type": _replace("images.npy", np.zeros((2, 2, 2, 1), np.float64)),
    "too few labels": _replace("labels.npy", np.zeros(1, np.int32)),
    "negative labels": _replace("labels.npy", np.array([0, -1], np.int32)),
    "labels of another type": _replace("labels.npy", np.array(["a", "b"])),
    "names that are none": lambda folder, meta: meta.update(skipped=2, skipped_names=[1, 2]),
    "a depth that is none": lambda folder, meta: meta.update(depth={"highest": "x"}),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_cache_that_came_with_the_data_is_used_only_if_it_fits(tmp_path, capsys, kind):
    """Its hashes are right: whoever made the folder of the data has made them too."""
    records = Stored(*((np.full((2, 2), i, np.uint8), i, str(i)) for i in range(2)))
    folder = tmp_path / "x"
    cache.decoded_split(records, folder, (2, 2, 1), 0, Damage("x"))
    meta = checked_json((folder / "meta.json").read_bytes())
    FOREIGN[kind](folder, meta)
    write_json(folder / "meta.json", meta, with_checksum=True)
    decoded = cache.decoded_split(records, folder, (2, 2, 1), 0, Damage("x"))
    assert decoded.labels.tolist() == [0, 1] == decoded.images[:, 0, 0, 0].tolist() and decoded.skipped == (0, ())
    assert "cannot be used" in capsys.readouterr().err


def test_permuting_in_place_is_indexing():
    rng = np.random.default_rng(0)
    for count in (1, 2, 7, 50):
        array, order = rng.integers(0, 256, (count + 2, 3)), rng.permutation(count)
        expected = np.concatenate([array[order], array[count:]])
        cache._permute(array, order)
        np.testing.assert_array_equal(array, expected)


def test_the_order_that_is_told_is_the_one_that_was_made(data_directory, monkeypatch):
    dataset = open_dataset("digits", data_directory)
    decoded = dataset._whole.decoded("test")
    monkeypatch.setitem(dataset._whole._decoded, "test", dataclasses.replace(decoded, order="stored"))
    assert dataset.read("test").notes["order"].startswith("stored order")


def test_sixteen_bit_grey_is_scaled_and_other_deep_images_are_refused():
    deep = np.array([[0, 255, 256], [32768, 65535, 4660]], np.uint16)
    np.testing.assert_array_equal(decode(png(deep), 1)[..., 0], deep >> 8)
    assert decode(png(deep), 3).max() == 255 and decode(png(deep), 3)[0, 1, 0] == 0
    for wide in (deep.astype(np.int32), deep.astype(np.float32)):
        file = io.BytesIO()
        Image.fromarray(wide).save(file, "tiff")
        with pytest.raises(ValueError, match=r"32-bit numbers \(mode [IF]\)"):
            decode(file.getvalue(), 1)


def test_a_file_that_vanished_or_cannot_be_read_is_damage_with_its_path(folder, tmp_path):
    stop, skip = (open_dataset(f"image_folder:{folder}", tmp_path, on_error=way) for way in ("stop", "skip"))
    gone = folder / "train" / "cat" / "2.png"
    gone.unlink()
    with pytest.raises(RunFailedError, match=rf"{gone} cannot be decoded \(No such file"):
        stop.read("train")
    assert skip.read("train").notes["skipped_names"] == [str(gone)]


def test_a_file_name_that_is_not_utf8(folder, tmp_path):
    os.rename(folder / "train" / "cat" / "0.png", os.fsencode(folder / "train" / "cat") + b"/caf\xe9.png")
    source = open_dataset(f"image_folder:{folder}", tmp_path).read("train")
    assert len(source) == 12 and source.fingerprint["count"] == 12


def test_with_a_side_no_header_is_opened(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("opened"))
    assert open_dataset(f"image_folder:{folder}", tmp_path, side=8).image_shape == (8, 8, 3)


def test_a_cached_folder_is_not_read_again(folder, tmp_path, monkeypatch):
    first = open_dataset(f"image_folder:{folder}", tmp_path, side=8).read("train")
    monkeypatch.setattr(type(folder), "read_bytes", lambda _: pytest.fail("read"))
    monkeypatch.setattr("jaxvit.data.cache.content_hash", lambda _: pytest.fail("read"))
    again = open_dataset(f"image_folder:{folder}", tmp_path, side=8).read("train")
    np.testing.assert_array_equal(again.images, first.images)


def test_a_damaged_cache_is_named_and_decoded_again(folder, tmp_path, capsys):
    def read():
        return open_dataset(f"image_folder:{folder}", tmp_path, side=8).read("train")

    first = read()
    pixels, labels, place = np.array(first.images[:]), first.labels, first.memo.parent  # not a map of the file
    assert place.is_dir() and first.fingerprint and first.memo.exists()

    def invert():
        with (place / "images.npy").open("r+b") as stream:
            stream.seek(-pixels.nbytes, os.SEEK_END)
            stream.write((255 - pixels).tobytes())

    damages = [
        (invert, "images.npy is not what was written"),
        (lambda: np.save(place / "labels.npy", labels[::-1]), "labels.npy is not what was written"),
        ((place / "labels.npy").unlink, "No such file"),
        (lambda: (place / "meta.json").write_text("{"), "it is not JSON"),
        (lambda: (place / "meta.json").write_text('{"order": "id", "skipped": 0}'), "it has no checksum"),
    ]
    for damage, reason in damages:
        damage()
        again = read()
        np.testing.assert_array_equal(again.images[:], pixels)
        np.testing.assert_array_equal(again.labels, labels)
        said = capsys.readouterr().err
        assert said.startswith(f"warning: the decoded images in {place} cannot be used (") and reason in said
        assert said.endswith("); they are decoded again\n") and again.fingerprint == first.fingerprint
        assert [p.name for p in place.parent.iterdir()] == [place.name]
    read()
    assert not capsys.readouterr().err


def test_class_subsets_and_joined_splits_copy_nothing_until_asked(data_directory):
    dataset = open_dataset("digits", data_directory, classes=(7, 2))
    part, whole = dataset.read("train"), dataset._whole.decoded("train").images
    assert isinstance(part.images, Gathered) and part.images._arrays[0] is whole
    assert dataset.read("train") is part
    joined = open_dataset("digits", data_directory).read("train[:3]+test[:2]")
    both = np.asarray(joined.images)
    assert isinstance(joined.images, Gathered) and both.shape == (5, 8, 8, 1)
    np.testing.assert_array_equal(joined.images[np.array([4, 0, 3])], both[[4, 0, 3]])
    np.testing.assert_array_equal(joined.batch(np.array([3, 1]))[0], both[[3, 1]])
    np.testing.assert_array_equal(both[3:], open_dataset("digits", data_directory).read("test[:2]").images)


def test_a_damaged_copy_is_told_of_parts_too_and_once(data_directory, capsys, monkeypatch):
    monkeypatch.setitem(fingerprint.ORIGINALS, ("digits", "train"), "0" * 16)
    dataset = open_dataset("digits", data_directory)
    for split in ("train[:100]", "train[100:]", "train", "train+test"):
        assert "not the original pixels" in dataset.read(split).notes["warning"]
    said = capsys.readouterr().err
    assert said.count("warning:") == 1 and "  " not in said
    # Resized or not, these are other pixels than the published ones: nothing is known against them.
    assert "warning" not in open_dataset("digits", data_directory, side=4).read("train").notes


def test_the_cache_can_be_read_by_others_and_used_without_its_memo(folder, tmp_path, monkeypatch):
    dataset = open_dataset(f"image_folder:{folder}", tmp_path)
    source = dataset.read("validation")
    mask = os.umask(0)
    os.umask(mask)
    assert source.memo.parent.stat().st_mode & 0o777 == 0o777 & ~mask

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(folder), "write_text", refuse)
    assert source.fingerprint["count"] == 4 and not source.memo.exists()
    monkeypatch.setattr(cache, "_open", refuse)
    again = open_dataset(f"image_folder:{folder}", tmp_path).read("validation")
    np.testing.assert_array_equal(again.images, source.images)


def test_several_configurations_of_a_set_are_listed(tmp_path):
    for name in ("blur/1.0.0", "fog/1.0.0", "fog/1.0.0.incompleteX"):
        (tmp_path / "corrupted" / name).mkdir(parents=True)
        (tmp_path / "corrupted" / name / "dataset_info.json").write_text("{}")
    with pytest.raises(UsageError, match="name one of them: corrupted/blur, corrupted/fog"):
        open_dataset("corrupted", tmp_path)
    for number in ("1.9.0", "1.10.0", "1.10.0.incompleteX"):
        (tmp_path / "plain" / number).mkdir(parents=True)
        (tmp_path / "plain" / number / "dataset_info.json").write_text("{}")
    assert prepared._version_directory(tmp_path, "plain").name == "1.10.0"


# The first labels of the original sets, as published: what every copy in the right order begins with.
FIRST_LABELS = {
    ("cifar10", "train"): [6, 9, 9, 4, 1, 1, 2, 7, 8, 3],
    ("cifar10", "test"): [3, 8, 8, 0, 6, 6, 1, 6, 3, 1],
    ("fashion_mnist", "train"): [9, 0, 0, 3, 0, 2, 7, 2, 5, 5],
    ("fashion_mnist", "test"): [9, 2, 1, 1, 6, 1, 4, 6, 5, 7],
}


@pytest.mark.skipif("JAXVIT_TEST_DATA" not in os.environ, reason="JAXVIT_TEST_DATA names no TFDS directory")
@pytest.mark.parametrize(("name", "split"), FIRST_LABELS)
def test_the_published_sets_begin_as_published(name, split, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "cache_folder", lambda directory: tmp_path)  # the directory stays as it is
    source = open_dataset(name, Path(os.environ["JAXVIT_TEST_DATA"])).read(f"{split}[:10]")
    assert source.labels.tolist() == FIRST_LABELS[name, split] and "warning" not in source.notes
