"""Labels from a table: CSV and JSON lines, paths relative to the table, and each mistake in one line."""

import json

import pytest
from photos import photo

from jaxvit.data.label_table import read_label_table
from jaxvit.errors import UsageError


@pytest.fixture
def folder(tmp_path):
    for name in ("1.png", "more/2.png", "3.png"):
        photo(tmp_path / "images" / name)
    return tmp_path / "images"


def classes_of(found):
    return {
        part: {str(file.relative_to(found.root)): found.class_names[n] for file, n in files}
        for part, files in found.parts.items()
    }


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "file,label\n1.png,cat\nmore/2.png,dog\n./3.png,cat\n"),
        ("labels.csv", "\ufeffLabel;Filename\r\ncat;1.png\r\ndog;more/2.png\r\ncat; 3.png\r\n\r\n"),
        ("labels.tsv", "label\timage\ncat\t1.png\ndog\tmore/2.png\ncat\t3.png\n"),
        (
            "labels.jsonl",
            '{"file": "1.png", "label": "cat"}\n{"label": "dog", "file": "more/2.png"}\n'
            '\n{"file_name": "3.png", "class": "cat"}',
        ),
    ],
)
def test_a_table_of_files_and_labels(folder, name, text):
    (folder / name).write_text(text)
    found = read_label_table(folder / name, "--data=x")
    assert classes_of(found) == {"train": {"1.png": "cat", "more/2.png": "dog", "3.png": "cat"}}
    assert found.class_names == ("cat", "dog") and not found.left_out


def test_a_third_column_says_the_part(folder):
    (folder / "l.csv").write_text("file,label,split\n1.png,7,train\nmore/2.png,8,Val\n3.png,7,test\n")
    assert classes_of(read_label_table(folder / "l.csv", "--data=x")) == {
        "train": {"1.png": "7"},
        "validation": {"more/2.png": "8"},
        "test": {"3.png": "7"},
    }


def test_rows_that_say_the_same_again_count_once(folder):
    (folder / "l.csv").write_text("file,label\n1.png,cat\n./1.png,cat\n3.png,dog\n")
    found = read_label_table(folder / "l.csv", "--data=x")
    assert len(found.parts["train"]) == 2 and "rows that name a file again: 1 (./1.png)" in map(str, found.left_out)


def test_missing_files_are_refused_or_left_out(folder):
    (folder / "l.csv").write_text("file,label\n1.png,cat\nlost.png,cat\n3.png,dog\n")
    with pytest.raises(UsageError, match=r"1 of the 3 files do not exist, such as 'lost.png' of row 3"):
        read_label_table(folder / "l.csv", "--data=x")
    found = read_label_table(folder / "l.csv", "--data=x", skip_missing=True)
    assert len(found.parts["train"]) == 2 and str(found.left_out[0]) == "rows whose file does not exist: 1 (lost.png)"


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("l.csv", b"", "there is no column 'file'"),
        ("l.csv", b"file,label\n", "the table has no rows"),
        ("l.csv", b"1.png,cat\n", "there is no column 'file'; the first line must be file,label"),
        ("l.csv", b"file,label\n1.png,\n", "row 2 has no label"),
        ("l.csv", b"file,label\n1.png\n", "row 2 has no label"),
        ("l.csv", b"file,label\n1.png,cat\n1.png,dog\n", r"is 'cat' \(train\) in row 2 and 'dog' \(train\) in row 3"),
        ("l.csv", b"file,label,split\n1.png,cat,extra\n", "row 2 names the split 'extra'"),
        ("l.csv", b"file,label\n\xff.png,cat\n", "the table is not UTF-8"),
        ("l.jsonl", b'{"file": "1.png"', "line 1 is not JSON"),
        ("l.jsonl", b'["1.png", "cat"]', "line 1 is no object"),
        ("l.jsonl", b'{"file": "1.png", "label": [1]}', r"line 1: \[1\] is neither text nor a whole number"),
        ("l.jsonl", b"[" * 100_000, "line 1 is not JSON"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(folder, name, data, says):
    (folder / name).write_bytes(data)
    with pytest.raises(UsageError, match=says):
        read_label_table(folder / name, "--data=x")


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="the table cannot be read"):
        read_label_table(tmp_path / "l.csv", "--data=x")


def test_numbers_in_json_are_names(folder):
    rows = [{"file": "1.png", "label": 3}, {"file": "3.png", "label": "a\u2028b"}]  # a line end for some, not in JSON
    (folder / "l.jsonl").write_text("\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert read_label_table(folder / "l.jsonl", "--data=x").class_names == ("3", "a\\u2028b")  # escaped
