"""Rows of predictions in files: CSV, JSON lines and Parquet hold the same."""

import csv
import json
import sys

import pytest

from jaxvit.errors import UsageError
from jaxvit.trained.prediction import Prediction
from jaxvit.trained.rows import output_file, writing

SAID = [
    Prediction("a/=1.png", (("cat", 0.75), ("dog", 0.25)), "cat"),
    Prediction("caf\udce9.png", (("dog", 0.5), ("cat", 0.5))),
    Prediction("b.png", error="it is empty"),
]


def write(file, said=SAID):
    with writing(output_file(str(file)), 2) as add:
        for each in said:
            add(each)
        assert not file.exists()  # until all of them are written
    return file


def test_the_three_kinds_hold_the_same(tmp_path):
    rows = list(csv.DictReader(write(tmp_path / "x.csv").open(encoding="utf-8")))
    assert [row["file"] for row in rows] == ["a/=1.png", "caf\\udce9.png", "b.png"]
    assert [row["true"] for row in rows] == ["cat", "", ""] and rows[2]["error"] == "it is empty"
    lines = [json.loads(line) for line in write(tmp_path / "x.jsonl").read_text().splitlines()]
    assert lines[0] == {"file": "a/=1.png", "top": [["cat", 0.75], ["dog", 0.25]], "true": "cat"}
    assert lines[2] == {"file": "b.png", "error": "it is empty"}
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(write(tmp_path / "x.PARQUET")).to_pylist()
    assert [row["file"] for row in table] == [row["file"] for row in rows]
    assert table[0]["true"] == "cat" and table[1]["true"] is None and table[2]["error"] == "it is empty"
    for i, row in enumerate(rows[:2]):
        assert [table[i][name] for name in ("class1", "class2")] == [row["class1"], row["class2"]]
        assert table[i]["probability1"] == float(row["probability1"]) == lines[i]["top"][0][1]
    assert table[2]["class1"] is None and table[2]["probability1"] is None


def test_rows_of_parquet_are_written_in_groups(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    file = write(tmp_path / "x.parquet", SAID[:1] * 9000)
    assert parquet.ParquetFile(file).metadata.num_row_groups == 3
    assert parquet.read_metadata(file).num_rows == 9000


def test_an_error_leaves_the_file_as_it_was(tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("mine")
    with pytest.raises(ValueError, match="broken"), writing(output_file(str(file)), 2) as add:
        add(SAID[0])
        raise ValueError("broken")
    assert file.read_text() == "mine" and [*tmp_path.iterdir()] == [file]


def test_mistakes_are_one_line(tmp_path, monkeypatch):
    (tmp_path / "x.csv").mkdir()
    for name, says in (
        ("x.xml", r"must end in .csv, .jsonl or .parquet"),
        ("no/x.csv", "there is no folder"),
        ("x.csv", "this is a folder"),
    ):
        with pytest.raises(UsageError, match=says):
            output_file(str(tmp_path / name))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"x.parquet needs pyarrow: pip install 'jaxvit\[parquet\]'"):
        output_file(str(tmp_path / "x.parquet"))
