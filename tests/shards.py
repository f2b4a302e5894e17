"""Shards for tests: the images of a folder of photos as tar files or Parquet files."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path


def members(folder: Path, label: str = "cls", numbers: dict[str, int] | None = None) -> list[tuple[str, bytes]]:
    """(name, bytes) of the members of a tar shard: CLASS/NAME.png, then CLASS/NAME.cls or CLASS/NAME.json."""
    found = []
    for file in sorted(folder.glob("*/*.png")):
        name, value = f"{file.parent.name}/{file.stem}", (numbers or {}).get(file.parent.name, file.parent.name)
        text = json.dumps({"label": value, "author": "x"}) if label == "json" else f"{value}\n"
        found += [(f"{name}.png", file.read_bytes()), (f"{name}.{label}", text.encode())]
    return found


def write_tar(file: Path, members: Iterable[tuple[str, bytes]], **options) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", **options) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file


def write_parquet(
    file: Path, folder: Path, *, names: list[str] | None = None, rows: int = 3, plain: bool = False
) -> Path:
    """Writes the photos of a folder in the layout of Hugging Face.

    Args:
      file: the file to write.
      folder: FOLDER/CLASS/NAME.png.
      names: class names for the metadata, whose numbers are the labels; None = text labels.
      rows: rows in a row group.
      plain: the image column holds bytes alone, without paths.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted(folder.glob("*/*.png"))
    images = [{"bytes": one.read_bytes(), "path": one.name} for one in files]
    labels = [names.index(one.parent.name) if names else one.parent.name for one in files]
    image = pa.array([one["bytes"] for one in images]) if plain else pa.array(images)
    table = pa.table({"image": image, "label": pa.array(labels)})
    if names:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, row_group_size=rows)
    return file
