"""Preparing data sets from tiny archives of the same format; errors without network."""

import gzip
import http.client
import io
import os
import shutil
import tarfile
import time
from types import SimpleNamespace

import numpy as np
import pytest

from jaxvit.data import builders
from jaxvit.data.builders import prepare
from jaxvit.data.sources import open_dataset
from jaxvit.errors import UsageError
from jaxvit.files import file_hash

RNG = np.random.default_rng(0)


def cifar_archive(path, members, label_bytes, texts):
    """A tar.gz with 4 images per member; returns {member: (labels, images)}."""
    made = {}
    with tarfile.open(path, "w:gz") as tar:
        for name in members:
            labels = RNG.integers(0, 3, (4, label_bytes), dtype=np.uint8)
            images = RNG.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
            made[name] = (labels[:, -1], images)
            planes = images.transpose(0, 3, 1, 2).reshape(4, -1)
            add(tar, name, np.concatenate([labels, planes], axis=1).tobytes())
        for name, text in texts.items():
            add(tar, name, text.encode())
    return made


def add(tar, name, content):
    info = tarfile.TarInfo(f"some-folder/{name}")
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def stock(monkeypatch):
    """Replaces the metadata that TFDS publishes about a data set: version, URLs, checksums."""

    def publish(*paths):
        infos = {f"http://localhost:9/{p.name}": SimpleNamespace(checksum=file_hash(p)) for p in paths}
        cls = SimpleNamespace(VERSION="3.0.2", url_infos=infos)
        tfds = builders.import_tfds()
        monkeypatch.setattr(tfds, "builder_cls", lambda name: cls)

    return publish


def test_cifar10(tmp_path, stock):
    members = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    archive = tmp_path / "cifar-10-binary.tar.gz"
    made = cifar_archive(archive, members, 1, {"batches.meta.txt": "airplane\nautomobile\nbird\n\n"})
    stock(archive)
    assert prepare("cifar10", tmp_path / "tfds", archive, say=lambda line: None) == {"train": 20, "test": 4}
    dataset = open_dataset("cifar10", tmp_path / "tfds")
    assert dataset.class_names == ("airplane", "automobile", "bird")
    train = dataset.read("train")
    np.testing.assert_array_equal(train.images, np.concatenate([made[m][1] for m in members[:5]]))
    np.testing.assert_array_equal(train.labels, np.concatenate([made[m][0] for m in members[:5]]))
    assert train.notes["order"] == "original order, by id" and "warning" in train.notes  # these are not CIFAR's pixels
    said = []
    prepare("cifar10", tmp_path / "tfds", say=said.append)
    assert "is already prepared" in said[0]


def test_cifar100_has_fine_labels_as_label(tmp_path, stock):
    archive = tmp_path / "tfds" / "downloads" / "cifar100" / "cifar-100-binary.tar.gz"
    archive.parent.mkdir(parents=True)
    texts = {"fine_label_names.txt": "apple\nbed\ncan\n", "coarse_label_names.txt": "a\nb\nc\n"}
    made = cifar_archive(archive, ["train.bin", "test.bin"], 2, texts)
    stock(archive)
    prepare("cifar100", tmp_path / "tfds", say=lambda line: None)  # found where it was put
    dataset = open_dataset("cifar100", tmp_path / "tfds")
    assert dataset.class_names == ("apple", "bed", "can")
    np.testing.assert_array_equal(dataset.read("test").labels, made["test.bin"][0])


def test_fashion_mnist(tmp_path, stock):
    folder, made = tmp_path / "files", {}
    folder.mkdir()
    for part in ("train", "t10k"):
        images, labels = RNG.integers(0, 256, (5, 28, 28), dtype=np.uint8), RNG.integers(0, 10, 5, dtype=np.uint8)
        made[part] = (images, labels)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + images.tobytes()))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + labels.tobytes()))
    stock(*folder.iterdir())
    prepare("fashion_mnist", tmp_path / "tfds", folder, say=lambda line: None)
    dataset = open_dataset("fashion_mnist", tmp_path / "tfds")
    np.testing.assert_array_equal(dataset.read("test").images[..., 0], made["t10k"][0])
    np.testing.assert_array_equal(dataset.read("test").labels, made["t10k"][1])
    assert dataset.class_names[9] == "Ankle boot" and dataset.read("test").notes["order"].startswith("stored")
    with pytest.raises(UsageError, match="made of four files"):
        prepare("fashion_mnist", tmp_path / "other", folder / "train-images-idx3-ubyte.gz", say=lambda line: None)


def test_another_file_is_refused(tmp_path, stock):
    archive = tmp_path / "cifar-10-binary.tar.gz"
    archive.write_bytes(b"right")
    stock(archive)
    archive.write_bytes(b"wrong")
    with pytest.raises(UsageError, match=r"is not the published cifar-10-binary\.tar\.gz: its SHA-256 is"):
        prepare("cifar10", tmp_path / "tfds", archive, say=lambda line: None)
    with pytest.raises(UsageError, match="there is no file"):
        prepare("cifar10", tmp_path / "tfds", tmp_path / "nothing", say=lambda line: None)


def test_without_network_it_fails_at_once_and_names_the_file_and_its_place(tmp_path, stock):
    archive = tmp_path / "cifar-10-binary.tar.gz"
    archive.write_bytes(b"")
    stock(archive)
    started = time.monotonic()
    with pytest.raises(UsageError) as error:
        prepare("cifar10", tmp_path / "tfds", say=lambda line: None)
    assert time.monotonic() - started < 12
    message = str(error.value)
    assert "cannot fetch http://localhost:9/cifar-10-binary.tar.gz" in message and "\n" not in message
    assert str(tmp_path / "tfds" / "downloads" / "cifar10" / "cifar-10-binary.tar.gz") in message
    assert "--from=FILE" in message


def test_a_name_server_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(builders.urllib.request, "urlopen", lambda *_, **__: time.sleep(5))
    with pytest.raises(OSError, match=r"no answer within 0\.2 s"):
        builders._open_within("http://example.invalid/x", 0.2)


class Body:
    """An HTTP response that breaks off."""

    def __init__(self, content, error=None):
        self._parts, self._error = [content], error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def read(self, _):
        if self._error and not self._parts:
            raise self._error
        return self._parts.pop() if self._parts else b""


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (Body(b"half"), "the 4 bytes received are not the published file"),
        (Body(b"half", http.client.IncompleteRead(b"", 3)), "IncompleteRead"),
        (http.client.BadStatusLine("x"), "cannot fetch"),
    ],
)
def test_what_comes_incomplete_is_not_kept(tmp_path, stock, monkeypatch, body, says):
    archive = tmp_path / "cifar-10-binary.tar.gz"
    archive.write_bytes(b"the whole")
    stock(archive)

    def answer(*_, **__):
        if isinstance(body, Exception):
            raise body
        return body

    monkeypatch.setattr(builders.urllib.request, "urlopen", answer)
    with pytest.raises(UsageError, match=says) as error:
        prepare("cifar10", tmp_path / "tfds", say=lambda line: None)
    assert "\n" not in str(error.value) and "no answer" not in str(error.value)
    assert not [p for p in (tmp_path / "tfds").rglob("*") if p.is_file()]


@pytest.fixture
def tiny_cifar(tmp_path, stock):
    archive = tmp_path / "cifar-10-binary.tar.gz"
    members = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    cifar_archive(archive, members, 1, {"batches.meta.txt": "airplane\nautomobile\nbird\n"})
    stock(archive)
    return archive


def test_force_replaces_what_is_there_and_a_wrong_format_is_named(tmp_path, tiny_cifar):
    folder = tmp_path / "tfds" / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text('{"fileFormat": "tfrecord"}')
    with pytest.raises(UsageError, match=r"stored as tfrecord.*`jaxvit data prepare cifar10 --force`"):
        prepare("cifar10", tmp_path / "tfds", tiny_cifar, say=lambda line: None)
    prepare("cifar10", tmp_path / "tfds", tiny_cifar, say=lambda line: None, force=True)
    assert open_dataset("cifar10", tmp_path / "tfds").count("train") == 20
    assert sorted(p.name for p in (tmp_path / "tfds").iterdir()) == ["cifar10"]


def test_another_process_that_prepares_it_too_may_be_faster(tmp_path, tiny_cifar, monkeypatch):
    rename, place = os.rename, tmp_path / "tfds" / "cifar10" / "3.0.2"

    def beaten(made, target, **options):
        if target == place:
            shutil.copytree(made, target)
        rename(made, target, **options)

    monkeypatch.setattr(builders.os, "rename", beaten)
    prepare("cifar10", tmp_path / "tfds", tiny_cifar, say=lambda line: None)
    assert open_dataset("cifar10", tmp_path / "tfds").count("train") == 20


def test_a_set_in_another_format_says_how_to_have_it_in_the_right_one(tmp_path, data_directory, monkeypatch):
    store = open_dataset("digits", data_directory)._store

    def refuse(**_):
        raise NotImplementedError

    monkeypatch.setattr(store._builder, "as_data_source", refuse)
    for name, remedy in (("digits", "jaxvit data prepare digits --force"), ("flowers", "tfds build flowers --file_f")):
        monkeypatch.setattr(store, "name", name)
        with pytest.raises(UsageError, match=f"prepare it again with `{remedy}"):
            store.records("train")


def test_what_is_published_is_what_tfds_publishes():
    tfds = builders.import_tfds()
    for name in builders.PREPARABLE:
        cls = tfds.builder_cls(name)
        assert all(len(info.checksum) == 64 for info in cls.url_infos.values()) and cls.url_infos
