"""Copies the images out of a Parquet shard in the layout of Hugging Face, once, by row groups.

A row has a column `image`, the bytes of an image file or a struct of `bytes` and `path`, and a column `label`: a whole
number, whose class names are in the `huggingface` metadata of the schema if there are any, or text. The columns may
have other names if the metadata say which column holds images and which classes.

Parquet cannot be read at random: an image costs the row group or at least the page that it is compressed in. So the
bytes of all images are copied into one file beside the shard, and read from there.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxvit.data.shard_index import Listing
from jaxvit.data.tar_shard import checked_label
from jaxvit.errors import UsageError, first_line

_ROWS = 64  # rows in memory at a time
_IMAGES, _LABELS = ("image", "img", "jpg", "png", "picture"), ("label", "labels", "cls", "class", "fine_label")


def copy_images(shard: Path, copy: Path, where: str) -> Listing:
    """Writes the bytes of all images of a Parquet file to a file, one after the other, and lists them.

    Args:
      shard: the Parquet file.
      copy: the file to write.
      where: the start of error messages.

    Raises:
      UsageError: pyarrow is not installed; the file is damaged or has no such columns; a row has no image or a label
        that cannot be read. The message names shard and row.
      OSError: the shard cannot be read, or the copy cannot be written.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UsageError(f"{where}: Parquet is read with the extra parquet: pip install 'jaxvit[parquet]'") from None
    listing, image, label = Listing(), "", ""
    try:
        with pq.ParquetFile(shard, page_checksum_verification=True) as file:
            image, label, listing.class_names = _columns(file.schema_arrow, f"{where}: {shard}")
            _write(listing, copy, _rows(file, image, label), f"{where}: {shard}")
    except pa.ArrowException as error:
        raise UsageError(f"{where}: {shard} cannot be read ({first_line(error)[:160]}); copy it again") from None
    except UnicodeDecodeError:
        raise UsageError(f"{where}: {shard} has text that is not UTF-8, in '{image}' or '{label}'") from None
    return listing


def _write(listing: Listing, copy: Path, rows: Iterator[tuple[Any, Any]], what: str) -> None:
    place = 0
    with copy.open("wb") as out:
        for number, (image, value) in enumerate(rows):
            said = f"{what}: row {number}"
            data, name = (image.get("bytes"), image.get("path")) if isinstance(image, Mapping) else (image, None)
            if not isinstance(data, bytes):
                outside = f"only the path '{name}'" if name else "no image"
                raise UsageError(f"{said} has {outside}; each row needs the bytes of an image")
            label = None if value is None else _label(value, said, listing.class_names)
            size = len(data)
            listing.add(f"{number}/{name}" if name else str(number), place, size, label, zlib.crc32(data))
            out.write(data)
            place += size


def _label(value: Any, what: str, class_names: Sequence[str]) -> int | str | None:
    if value == -1 and class_names:  # Hugging Face's label of images without a class
        return None
    label = checked_label(value, what)
    if isinstance(label, int) and class_names and label >= len(class_names):
        raise UsageError(f"{what}: the label {label} is not one of the {len(class_names)} classes of the file")
    return label


def _rows(file: Any, image: str, label: str) -> Iterator[tuple[Any, Any]]:
    """Yields (image, label) of each row; one batch of rows is in memory at a time."""
    for group in range(file.num_row_groups):
        for batch in file.iter_batches(_ROWS, row_groups=[group], columns=[image, label]):
            yield from zip(batch.column(image).to_pylist(), batch.column(label).to_pylist(), strict=True)


def _columns(schema: Any, what: str) -> tuple[str, str, tuple[str, ...]]:
    """(column of images, column of labels, class names or ()), by the metadata of Hugging Face, else by name."""
    features: dict[str, Any] = {}
    try:
        found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        features = {str(name): kind for name, kind in found.items() if isinstance(kind, dict) and name in schema.names}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # metadata of another kind
    images = [name for name, kind in features.items() if kind.get("_type") == "Image"]
    labels = [name for name, kind in features.items() if kind.get("_type") == "ClassLabel"]
    image = _one(images, _IMAGES, schema.names)
    label = _one(labels, _LABELS, schema.names)
    if not image or not label:
        lacks = "image" if not image else "label"
        raise UsageError(f"{what} has no column '{lacks}'; it has {', '.join(schema.names)[:200]}")
    for name in (image, label):
        if schema.names.count(name) > 1:
            raise UsageError(f"{what} has several columns '{name}'; rename all but one")
    names = features.get(label, {}).get("names")
    known = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return image, label, tuple(names) if known and names else ()


def _one(said: Sequence[str], usual: Sequence[str], there: Sequence[str]) -> str:
    """The column that the metadata name; if they name several or none, the first with a usual name; '' = none."""
    if len(said) == 1:
        return said[0]
    return next((name for name in usual if name in (said or there)), "")
