"""Bad inputs as data (bad_inputs.toml): each is one line on stderr that names the thing, and leaves nothing behind.

All run in this process, through the function that the console script calls, in a folder that holds:

run/      a finished run of three steps        photos/   two folders of images, cat and dog
hub/      what `export --to=hub` made of it    empty/    nothing
note.txt  a text file                          mine.py   a config file of the user's own
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config

import jaxvit
from jaxvit.cli import command_line
from jaxvit.exports import hub
from jaxvit.exports.model import ExportModel
from jaxvit.files import CHECKSUM, checksum

GROUPS = tomllib.loads(Path(__file__).with_suffix(".toml").with_stem("bad_inputs").read_text())["group"]
CASES = [(group, *case) for group in GROUPS for case in group["cases"]]
MINE = """
from jaxvit.config import base_config


def get_config(variant="small"):
    return {"small": base_config, "broken": lambda: 1 / 0, "none": dict}[variant]()


VARIANTS = ("small", "broken", "none")
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """The folder that every case gets a copy of."""
    folder = tmp_path_factory.mktemp("bad_inputs")
    with jax.numpy_dtype_promotion("standard"):
        jaxvit.train(tiny_config(train__duration="3 steps"), folder / "run")
        hub.write(ExportModel.of(jaxvit.load(folder / "run"), "float32"), folder / "hub")
    for name in ("cat", "dog"):
        (folder / "photos" / name).mkdir(parents=True)
        Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(folder / "photos" / name / "1.png")
    (folder / "empty").mkdir()
    (folder / "note.txt").write_text("a note\n")
    (folder / "mine.py").write_text(MINE)
    (folder / "queue.toml").write_text("run = 3\n")
    return folder


def changed(text: str, where: str, value: str) -> str:
    """A JSON text with `value`, which need not be JSON, at `where`: 'config.data.name'; its checksum is made to fit."""
    found = json.loads(text)
    found.pop(CHECKSUM, None)
    *above, last = where.split(".")
    inner = found
    for name in above:
        inner = inner[int(name)] if isinstance(inner, list) else inner[name]
    inner[last] = "@here@"
    text = json.dumps(found).replace('"@here@"', value)
    try:
        return json.dumps({**json.loads(text), CHECKSUM: checksum(json.loads(text))})
    except (ValueError, RecursionError):  # it is no JSON any more
        return text


def put(file: Path, content: str) -> None:
    """Changes a file: 'KEY: VALUE' a key of a JSON file, 'hex: 00 ff' and 'text: …' all of it, 'gone' takes it away."""
    kind, _, value = content.partition(": ")
    # Escapes make long ones of short ones: 'times 9: [' is '[[[[[[[[['.
    if value.startswith("times "):
        count, _, value = value.removeprefix("times ").partition(": ")
        value *= int(count)
    new = {"hex": lambda: bytes.fromhex(value), "text": value.encode, "gone": bytes}.get(
        kind, lambda: changed(file.read_text(), kind, value).encode()
    )()
    file.unlink(missing_ok=True)  # it is a link to the template's
    if content != "gone":
        file.write_bytes(new)


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    paths = [path for path in folder.rglob("*") if path.name != "__pycache__" and path.suffix != ".pyc"]
    return {str(path.relative_to(folder)): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths}


def outcome(words, capsys) -> tuple[int, list[str]]:
    """(exit code, lines on stderr) of a command; a traceback is many lines."""
    try:
        with jax.numpy_dtype_promotion("standard"):
            command_line.main(words)
    except SystemExit as left:
        return left.code, capsys.readouterr().err.splitlines()
    raise AssertionError("a command always ends the process")


@pytest.mark.parametrize(("group", "more", "says"), [(group, more, says) for group, more, *says in CASES])
def test_a_bad_input_is_one_line_and_leaves_nothing(group, more, says, template, tmp_path, capsys, monkeypatch):
    shutil.copytree(template, tmp_path / "there", copy_function=os.link)
    monkeypatch.chdir(tmp_path / "there")
    monkeypatch.setattr(command_line.os, "_exit", sys.exit)
    words = shlex.split(group["command"])
    if "file" in group:
        put(Path(group["file"]), more)
    elif "variable" in group:
        monkeypatch.setenv(group["variable"], more)
    else:
        words += [word.replace("@300@", "x" * 300).replace("@5000@", "x/" * 2500) for word in shlex.split(more)]
    before = tree(Path())
    code, lines = outcome(words, capsys)
    assert len(lines) == 1, lines
    assert lines[0].startswith("jaxvit: ")
    for word in says:
        assert word in lines[0]
    assert code == group.get("code", 2)
    assert tree(Path()) == before


def test_there_are_many():
    assert len(CASES) >= 150
    used = {shlex.split(group["command"])[0] for group in GROUPS}
    assert used == {*command_line.VERBS}
