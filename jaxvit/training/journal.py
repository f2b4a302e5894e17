"""Writers of metrics: metrics.jsonl, TensorBoard, Weights & Biases, MLflow.

A writer has `write(record)`, `flush()` and `close()`. A record is a flat dict with 'step', 'epoch', 'split' and
numbers. To add a writer, write such a class and add it to `open_writers`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias, cast

from jaxvit.errors import UsageError, nearest
from jaxvit.files import is_number, make_folder, naming, parse_json, read_regular, sync_folder, write_text
from jaxvit.training.trackers import TRACKERS, MLflow, WeightsAndBiases

_MOST_BYTES = 1 << 31  # size limit of a metrics.jsonl

# 'step', 'epoch', 'split' and numbers, of which None stands for one that is not finite.
Record: TypeAlias = "dict[str, float | str | None]"


class Writer(Protocol):
    """The interface of a writer."""

    def write(self, record: Record) -> None:
        """Writes one record; it may stay in a buffer."""

    def flush(self) -> None:
        """Writes the buffer to disk."""

    def close(self) -> None:
        """Flushes and releases the file or connection."""


class JsonLines:
    """Writes metrics.jsonl, one JSON object per line. A resumed run drops the records that it will write again.

    Args:
      path: the file; created if missing.
      resume_step: records of later steps are dropped.
      again: splits whose records of `resume_step` itself are dropped too.
    """

    def __init__(self, path: Path, resume_step: int, again: Sequence[str] = ("test",)):
        kept = [
            record
            for record in read_jsonl(path)
            if _step(record) < resume_step or (_step(record) == resume_step and record["split"] not in again)
        ]
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._path, self._file = path, path.open("a")
        sync_folder(path.parent)  # else a power cut could restore the old file, or none

    def write(self, record: Record) -> None:
        """See `Writer`."""
        # JSON has no NaN and no infinity.
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        with naming(self._path):
            self._file.write(json.dumps(clean) + "\n")

    def flush(self) -> None:
        """See `Writer`."""
        with naming(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """See `Writer`."""
        try:
            self.flush()
        finally:
            with contextlib.suppress(OSError):  # the flush has raised already
                self._file.close()


class TensorBoard:
    """Writes TensorBoard event files, with one scalar 'split/metric' per number.

    It writes in the calling thread. tensorboardX's SummaryWriter uses a background thread, which dies on a full disk
    and whose queue `flush` does not wait for.
    """

    def __init__(self, directory: Path, resume_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        make_folder(directory)
        own = f".{os.getpid()}.{time.monotonic_ns()}"  # two starts within a second must not share a file
        # protobuf makes the classes at import, so type checkers do not see them.
        self._new_event = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]
        log = event_pb2.SessionLog  # pyright: ignore[reportAttributeAccessIssue]
        self._events = EventsWriter(str(directory / "events"), own)
        (self._file,) = directory.glob(f"events.*{own}")
        # Makes TensorBoard drop the events from this step on in earlier files: they are written again.
        self._add(resume_step + 1, session_log=log(status=log.START))

    def _add(self, step: int, **content: object) -> None:
        with naming(self._file):
            self._events.write_event(self._new_event(wall_time=time.time(), step=step, **content))

    def write(self, record: Record) -> None:
        """See `Writer`."""
        from tensorboardX.summary import scalar

        for name, value in _numbers(record).items():
            self._add(_step(record), summary=scalar(f"{record['split']}/{name}", value))

    def flush(self) -> None:
        """See `Writer`."""
        with naming(self._file):
            self._events.flush()
            with self._file.open("rb") as file:
                os.fsync(file.fileno())

    def close(self) -> None:
        """See `Writer`."""
        try:
            with naming(self._file):
                self._events.close()
        finally:
            with contextlib.suppress(OSError):
                if not self._file.stat().st_size:  # the disk was full
                    self._file.unlink()


class Journal:
    """Writes each record to several writers."""

    def __init__(self, writers: Sequence[Writer]):
        self._writers = tuple(writers)

    def write(self, step: int, epoch: float, split: str, values: Mapping[str, float]) -> None:
        """Writes the metrics of a split: 'steps', 'train', 'validation', 'validation_ema' or 'test'."""
        record = {"step": step, "epoch": round(epoch, 4), "split": split, **values}
        for writer in self._writers:
            writer.write(record)

    def flush(self) -> None:
        """Writes everything to disk; called before each checkpoint, so that no metrics of a saved step are lost."""
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        """Closes all writers, even if one of them fails."""
        with contextlib.ExitStack() as stack:
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
    config: dict[str, object],
    again: Sequence[str] = ("test",),
) -> list[Writer]:
    """Opens the writers of a run.

    Args:
      names: names from ``config.log.writers``, checked by `check_writers`.
      workdir: folder of the run.
      resume_step: step that the run resumes from; 0 for a new run.
      name: name of the run, for W&B and MLflow.
      config: config of the run, for W&B and MLflow.
      again: as for `JsonLines`.
    """
    makers = {
        "jsonl": lambda: JsonLines(workdir / "metrics.jsonl", resume_step, again),
        "tensorboard": lambda: TensorBoard(workdir / "tensorboard", resume_step),
        "wandb": lambda: WeightsAndBiases(workdir, name, config),
        "mlflow": lambda: MLflow(workdir, name, config),
    }
    return [makers[writer]() for writer in names]


def read_jsonl(path: Path) -> list[Record]:
    """Reads all complete records of a metrics.jsonl; leaves out a last line that a crash cut off.

    Raises:
      UsageError: another line is not a record.
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
                f"{path}, line {number}: this is not a line of metrics; the file is damaged: put a copy of it back, or "
                "delete that line"
            )
        records.append(record)
    record = _parsed(last)
    return records if record is None else [*records, record]


def deciding_validations(records: Sequence[Record]) -> list[Record]:
    """Returns the validations that choose the best weights: those of the EMA weights if kept, else the raw ones."""
    averaged = [record for record in records if record["split"] == "validation_ema"]
    return averaged or [record for record in records if record["split"] == "validation"]


def _parsed(line: bytes) -> Record | None:
    """Returns the record in a line; None if there is none."""
    try:
        record = parse_json(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("split"), str):
        return None
    numbers = all(value is None or is_number(value) for key, value in record.items() if key != "split")
    placed = type(record.get("step")) is int and record["step"] >= 0 and is_number(record.get("epoch"), 0)
    return record if numbers and placed else None


def _step(record: Record) -> int:
    return cast(int, record["step"])


def _numbers(record: Record) -> dict[str, float]:
    return {k: v for k, v in record.items() if k not in ("step", "split") and isinstance(v, int | float)}
