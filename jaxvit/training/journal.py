"""Where metrics go: a small list of writers that anybody can extend.

A writer has `write(record)`, `flush()` and `close()`. A record is a flat dict with 'step', 'epoch', 'split' and
numbers. To add one, write such a class and name it in `open_writers`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from jaxvit.errors import UsageError, nearest
from jaxvit.files import is_number, make_folder, naming, parse_json, read_regular, sync_folder, write_text
from jaxvit.training.trackers import TRACKERS, MLflow, WeightsAndBiases

_MOST_BYTES = 1 << 31  # of a metrics.jsonl that is read

Record = dict[str, Any]


class Writer(Protocol):
    """What the journal asks of a writer."""

    def write(self, record: Record) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """metrics.jsonl: one JSON object a line. Reopened at a step, it drops what is written again.

    Args:
      path: of the file; made when missing.
      resume_step: what came after it is dropped.
      again: splits whose records at that very step are, too.
    """

    def __init__(self, path: Path, resume_step: int, again: Sequence[str] = ("test",)):
        kept = [
            record
            for record in read_jsonl(path)
            if record["step"] < resume_step or (record["step"] == resume_step and record["split"] not in again)
        ]
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._path, self._file = path, path.open("a")
        sync_folder(path.parent)  # without it, a power cut could bring the old file back, or none

    def write(self, record: Record) -> None:
        # JSON knows no NaN and no infinity.
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        with naming(self._path):
            self._file.write(json.dumps(clean) + "\n")

    def flush(self) -> None:
        with naming(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        try:
            self.flush()
        finally:
            with contextlib.suppress(OSError):  # what could not be written just now
                self._file.close()


class TensorBoard:
    """Event files, one scalar 'split/metric' each.

    Written in this thread: tensorboardX's own SummaryWriter leaves it to another, which a full disk kills, and whose
    queue its flush does not wait for.
    """

    def __init__(self, directory: Path, resume_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        make_folder(directory)
        own = f".{os.getpid()}.{time.monotonic_ns()}"  # two starts in one second must not share a file
        self._new_event = event_pb2.Event
        self._events = EventsWriter(str(directory / "events"), own)
        (self._file,) = directory.glob(f"events.*{own}")
        # Has TensorBoard drop what earlier files hold from this step on: it is written again.
        restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(resume_step + 1, session_log=restart)

    def _add(self, step: int, **content: Any) -> None:
        with naming(self._file):
            self._events.write_event(self._new_event(wall_time=time.time(), step=step, **content))

    def write(self, record: Record) -> None:
        from tensorboardX.summary import scalar

        for name, value in _numbers(record).items():
            self._add(record["step"], summary=scalar(f"{record['split']}/{name}", value))

    def flush(self) -> None:
        with naming(self._file):
            self._events.flush()
            with self._file.open("rb") as file:
                os.fsync(file.fileno())

    def close(self) -> None:
        try:
            with naming(self._file):
                self._events.close()
        finally:
            with contextlib.suppress(OSError):
                if not self._file.stat().st_size:  # the disk took nothing
                    self._file.unlink()


class Journal:
    """Several writers as one."""

    def __init__(self, writers: Sequence[Writer]):
        self._writers = tuple(writers)

    def write(self, step: int, epoch: float, split: str, values: dict[str, Any]) -> None:
        record = {"step": step, "epoch": round(epoch, 4), "split": split, **values}
        for writer in self._writers:
            writer.write(record)

    def flush(self) -> None:
        """Before a checkpoint is made: what it has seen must be on disk."""
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        with contextlib.ExitStack() as stack:  # each of them, also where one fails
            for writer in self._writers:
                stack.callback(writer.close)


WRITERS = ("jsonl", "tensorboard", *TRACKERS)


def check_writers(names: Sequence[str]) -> None:
    """Raises UsageError for a writer that does not exist or whose package is not installed."""
    for name in names:
        if name not in WRITERS:
            raise UsageError(f"config.log.writers: there is no writer '{name}'{nearest(name, WRITERS)}")
        if name in TRACKERS and importlib.util.find_spec(name) is None:
            raise UsageError(f"config.log.writers: '{name}' is not installed; pip install {name}, or leave it out")


def open_writers(
    names: Sequence[str],
    workdir: Path,
    *,
    resume_step: int,
    name: str,
    config: dict[str, Any],
    again: Sequence[str] = ("test",),
) -> list[Writer]:
    """The writers named in ``config.log.writers``; `check_writers` has passed them. `again`: see `JsonLines`."""
    makers = {
        "jsonl": lambda: JsonLines(workdir / "metrics.jsonl", resume_step, again),
        "tensorboard": lambda: TensorBoard(workdir / "tensorboard", resume_step),
        "wandb": lambda: WeightsAndBiases(workdir, name, config),
        "mlflow": lambda: MLflow(workdir, name, config),
    }
    return [makers[writer]() for writer in names]


def read_jsonl(path: Path) -> list[Record]:
    """All whole records of a metrics.jsonl; a last line cut off by a crash is left out.

    Raises:
      UsageError: a line before that is no record.
    """
    if not path.exists():
        return []
    try:
        *lines, last = read_regular(path, _MOST_BYTES).split(b"\n")
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})") from None
    records = []
    for number, line in enumerate(lines, 1):
        record = _parsed(line)
        if record is None:
            raise UsageError(
                f"{path}, line {number}: this is no line of metrics; the file is damaged: put a copy of it back, or "
                "delete that line"
            )
        records.append(record)
    record = _parsed(last)
    return records if record is None else [*records, record]


def deciding_validations(records: Sequence[Record]) -> list[Record]:
    """Of a run's records the validations that its weights are chosen by: where an average of the weights is kept, that
    average's.
    """
    averaged = [record for record in records if record["split"] == "validation_ema"]
    return averaged or [record for record in records if record["split"] == "validation"]


def _parsed(line: bytes) -> Record | None:
    """A line's record; None if it is none."""
    try:
        record = parse_json(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("split"), str):
        return None
    numbers = all(value is None or is_number(value) for key, value in record.items() if key != "split")
    placed = type(record.get("step")) is int and record["step"] >= 0 and is_number(record.get("epoch"), 0)
    return record if numbers and placed else None


def _numbers(record: Record) -> dict[str, float]:
    return {k: v for k, v in record.items() if k not in ("step", "split") and isinstance(v, int | float)}
