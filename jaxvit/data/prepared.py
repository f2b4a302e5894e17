"""Reads data sets in TFDS directories record by record, without TensorFlow.

TFDS prints to stdout and stderr, hides import errors, and by default prepares data sets with TensorFlow. This module
works around that.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxvit.data.cache import content_hash
from jaxvit.data.decoding import Record, Unreadable
from jaxvit.data.preparable import PREPARABLE
from jaxvit.errors import UsageError, find_system_error, first_line, is_disk_failure, nearest
from jaxvit.files import local_path, read_json, take_brackets_literally


class PreparedStore:
    """A prepared TFDS classification data set.

    Attributes:
      name, version: name and version in TFDS.
      class_names: K names.
      image_shape: [H, W, C]; None for dimensions that vary.
      sizes: {split: number of images}.
      channels: C; 3 if it varies.
      directory: the TFDS directory.
    """

    def __init__(self, builder: Any, directory: Path):
        self._builder = builder
        self.directory = directory
        self.name: str = builder.name
        self.version = str(builder.version)
        features = builder.info.features
        if not {"image", "label"} <= set(features) or not hasattr(features["label"], "names"):
            raise UsageError(
                f"config.data.name: '{self.name}' has no features named image and label; "
                "only classification data sets can be trained on"
            )
        self.class_names: tuple[str, ...] = tuple(features["label"].names)
        self.image_shape: tuple[int | None, ...] = tuple(features["image"].shape)
        self.channels: int = self.image_shape[-1] or 3
        self.sizes = {name: info.num_examples for name, info in builder.info.splits.items()}

    def records(self, split: str) -> PreparedRecords:
        tfds = import_tfds()
        with _named_damage(self.name, self.directory), quiet():
            try:
                source = self._builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
            except NotImplementedError:
                raise UsageError(
                    f"config.data.name: '{self.name}' in {self.directory} is not stored as array_record, the only "
                    f"format that can be read without TensorFlow; {how_to_prepare(self.name)}"
                ) from None
            len(source)  # reads the index of the files, so that damage is reported here
        return PreparedRecords(source, f"{self.name} {split}")

    def content(self, split: str) -> str:
        """Returns a hash of the stored files of a split."""
        try:
            with _named_damage(self.name, self.directory):
                return content_hash(Path(path) for path in self._builder.info.splits[split].filepaths)
        except OSError as error:
            raise UsageError(
                f"config.data.name: {error.filename} of '{self.name}' cannot be read ({error.strerror}); "
                f"{how_to_prepare(self.name)}"
            ) from None


class PreparedRecords:
    """The records of one split, as `jaxvit.data.decoding.Records`."""

    def __init__(self, source: Any, owner: str):
        self._source, self._owner = source, owner

    def __len__(self) -> int:
        return len(self._source)

    def read(self, rows: Sequence[int]) -> list[Record | Unreadable]:
        rows = [int(row) for row in rows]
        try:
            return [self._record(row, x) for row, x in zip(rows, self._source.__getitems__(rows), strict=True)]
        except Exception:  # a damaged record fails the whole read: find it by reading one by one
            return [self._read_one(row) for row in rows]

    def _read_one(self, row: int) -> Record | Unreadable:
        try:
            return self._record(row, self._source[row])
        except Exception as error:
            return Unreadable(f"record {row} of {self._owner}", error)

    def _record(self, row: int, example: Any) -> Record:
        own = example.get("id", b"")
        own = own.decode(errors="backslashreplace") if isinstance(own, bytes) else str(own)
        file = example.get("file_name", b"")
        file = file.decode(errors="backslashreplace") if isinstance(file, bytes) else str(file)
        name = f"record {row} of {self._owner}" + (f" ({own or file})" if own or file else "")
        return Record(example["image"], int(example["label"]), own, name)


def open_prepared(name: str, directory: Path) -> PreparedStore:
    """Opens a prepared data set; `digits` is prepared on first use.

    Raises:
      UsageError: it is not prepared in `directory`, the name is unknown, or its metadata cannot be read.
    """
    with _named_damage(name, directory):
        return _open_prepared(name, directory)


@contextlib.contextmanager
def _named_damage(name: str, directory: Path) -> Iterator[None]:
    """Converts errors that TFDS raises for damaged files to a UsageError of one line."""
    try:
        yield
    except (OSError, UsageError, MemoryError):
        raise
    except Exception as error:
        raise UsageError(
            f"config.data.name: the files of '{name}' in {directory} cannot be read "
            f"({type(error).__name__}: {first_line(error)[:200]}); {how_to_prepare(name)}"
        ) from None


def _open_prepared(name: str, directory: Path) -> PreparedStore:
    if name == "digits":
        return PreparedStore(_prepare_digits(directory), directory)
    tfds = import_tfds()
    try:
        folder = _version_directory(directory, name)
        _refuse_foreign_features(folder)
        with quiet():
            builder = tfds.builder_from_directory(folder)
    except FileNotFoundError:
        prepared = sorted({info.relative_to(directory).parts[0] for info in directory.glob("*/**/dataset_info.json")})
        have = f"; prepared there: {', '.join(prepared)}" if prepared else ""
        known = [*prepared, "digits", *PREPARABLE]
        remedy = f"run `jaxvit data prepare {name}`, or " if name in PREPARABLE else ""
        raise UsageError(
            f"config.data.name: '{name}' is not prepared in {directory}{nearest(name, known)}{have}; "
            f"{remedy}set --config.data.dir or TFDS_DATA_DIR to where it is"
        ) from None
    return PreparedStore(builder, directory)


def how_to_prepare(name: str) -> str:
    """Returns advice for a message: the command that prepares a set again in the right format."""
    ours = name in PREPARABLE or name == "digits"
    command = (
        f"jaxvit data prepare {name} --force" if ours else f"tfds build {name} --file_format=array_record --overwrite"
    )
    return f"prepare it again with `{command}`"


def _version_directory(directory: Path, name: str) -> Path:
    """Returns the folder of the newest version of a set. Folders that are still being written have other names."""
    versions = [
        info.parent
        for info in (directory / name).glob("**/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name)
    ]
    if not versions:
        raise FileNotFoundError(name)
    kinds = sorted({str(version.parent.relative_to(directory)) for version in versions})
    if len(kinds) > 1:
        raise UsageError(
            f"config.data.name: '{name}' is prepared in {directory} in several configurations; name one of them: "
            f"{', '.join(kinds)}"
        )
    return max(versions, key=lambda version: tuple(map(int, version.name.split("."))))


# TFDS imports the module of every class that features.json names, and the file may come from a stranger.
_FEATURES = re.compile(r"tensorflow_datasets\.core\.features(\.\w+)+")
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")  # protobuf's two spellings, and that of old TFDS


def _refuse_foreign_features(folder: Path) -> None:
    """Checks the classes named in the JSON files of a prepared set, before TFDS imports them.

    Raises:
      UsageError: a file names a class outside TFDS.
    """
    for file in (folder / "features.json", folder / "dataset_info.json"):  # both may name features
        if not file.exists():
            continue
        for name in _classes_named(read_json(file, "prepare the data set again")):
            if not _FEATURES.fullmatch(name):
                raise UsageError(
                    f"{file}: its feature '{name}' is code outside TFDS, and opening the data set would run it; "
                    "prepare the set again with features of TFDS"
                )


def _classes_named(value: Any) -> Iterator[str]:
    """Yields the class names in a features.json at any depth, including JSON inside strings, which TFDS uses."""
    if isinstance(value, list):
        for each in value:
            yield from _classes_named(each)
    elif isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        with contextlib.suppress(ValueError):
            yield from _classes_named(json.loads(value))
    elif isinstance(value, dict):
        for key, each in value.items():
            # A 'type' without a dot is not a module path.
            if key in _CLASS_KEYS and isinstance(each, str) and ("." in each or key != "type"):
                yield each
            else:
                yield from _classes_named(each)


def _prepare_digits(directory: Path) -> Any:
    import_tfds()
    from jaxvit.data.digits import Digits

    try:
        with quiet():
            builder = Digits(data_dir=directory)
            try:
                builder.download_and_prepare()
            except OSError:
                builder = Digits(data_dir=directory)
                if not builder.data_path.exists():  # else another process has prepared it first
                    raise
    except OSError as error:
        if is_disk_failure(error):
            if error.filename is None:
                error.filename = str(directory)
            raise
        raise UsageError(
            f"cannot write the digits data set into {directory}: {error.strerror or error}; "
            "set --config.data.dir or TFDS_DATA_DIR to a folder that can be written"
        ) from None
    return builder


def import_tfds() -> Any:
    """Imports TFDS without its output and progress bars."""
    with quiet():
        import tensorflow_datasets as tfds

        take_brackets_literally()
        tfds.disable_progress_bar()
    return tfds


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Captures stdout and stderr inside the `with` block, and prints them only if the block fails."""
    if os.environ.get("JAXVIT_VERBOSE"):
        yield
        return
    captured = io.StringIO()
    with contextlib.redirect_stdout(captured), contextlib.redirect_stderr(captured):
        try:
            yield
        except (OSError, UsageError, NotImplementedError):
            raise
        except Exception as error:
            if failed := find_system_error(error):  # the array_record writer reports disk errors as RuntimeError
                raise failed from None
            if captured.getvalue().strip():
                print(captured.getvalue(), file=sys.__stderr__)
            raise


def data_dir(config_value: str) -> Path:
    """Returns the TFDS directory: the config value, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return Path(local_path(config_value or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"))
