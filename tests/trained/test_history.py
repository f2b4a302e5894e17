"""A run's metrics as arrays, and errors for other files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jaxvit import History
from jaxvit.errors import UsageError


def line(step, split="validation", **values):
    return json.dumps({"step": step, "epoch": step / 4, "split": split, **values}) + "\n"


def test_an_array_for_each_metric_of_each_split(tmp_path):
    text = line(4, "train", loss=2.0) + line(4, loss=1.5, top1=0.5) + line(8, "train", loss=1.0) + line(8, loss=0.5)
    (tmp_path / "metrics.jsonl").write_text(text)
    history = History(tmp_path)
    assert list(history) == ["train", "validation"] and repr(history) == "History(train: 2, validation: 2)"
    assert history["train"]["loss"].tolist() == [2.0, 1.0]
    assert history["validation"]["step"].tolist() == [4, 8] and history["validation"]["epoch"].tolist() == [1, 2]
    np.testing.assert_array_equal(history["validation"]["top1"], [0.5, np.nan])


def test_a_split_that_is_not_there(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "epoch": 1, "split": "train", "loss": 1.0}\n')
    with pytest.raises(KeyError, match="no 'test' in this run's metrics; there are train"):
        History(tmp_path)["test"]
    assert "test" not in History(tmp_path)


def test_what_was_not_finite_is_nan(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(line(1, loss=None) + line(2, loss=1.0) + line(1, "test", loss=None))
    history = History(tmp_path)
    for split, values in (("validation", [np.nan, 1.0]), ("test", [np.nan])):
        assert history[split]["loss"].dtype == float
        np.testing.assert_array_equal(history[split]["loss"], values)


def test_a_line_cut_off_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(line(1, loss=1.0) + line(2, loss=0.5)[:-9])
    assert History(tmp_path)["validation"]["step"].tolist() == [1]


@pytest.mark.parametrize(
    "bad",
    [
        b"5\n",
        b"[]\n",
        b'{"step": 1, "epoch": 1}\n',
        b'{"split": "test"}\n',
        b"\xff\xfe{}\n",
        b"[" * 100_000 + b"\n",
        b'{"step": 1, "epoch": 1, "split": "test", "loss": "x"}\n',
        b'{"step": 1, "epoch": 1, "spl\n',
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, bad):
    good = line(1, loss=1.0).encode()
    (tmp_path / "metrics.jsonl").write_bytes(good + bad + good)
    with pytest.raises(UsageError, match=r"metrics.jsonl, line 2: .* delete that line$"):
        History(tmp_path)


def test_a_folder_of_several_seeds_says_which_to_name(tmp_path):
    for name in ("seed_10", "seed_9", "seed_x"):
        (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match=r"holds a run for each of 2 seeds; name one, such as .*seed_9$"):
        History(tmp_path)
    with pytest.raises(UsageError, match="there are no metrics here"):
        History(tmp_path / "seed_9")
