"""Opens data sets by name, without TensorFlow: prepared ones, image files, shards, and functions of the user.

`open_dataset` reads only sizes, shapes and names, which is fast; `jaxvit.data.dataset.Dataset` reads the images.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Unpack

from jaxvit.data.dataset import Dataset, Reading
from jaxvit.data.image_folder import PREFIX, open_image_files
from jaxvit.data.label_table import TABLE_PREFIX
from jaxvit.data.own import OwnStore
from jaxvit.data.prepared import open_prepared
from jaxvit.data.shard_store import open_shards
from jaxvit.data.shards import PARQUET_PREFIX, TAR_PREFIX
from jaxvit.errors import UsageError
from jaxvit.files import local_path
from jaxvit.own_code import is_own_module, load_function

# Prefixes of data sets that are files: a folder of images, a table, shards.
FILE_PREFIXES = (PREFIX, TABLE_PREFIX, TAR_PREFIX, PARQUET_PREFIX)


def is_own(name: str) -> bool:
    """Whether a data set's name is that of a user's function, 'package.module:function'."""
    return ":" in name and not name.startswith(FILE_PREFIXES)


def located(name: str) -> str:
    """Makes the path in a data set's name absolute, so that the name is valid in any working folder.

    Example:
      >>> located("cifar10"), located("image_folder:/data/../pets")
      ('cifar10', 'image_folder:/pets')
    """
    if "://" in name:
        local_path(name)  # raises the error for URLs
    prefix, _, path = name.partition(":")
    if not path or is_own(name):
        return name
    return f"{prefix}:{os.path.abspath(local_path(path))}"


def open_dataset(
    name: str,
    directory: Path,
    **reading: Unpack[Reading],
) -> Dataset:
    """Opens a data set by name; `digits` is prepared on first use.

    Args:
      name: TFDS name, 'image_folder:PATH', 'image_table:FILE', 'tar:PATTERN', 'parquet:PATTERN', or
        'package.module:function' (see `jaxvit.data.own`).
      directory: the TFDS directory.
      **reading: settings of the `Dataset`: classes, on_error, side, limits, white, cut, few.

    Raises:
      UsageError: it is not prepared in `directory`, or the name is unknown.
    """
    located(name)  # refuses a URL
    limits, skip = reading.get("limits"), reading.get("on_error") == "skip"
    if name in FILE_PREFIXES:
        raise UsageError(f"config.data.name='{name}': the path is missing; write it as {name}PATH")
    if name.startswith((PREFIX, TABLE_PREFIX)):
        store: Any = open_image_files(name, directory, limits, skip_missing=skip)
    elif name.startswith((TAR_PREFIX, PARQUET_PREFIX)):
        store = open_shards(name, directory, limits, skip_unlabelled=skip)
    elif is_own(name):
        store = OwnStore(name, directory)
    elif {"", ".", ".."} & {*name.split("/")}:
        raise UsageError(f"config.data.name='{name}': is not the name of a data set, such as 'cifar10'")
    else:
        try:
            store = open_prepared(name, directory)
        except UsageError:
            from jaxvit.data.preparable import PREPARABLE

            if name not in PREPARABLE and is_own_module(name):
                load_function(name, "data.name")  # raises an error that explains the missing ':function'
            raise
    return Dataset(store, **reading)
