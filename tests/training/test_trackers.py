"""Weights & Biases and MLflow as they are, offline and on a local database, where they are installed."""

from __future__ import annotations

import os
import struct
import sys
import time
from pathlib import Path

import jax
import pytest
from tiny import tiny_config

import jaxvit
from jaxvit.errors import StoppedError, UsageError
from jaxvit.training.trackers import MLflow, Tracker, WeightsAndBiases, reach_trackers

CONFIG = {
    "seed": 3,
    "train": {"duration": "2 epochs", "hooks": ()},
    "long": "x" * 9000,
    "many": {str(i): i for i in range(130)},
}


@pytest.fixture
def nobody(tmp_path, monkeypatch):
    """An environment in which nothing of a tracker is set up."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.chdir(tmp_path)
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()  # it reads the environment once a process
    return monkeypatch


@pytest.fixture
def database(nobody, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    nobody.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return mlflow


class Away(Tracker):
    """A tracker whose server is away for the first calls."""

    def __init__(self, directory: Path, calls: int):
        super().__init__("away", directory)
        self.calls, self.sent, self.ended = calls, [], None

    def _send(self, step, values):
        self.calls -= 1
        if self.calls >= 0:
            raise ConnectionError("nobody is there")
        self.sent.append((step, values))

    def _end(self, error):
        self.ended = error


def record(step, split="train"):
    return {"step": step, "epoch": step / 4, "split": split, "loss": 1 / step, "empty": None}


def test_what_is_not_taken_waits_and_the_training_goes_on(tmp_path, capsys):
    tracker = Away(tmp_path, calls=2)
    for step in (1, 2, 3):
        tracker.write(record(step))
    assert [step for step, _ in tracker.sent] == [1, 2, 3]
    assert tracker.sent[0][1] == {"train/epoch": 0.25, "train/loss": 1.0}
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "metrics of step 1 are not taken (ConnectionError: nobody is there)" in err


def test_at_the_end_it_is_told_what_was_never_taken(tmp_path, capsys):
    tracker = Away(tmp_path, calls=9)
    tracker.write(record(1))
    tracker.write(record(2))
    with pytest.raises(StoppedError):
        try:
            raise StoppedError("stopped", 75)
        finally:
            tracker.close()
    assert isinstance(tracker.ended, StoppedError)
    assert "2 records, from step 1 on, are in metrics.jsonl only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "variable", "says"), [("wandb", None, "log in"), ("mlflow", "MLFLOW_TRACKING_URI", "127")]
)
def test_one_that_cannot_be_reached_is_one_line_before_the_folder_is_made(nobody, tmp_path, name, variable, says):
    pytest.importorskip(name)
    if variable:
        nobody.setenv(variable, "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(UsageError) as error, jax.numpy_dtype_promotion("standard"):
        jaxvit.train(tiny_config(log__writers=("jsonl", name)), tmp_path / "run")
    line = str(error.value)
    assert f"config.log.writers: '{name}'" in line and says in line and "leave it out" in line and "\n" not in line
    assert not (tmp_path / "run").exists()


def test_mlflow_gets_steps_and_the_config_and_goes_on_in_the_same_run(database, tmp_path, capsys):
    workdir = tmp_path / "run"
    config = tiny_config(train__duration="1 epochs", log__writers=("jsonl", "mlflow"))
    with jax.numpy_dtype_promotion("standard"):
        jaxvit.train(config, workdir)
        config.train.duration = "2 epochs"
        jaxvit.train(config, workdir)
    client = database.MlflowClient()
    (run,) = client.search_runs(["0"])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.info.run_id == (workdir / "mlflow_run_id").read_text()
    params = run.data.params
    assert (params["model.dim"], params["train.duration"], params["data.dir"]) == ("8", "1 epochs", "")
    assert run.data.tags["config.train.duration"] == "2 epochs"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    records = list(jaxvit.History(workdir)["train"]["loss"])
    assert [point.step for point in history] == [4, 8]
    assert [point.value for point in history] == pytest.approx(records)
    assert capsys.readouterr().err == ""


def test_mlflow_cuts_what_is_too_long_and_says_how_a_run_ended(database, tmp_path):
    with pytest.raises(StoppedError):
        tracker = MLflow(tmp_path, "name", CONFIG)
        try:
            raise StoppedError("stopped", 75)
        finally:
            tracker.close()
    run = database.MlflowClient().get_run((tmp_path / "mlflow_run_id").read_text())
    assert run.info.status == "KILLED" and len(run.data.params) == 134
    assert run.data.params["long"] == "x" * 5999 + "…" and run.data.params["many.129"] == "129"
    reach_trackers(["mlflow"], tmp_path)
    (tmp_path / "mlflow_run_id").write_text("0123456789abcdef")
    with pytest.raises(UsageError, match="0123456789abcdef"):
        reach_trackers(["mlflow"], tmp_path)


def offline_records(folder):
    """Records in W&B's files of each run, which have blocks of 32 KiB like LevelDB's logs."""
    from wandb.proto import wandb_internal_pb2

    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime_ns):
        data, at, part = file.read_bytes(), 7, b""
        while at < len(data):
            if (left := 32768 - at % 32768) < 7:
                at += left
                continue
            size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
            part, at = part + data[at + 7 : at + 7 + size], at + 7 + size
            if kind in (1, 4):  # all of it, or its last part
                found = wandb_internal_pb2.Record()
                found.ParseFromString(part)
                yield found
                part = b""


def test_wandb_gets_steps_and_the_config_and_goes_on_in_the_same_run(nobody, tmp_path):
    pytest.importorskip("wandb")
    nobody.setenv("WANDB_MODE", "offline")
    reach_trackers(["wandb"], tmp_path)
    for steps in ((1, 2), (3,)):
        time.sleep(1.1)  # W&B names the folder of a start by the second
        tracker = WeightsAndBiases(tmp_path, "name", CONFIG)
        for step in steps:
            tracker.write(record(step))
            tracker.write(record(step, "validation"))
        tracker.close()
    found = list(offline_records(tmp_path))
    runs = [each.run for each in found if each.WhichOneof("record_type") == "run"]
    assert {(run.run_id, run.display_name) for run in runs} == {((tmp_path / "wandb_run_id").read_text(), "name")}
    assert {"seed": "3"}.items() <= {item.key: item.value_json for item in runs[0].config.update}.items()
    lines = [
        {item.key or ".".join(item.nested_key): item.value_json for item in each.history.item}
        for each in found
        if each.WhichOneof("record_type") == "history"
    ]
    assert [line["step"] for line in lines] == ["1", "1", "2", "2", "3", "3"]
    assert lines[1]["validation/loss"] == "1"
    assert [each.metric.step_metric for each in found if each.WhichOneof("record_type") == "metric"] == ["step", "step"]
