"""Prepares CIFAR-10, CIFAR-100, MNIST and Fashion-MNIST as TFDS directories, without TensorFlow.

The builders in TFDS need TensorFlow to unpack the archives and to encode the images, and without a network they retry
for minutes. This module downloads the files (or reads the user's copies), compares them with the checksums that TFDS
publishes, unpacks them with the standard library, and writes array_record files under the name, version and features
that TFDS uses, so that any TFDS user can read them. Images keep their original order.
"""

from __future__ import annotations

import gzip
import http.client
import json
import os
import shutil
import tarfile
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxvit.data.preparable import PREPARABLE
from jaxvit.data.prepared import import_tfds, quiet
from jaxvit.errors import UsageError, is_disk_failure
from jaxvit.files import file_hash, make_folder

CONNECT_SECONDS = 10.0

Examples = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Recipe:
    """Reads the published files of a data set.

    Attributes:
      names: function from {file name: path} to {feature: class names}.
      examples: function from ({file name: path}, split) to the examples, in their original order.
    """

    names: Callable[[dict[str, Path]], dict[str, list[str]]]
    examples: Callable[[dict[str, Path], str], Examples]


def _members(archive: Path, wanted: list[str]) -> Iterator[bytes]:
    """Yields the contents of files in a tar archive, in the order of `wanted`, which lists their base names."""
    with tarfile.open(archive) as tar:
        found = {Path(member.name).name: member for member in tar.getmembers() if member.isfile()}
        for name in wanted:
            yield tar.extractfile(found[name]).read()  # type: ignore[union-attr]


def _only(files: dict[str, Path]) -> Path:
    return next(iter(files.values()))


def _cifar(labels: tuple[str, ...], members: dict[str, list[str]], names: dict[str, str]) -> Recipe:
    def class_names(files: dict[str, Path]) -> dict[str, list[str]]:
        texts = _members(_only(files), list(names.values()))
        return {feature: text.decode().split() for feature, text in zip(names, texts, strict=True)}

    def examples(files: dict[str, Path], split: str) -> Examples:
        index = 0
        for content in _members(_only(files), members[split]):
            rows = np.frombuffer(content, np.uint8).reshape(-1, len(labels) + 3072)
            for row in rows:
                pixels = row[len(labels) :].reshape(3, 32, 32).transpose(1, 2, 0)
                values = {name: int(row[i]) for i, name in enumerate(labels)}
                yield {"image": Image.fromarray(np.ascontiguousarray(pixels)), "id": f"{split}_{index:05d}", **values}
                index += 1

    return Recipe(class_names, examples)


def _idx(classes: tuple[str, ...]) -> Recipe:
    def examples(files: dict[str, Path], split: str) -> Examples:
        part = {"train": "train", "test": "t10k"}[split]
        with gzip.open(files[f"{part}-images-idx3-ubyte.gz"]) as file:
            images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
        with gzip.open(files[f"{part}-labels-idx1-ubyte.gz"]) as file:
            labels = np.frombuffer(file.read(), np.uint8, offset=8)
        for image, label in zip(images, labels, strict=True):
            yield {"image": Image.fromarray(image), "label": int(label)}

    return Recipe(lambda files: {"label": list(classes)}, examples)


_FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

RECIPES: dict[str, Recipe] = {
    "cifar10": _cifar(
        ("label",),
        {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]},
        {"label": "batches.meta.txt"},
    ),
    "cifar100": _cifar(
        ("coarse_label", "label"),
        {"train": ["train.bin"], "test": ["test.bin"]},
        {"label": "fine_label_names.txt", "coarse_label": "coarse_label_names.txt"},
    ),
    "mnist": _idx(tuple("0123456789")),
    "fashion_mnist": _idx(_FASHION),
}


def prepare(
    name: str,
    directory: Path,
    given: Path | None = None,
    say: Callable[[str], None] = print,
    *,
    force: bool = False,
) -> dict[str, int]:
    """Writes a data set into a TFDS directory.

    Args:
      name: a key of `jaxvit.data.preparable.PREPARABLE`.
      directory: the TFDS directory.
      given: the archive, or the folder of the files; None = look in ``directory/downloads/name``, then download.
      say: function that prints a line of progress.
      force: replaces a set that is already prepared; by default it is kept.

    Returns:
      {split: number of images}.

    Raises:
      UsageError: the files cannot be downloaded, or are not the published ones.
    """
    files = {}
    recipe = RECIPES[name]
    with quiet():
        stock = import_tfds().builder_cls(name)
    target = directory / name / str(stock.VERSION)
    if not force and (target / "dataset_info.json").exists():
        _check_format(name, target)
        say(f"{name} is already prepared: {target}")
        return PREPARABLE[name].splits
    for url, info in stock.url_infos.items():
        filename = url.rsplit("/", 1)[1]
        files[filename] = _obtain(name, filename, url, info.checksum, directory / "downloads" / name, given, say)
    say(f"writing {name} …")
    make_folder(directory)
    # Built in a temporary folder and renamed: an old set stays until the new one is complete, and two processes that
    # prepare the same set do not interfere.
    with tempfile.TemporaryDirectory(prefix=".making-", dir=directory) as beside:
        with quiet(), import_tfds().core.registered.skip_registration():
            builder = _builder_class(name, str(stock.VERSION), recipe, files)(
                data_dir=beside, file_format="array_record"
            )
            builder.download_and_prepare()
        make_folder(target.parent)
        if force:
            shutil.rmtree(target, ignore_errors=True)
        try:
            os.rename(builder.data_path, target)
        except OSError:
            if not (target / "dataset_info.json").exists():  # else another process has written it first
                raise
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    say(f"{name}: {', '.join(f'{split} {n:,}' for split, n in sizes.items())} images in {target}")
    return sizes


def _check_format(name: str, folder: Path) -> None:
    try:
        found = json.loads((folder / "dataset_info.json").read_text()).get("fileFormat", "tfrecord")
    except ValueError:
        raise UsageError(
            f"{folder / 'dataset_info.json'} is damaged; replace it with `jaxvit data prepare {name} --force`"
        ) from None
    if found != "array_record":
        raise UsageError(
            f"{name} is in {folder}, but stored as {found}, which cannot be read without TensorFlow; replace it with "
            f"`jaxvit data prepare {name} --force`"
        )


def _obtain(
    name: str, filename: str, url: str, checksum: str, downloads: Path, given: Path | None, say: Callable[[str], None]
) -> Path:
    """Returns the path of a published file, downloaded if missing, after comparing its checksum."""
    if given is not None:
        path = given / filename if given.is_dir() else given
        if not path.is_file():
            raise UsageError(f"--from={given}: there is no file {path}; download it from {url}")
        if not given.is_dir() and name in ("mnist", "fashion_mnist"):
            raise UsageError(f"--from={given}: {name} is made of four files; name the folder that holds them")
    else:
        path = downloads / filename
        if not path.exists():
            _download(url, path, name, checksum, say)
    found = file_hash(path)
    if found != checksum:
        raise UsageError(
            f"{path} is not the published {filename}: its SHA-256 is {found[:16]}…, it should be {checksum[:16]}…; "
            f"{'name the right file' if given else 'delete it and fetch it again'}; it comes from {url}"
        )
    return path


def _download(url: str, path: Path, name: str, checksum: str, say: Callable[[str], None]) -> None:
    say(f"fetching {url}")
    try:
        response = _open_within(url, CONNECT_SECONDS)
        make_folder(path.parent)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with response, beside.open("wb") as file:
                while block := response.read(1 << 20):
                    file.write(block)
            if file_hash(beside) != checksum:  # an interrupted download, or another file: nothing is kept
                raise OSError(f"the {beside.stat().st_size:,} bytes received are not the published file")
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
        if isinstance(error, PermissionError) or (isinstance(error, OSError) and is_disk_failure(error)):
            raise
        reason = getattr(error, "reason", None) or error
        raise UsageError(
            f"cannot fetch {url} ({reason}); fetch it elsewhere and put it at {path}, or run "
            f"`jaxvit data prepare {name} --from=FILE`"
        ) from None


def _open_within(url: str, seconds: float) -> Any:
    """Opens a URL, in a thread: the time-out of `urlopen` does not cover a name server that does not answer."""
    result: list[Any] = []

    def work() -> None:
        try:
            result.append(urllib.request.urlopen(url, timeout=seconds))
        except (OSError, http.client.HTTPException) as error:
            result.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not result:
        raise urllib.error.URLError(f"no answer within {seconds:g} s")
    if isinstance(result[0], Exception):
        raise result[0]
    return result[0]


def _builder_class(dataset: str, version: str, recipe: Recipe, files: dict[str, Path]) -> type:
    tfds = import_tfds()

    class Prepared(tfds.core.GeneratorBasedBuilder):
        name = dataset
        VERSION = tfds.core.Version(version)

        def _info(self) -> Any:
            features = {"image": tfds.features.Image(shape=PREPARABLE[dataset].shape, encoding_format="png")}
            for feature, names in recipe.names(files).items():
                features[feature] = tfds.features.ClassLabel(names=names)
            if dataset.startswith("cifar"):
                features["id"] = tfds.features.Text()
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: self._generate_examples(split) for split in PREPARABLE[dataset].splits}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            yield from enumerate(recipe.examples(files, split))

    return Prepared
