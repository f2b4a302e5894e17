"""metrics.jsonl neither loses nor repeats; TensorBoard files hold the scalars."""

import json
import math
import os
import stat

import pytest

from jaxvit.errors import UsageError
from jaxvit.training.journal import (
    Journal,
    JsonLines,
    TensorBoard,
    check_writers,
    deciding_validations,
    read_jsonl,
)


def write(path, steps, resume=0):
    journal = Journal([JsonLines(path, resume)])
    for step in steps:
        journal.write(step, step / 10, "train", {"loss": 1.0 / step})
    journal.close()


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path):
    file = tmp_path / "metrics.jsonl"
    write(file, range(1, 8))
    write(file, range(5, 11), resume=4)
    assert [r["step"] for r in read_jsonl(file)] == list(range(1, 11))


def test_a_line_cut_off_by_a_crash_is_left_out(tmp_path):
    file = tmp_path / "metrics.jsonl"
    write(file, [1, 2])
    file.write_text(file.read_text() + '{"step": 3, "lo')
    assert [r["step"] for r in read_jsonl(file)] == [1, 2]
    write(file, [3], resume=3)
    assert [r["step"] for r in read_jsonl(file)] == [1, 2, 3]


def test_every_line_is_strict_json(tmp_path):
    file = tmp_path / "metrics.jsonl"
    journal = Journal([JsonLines(file, 0)])
    journal.write(1, 0.1, "train", {"loss": math.nan, "top1": math.inf, "count": 3})
    journal.close()
    record = json.loads(file.read_text(), parse_constant=pytest.fail)
    assert record == {"step": 1, "epoch": 0.1, "split": "train", "loss": None, "top1": None, "count": 3}


def scalars(folder):
    """{tag: [(step, value), …]} of all event files, and the steps that they say are written again from."""
    from tensorboardX.proto.event_pb2 import Event

    found, restarts = {}, []
    for file in sorted(folder.glob("events.*"), key=lambda file: int(file.name.rpartition(".")[2])):
        data = file.read_bytes()
        while data:  # TFRecord: length, its checksum, payload, its checksum
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            if event.HasField("session_log"):
                restarts.append(event.step)
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
            data = data[16 + length :]
    return found, restarts


def test_tensorboard_scalars_are_on_disk_once_flushed(tmp_path):
    writer = TensorBoard(tmp_path / "t", 0)
    writer.write({"step": 7, "epoch": 0.5, "split": "validation", "loss": 0.25})
    writer.flush()  # not closed: a kill comes now
    assert scalars(tmp_path / "t") == ({"validation/epoch": [(7, 0.5)], "validation/loss": [(7, 0.25)]}, [1])
    again = TensorBoard(tmp_path / "t", 6)  # in the same second
    again.write({"step": 7, "epoch": 0.5, "split": "validation", "loss": 0.25})
    again.close()
    assert scalars(tmp_path / "t")[0]["validation/loss"] == [(7, 0.25)] * 2
    assert scalars(tmp_path / "t")[1] == [1, 7]


def full_disk(path):
    return open("/dev/full", "wb")


def test_a_full_disk_reaches_whoever_writes_to_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setattr("tensorboardX.record_writer.open_file", full_disk)
    (tmp_path / "events").touch()
    monkeypatch.setattr("pathlib.Path.glob", lambda self, pattern: [tmp_path / "events"])
    writer = TensorBoard(tmp_path, 0)
    writer.write({"step": 1, "epoch": 0.5, "split": "train", "loss": 0.25})
    with pytest.raises(OSError, match="No space left on device"):
        writer.flush()


def test_the_cut_back_file_is_on_disk_before_it_takes_the_old_ones_place(tmp_path, monkeypatch):
    write(tmp_path / "metrics.jsonl", [1, 2])
    seen = []
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "folder"}
    monkeypatch.setattr("os.fsync", lambda number: seen.append(kinds[stat.S_IFMT(os.fstat(number).st_mode)]))
    replace = os.replace
    monkeypatch.setattr("os.replace", lambda *names: (seen.append("moved"), replace(*names)))
    JsonLines(tmp_path / "metrics.jsonl", 1)
    assert seen == ["file", "moved", "folder"]


def test_a_writer_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install mlflow"):
        check_writers(["jsonl", "mlflow"])


def test_weights_are_chosen_by_their_average_where_one_is_kept():
    plain = [{"split": split, "step": step} for step in (1, 2) for split in ("train", "validation")]
    averaged = [{"split": "validation_ema", "step": step} for step in (1, 2)]
    assert deciding_validations(plain) == [plain[1], plain[3]]
    assert deciding_validations([*plain[:2], averaged[0], *plain[2:], averaged[1]]) == averaged
    assert deciding_validations(plain[:1]) == []
