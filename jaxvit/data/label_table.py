"""Labels from a table: a CSV file, or JSON lines, that names image files and their classes.

    file,label              {"file": "1.jpg", "label": "cat"}
    1.jpg,cat               {"file": "more/2.jpg", "label": "dog"}
    more/2.jpg,dog

Paths are relative to the folder of the table. An optional third column, `split`, assigns files to parts by names such
as train, val and test; without it all files are in 'train'.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxvit.data.photo_folder import PART_NAMES, LeftOut, PhotoFiles, arrange
from jaxvit.errors import UsageError
from jaxvit.files import read_regular

TABLE_PREFIX = "image_table:"
TABLE_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson")
# Accepted column names, in any case.
_COLUMNS = {
    "file": ("file", "filename", "file_name", "path", "image"),
    "label": ("label", "class", "class_name", "category"),
    "split": ("split", "part", "subset"),
}
_MOST_BYTES = 1 << 30


def read_label_table(path: Path, where: str, *, skip_missing: bool = False) -> PhotoFiles:
    """Reads a table of files and labels.

    Args:
      path: path of a '.csv', '.tsv' or '.jsonl' file.
      where: the start of error messages.
      skip_missing: leave out rows whose file does not exist, instead of an error.

    Raises:
      UsageError: the table cannot be read; a row lacks a file or a label; a file has two labels or does not exist.
    """
    listed: dict[str, list[tuple[Path, str, bytes]]] = {}
    seen: dict[str, tuple[str, str, int]] = {}
    missing, again = [], []
    for number, row in _rows(path, where):
        file, label = row["file"], row["label"]
        if not file or not label:
            lacks = "file" if not file else "label"
            raise UsageError(f"{where}: row {number} has no {lacks}; every row needs a file and a label")
        part = PART_NAMES.get(row["split"].lower() or "train")
        if part is None:
            raise UsageError(
                f"{where}: row {number} names the split '{row['split']}'; there are train, validation (or val) and test"
            )
        if "\0" in file:
            raise UsageError(f"{where}: row {number}: '{file}' is no file name")
        name = os.path.normpath(file)
        if name in seen:
            if seen[name][:2] != (label, part):
                raise UsageError(
                    f"{where}: '{file}' is {_of(*seen[name][:2])} in row {seen[name][2]} and "
                    f"{_of(label, part)} in row {number}; a file has one label and one split"
                )
            again.append(file)
            continue
        seen[name] = (label, part, number)
        full = path.parent / name
        if not os.path.isfile(full):
            missing.append((number, file))
            continue
        listed.setdefault(part, []).append((full, label, os.fsencode(name)))
    if missing and not skip_missing:
        number, file = missing[0]
        raise UsageError(
            f"{where}: {len(missing):,} of the {len(seen):,} files do not exist, such as '{file}' of row "
            f"{number}; paths are relative to {path.parent}; --config.data.on_error=skip leaves such rows out"
        )
    if not listed:
        raise UsageError(f"{where}: it names no image; write one row for each, FILE,LABEL")
    left_out = []
    if missing:
        left_out = [LeftOut("rows whose file does not exist", len(missing), tuple(file for _, file in missing[:3]))]
    if again:
        left_out.append(LeftOut("rows that name a file again", len(again), tuple(again[:3])))
    return arrange(path.parent, listed, left_out)


def _of(label: str, part: str) -> str:
    return f"'{label}' ({part})"


def _rows(path: Path, where: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(number, {'file', 'label', 'split'}) of each row, numbered as the file's lines are, the first as 1."""
    try:
        text = read_regular(path, _MOST_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{where}: the table cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UsageError(f"{where}: the table is not UTF-8; save it as 'CSV UTF-8'") from None
    read = _json_rows if path.suffix.lower() in (".jsonl", ".ndjson") else _csv_rows
    found = False
    for number, values in read(text, where):
        found = True
        yield number, values
    if not found:
        raise UsageError(f"{where}: the table has no rows")


def _csv_rows(text: str, where: str) -> Iterator[tuple[int, dict[str, str]]]:
    heading = text.partition("\n")[0]
    delimiter = max(",;\t", key=heading.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        names = _columns(next(reader, []), where)
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield (
                    reader.line_num,
                    {
                        name: cells[place].strip() if place is not None and place < len(cells) else ""
                        for name, place in names.items()
                    },
                )
    except csv.Error as error:
        raise UsageError(f"{where}: line {reader.line_num} is no CSV ({error})") from None


def _json_rows(text: str, where: str) -> Iterator[tuple[int, dict[str, str]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise UsageError(f"{where}: line {number} is not JSON") from None
        if not isinstance(row, dict):
            raise UsageError(f'{where}: line {number} is no object; write {{"file": "1.jpg", "label": "cat"}}')
        keys = [str(key) for key in row]
        places = _columns(keys, f"{where}: line {number}")
        values = list(row.values())
        yield (
            number,
            {
                name: "" if place is None else _text(values[place], f"{where}: line {number}")
                for name, place in places.items()
            },
        )


def _text(value: Any, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    if type(value) is int:
        return str(value)
    raise UsageError(f"{where}: {json.dumps(value)[:40]} is neither text nor a whole number")


def _columns(heading: list[str], where: str) -> dict[str, int | None]:
    """{'file': place, 'label': place, 'split': place or None}."""
    known = [cell.strip().lower() for cell in heading]
    found = {
        name: next((known.index(word) for word in words if word in known), None) for name, words in _COLUMNS.items()
    }
    for name in ("file", "label"):
        if found[name] is None:
            have = ", ".join(cell for cell in heading) or "nothing"
            raise UsageError(f"{where}: there is no column '{name}'; the first line must be file,label (it has {have})")
    return found
