"""The embedded data set: fixed, stratified, readable by any TFDS user."""

import errno
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxvit.data.digits import Digits, split_indices
from jaxvit.data.sources import open_dataset
from jaxvit.errors import UsageError


@pytest.fixture(scope="module")
def digits(data_directory):
    return open_dataset("digits", data_directory)


def test_sizes_names_and_shape(digits):
    assert (digits.count("train"), digits.count("test")) == (1437, 360)
    assert digits.class_names == tuple("0123456789")
    assert digits.image_shape == (8, 8, 1)


def test_the_images_are_scikit_learns_all_of_them_once(digits):
    bunch = load_digits()
    train, test = digits.read("train"), digits.read("test")
    images = np.concatenate([train.images, test.images])[..., 0]
    labels = np.concatenate([train.labels, test.labels])
    assert images.dtype == np.uint8 and labels.dtype == np.int32 and labels.shape == (1797,)
    original = np.round(images / 255 * 16)  # the storing can be undone

    def rows(x, y):
        return sorted(map(tuple, np.column_stack([x.reshape(len(x), -1), y]).astype(int)))

    assert rows(original, labels) == rows(bunch.images, bunch.target)


def test_the_splits_are_fixed(digits):
    assert digits.read("train").labels[:12].tolist() == [5, 2, 4, 6, 9, 7, 8, 3, 0, 1, 5, 2]
    assert digits.read("test").labels[:12].tolist() == [3, 1, 5, 4, 6, 9, 7, 0, 2, 8, 3, 1]
    assert digits.read("test").fingerprint["sha256"] == "de388490838caa6c"
    assert digits.read("train").fingerprint["sha256"] == "7ee231e272e3e73f"


@pytest.mark.parametrize("split", ["train", "test", "train[:1257]", "train[1257:]"])
def test_every_split_is_stratified(digits, split):
    source = digits.read(split)
    shares = np.bincount(load_digits().target) / 1797
    assert np.abs(np.bincount(source.labels) - shares * len(source)).max() <= 1.5


def test_split_indices_do_not_overlap_and_cover():
    labels = np.repeat(np.arange(5), [7, 20, 3, 11, 9])
    parts = split_indices(labels, 10)
    assert len(parts["test"]) == 10
    assert sorted(np.concatenate(list(parts.values()))) == list(range(50))


def test_any_tfds_user_can_read_it(digits, data_directory):
    code = (
        "import sys, tensorflow_datasets as tfds\n"
        f"source = tfds.data_source('digits', split='test', data_dir={str(data_directory)!r}, download=False)\n"
        "print(len(source), source[0]['image'].shape, source[0]['id'], 'jaxvit' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split("\n")[-2] == "360 (8, 8, 1) b'test_00000' False"


def test_unknown_split_and_unprepared_set(digits, data_directory):
    with pytest.raises(UsageError, match=r"it has .*train \(1437\)"):
        digits.count("validation")
    with pytest.raises(UsageError, match=r"'mnist' is not prepared in .*prepared there: digits;"):
        open_dataset("mnist", data_directory)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write the digits data set into .*set --config\.data\.dir"):
        open_dataset("digits", Path(tmp_path / "file"))


def test_another_process_that_prepares_it_too_may_be_faster(tmp_path, monkeypatch):
    prepare = Digits.download_and_prepare

    def beaten(self):
        prepare(Digits(data_dir=tmp_path))
        raise FileExistsError("Destination already exists")

    monkeypatch.setattr(Digits, "download_and_prepare", beaten)
    assert open_dataset("digits", tmp_path).count("test") == 360


def test_a_disk_that_is_full_while_it_is_prepared(tmp_path, monkeypatch):
    def full(self):
        raise RuntimeError('Failed to finalize writing of split "train": write() failed: No space left on device; x')

    monkeypatch.setattr(Digits, "download_and_prepare", full)
    with pytest.raises(OSError) as error:
        open_dataset("digits", tmp_path)
    assert error.value.errno == errno.ENOSPC


def test_fingerprint_against_numpy(digits):
    source = digits.read("train[:100]")
    values = source.images.reshape(-1) / 255
    assert source.fingerprint["mean"] == [round(values.mean(), 6)]
    assert source.fingerprint["std"] == [round(values.std(), 6)]
    assert source.fingerprint["classes"] == np.bincount(source.labels, minlength=10).tolist()
