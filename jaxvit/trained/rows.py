"""Writes rows of predictions and features to a stream, or to a CSV, JSON lines or Parquet file.

Only a few thousand rows are in memory at any time.
"""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from jaxvit.errors import UsageError
from jaxvit.files import local_path, make_writable, replaced
from jaxvit.shown import csv_cell, terminal
from jaxvit.trained.prediction import Prediction

ENDINGS = (".csv", ".jsonl", ".parquet")
_GROUP = 4096  # rows of a Parquet file that are written together
Write = Callable[[Prediction], None]


def write_table(stream: TextIO, top: int) -> Write:
    """Returns a function that writes a prediction as a line of text, and skips unreadable files."""

    def write(said: Prediction) -> None:
        if not said.error:  # errors go to stderr
            stream.write(terminal(f"{said.file}: {_confidences(said)}") + "\n")

    return write


def _confidences(said: Prediction) -> str:
    classes = ", ".join(f"{name} {100 * probability:.2f}%" for name, probability in said.top)
    if said.right is None:
        return classes
    return f"{classes}  ({'right' if said.right else f'wrong, it is {said.truth}'})"


def write_csv(stream: TextIO, top: int) -> Write:
    """Returns a function that writes a CSV row; the columns are file, true, class1, probability1, …, error."""
    rows = csv.writer(stream, lineterminator="\n")
    places = range(1, top + 1)
    rows.writerow(["file", "true", *(f"{kind}{i}" for i in places for kind in ("class", "probability")), "error"])

    def write(said: Prediction) -> None:
        pairs = [value for name, probability in said.top for value in (name, f"{probability:.6g}")]
        cells = [said.file, said.truth, *pairs, *[""] * (2 * top - len(pairs)), said.error]
        rows.writerow(map(csv_cell, cells))

    return write


def write_jsonl(stream: TextIO, top: int) -> Write:
    """Returns a function that writes a JSON line: {"file", "top": [[class, probability], …]} or {"file", "error"}.

    A line also has "true" if the true class is known.
    """

    def write(said: Prediction) -> None:
        line: dict[str, Any] = {"file": said.file}
        line |= {"error": said.error} if said.error else {"top": [list(pair) for pair in said.top]}
        line |= {"true": said.truth} if said.truth else {}
        stream.write(json.dumps(line) + "\n")

    return write


STREAMS = {"table": write_table, "csv": write_csv, "jsonl": write_jsonl}


def output_file(name: str, endings: tuple[str, ...] = ENDINGS) -> Path:
    """Checks the value of `--out` before anything is computed.

    Raises:
      UsageError: another ending, no such folder, a folder that cannot be written, or a package that is missing.
    """
    file = Path(local_path(name))
    if file.suffix.lower() not in endings:
        raise UsageError(f"--out={name}: the name must end in {', '.join(endings[:-1])} or {endings[-1]}")
    if not file.parent.is_dir():
        raise UsageError(f"--out={name}: there is no folder {file.parent}")
    if file.is_dir():
        raise UsageError(f"--out={name}: this is a folder; name a file")
    make_writable(file.parent, f"choose another folder for --out={name}")
    if file.suffix.lower() == ".parquet":
        import_pyarrow(f"--out={name}")
    return file


def import_pyarrow(what: str) -> Any:
    """Imports the package pyarrow with its module `parquet`.

    Args:
      what: the start of the error message.

    Raises:
      UsageError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise UsageError(f"{what} needs pyarrow: pip install 'jaxvit[parquet]'") from None
    return pyarrow


@contextlib.contextmanager
def writing(file: Path, top: int) -> Iterator[Write]:
    """Yields a function that writes predictions into a file, in the format of its extension.

    The file is complete, and has its name, when the block exits.

    Args:
      file: path that `output_file` returned.
      top: number of classes per image.
    """
    ending = file.suffix.lower()
    with replaced(file) as beside:
        if ending == ".parquet":
            with parquet_rows(beside, _schema(top)) as write_row:
                yield lambda said: write_row(_as_row(said, top))
            return
        with beside.open("w", encoding="utf-8", newline="") as stream:
            yield STREAMS[ending[1:]](stream, top)


def _schema(top: int) -> dict[str, str]:
    kinds = {"class": "string", "probability": "double"}
    places = {f"{kind}{i}": dtype for i in range(1, top + 1) for kind, dtype in kinds.items()}
    return {"file": "string", "true": "string", **places, "error": "string"}


def _as_row(said: Prediction, top: int) -> list[Any]:
    pairs = [value for pair in said.top for value in pair]
    return [said.file, said.truth or None, *pairs, *[None] * (2 * top - len(pairs)), said.error or None]


@contextlib.contextmanager
def parquet_rows(path: Path, columns: dict[str, Any]) -> Iterator[Callable[[list[Any]], None]]:
    """Yields a function that adds a row to a Parquet file; rows are written in groups of a few thousand.

    Args:
      path: the file.
      columns: {name: pyarrow type or its name}. In strings, bytes that are not UTF-8 are written as in '\\xe9'.
    """
    import pyarrow
    from pyarrow import parquet

    types = [pyarrow.type_for_alias(kind) if isinstance(kind, str) else kind for kind in columns.values()]
    schema = pyarrow.schema(list(zip(columns, types, strict=True)))
    waiting: list[list[Any]] = []

    def flush() -> None:
        arrays = [
            pyarrow.array([_as_utf8(value) for value in column], kind)
            for column, kind in zip(zip(*waiting, strict=True), types, strict=True)
        ]
        writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))
        waiting.clear()

    def write(row: list[Any]) -> None:
        waiting.append(row)
        if len(waiting) >= _GROUP:
            flush()

    with parquet.ParquetWriter(path, schema) as writer:
        yield write
        if waiting:
            flush()


def _as_utf8(value: Any) -> Any:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
