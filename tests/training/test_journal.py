"""metrics.jsonl neither loses nor repeats; TensorBoard files hold the scalars."""

import json
import math

import pytest

from jaxvit.errors import UsageError
from jaxvit.training.journal import Journal, JsonLines, TensorBoard, check_writers, read_jsonl


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


def test_tensorboard_scalars_read_back(tmp_path):
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter  # noqa: F401  (the package really is tensorboardX)

    writer = TensorBoard(tmp_path, 0)
    writer.write({"step": 7, "epoch": 0.5, "split": "validation", "loss": 0.25})
    writer.close()
    (file,) = tmp_path.glob("events.*")
    data, scalars = file.read_bytes(), {}
    while data:  # TFRecord: length, its checksum, payload, its checksum
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        scalars |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
        data = data[16 + length :]
    assert scalars["validation/loss"] == (7, 0.25)


def test_a_writer_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install mlflow"):
        check_writers(["jsonl", "mlflow"])
