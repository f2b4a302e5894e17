"""What the README shows, works."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from jaxvit.data.builders import PREPARABLE

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("jaxvit ")]
PYTHON = blocks("python")


def test_there_is_something_to_test():
    assert len(COMMANDS) >= 6 and len(PYTHON) >= 2


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs(command, tmp_path):
    words = shlex.split(command, comments=True)[1:]
    if words[:2] == ["data", "prepare"]:  # needs a network, or an archive; tests/data has its own
        assert words[2] in PREPARABLE
        return
    if words[0] == "train" and "--dry_run" not in words:
        words.append("--dry_run")
    # The README's own model lies in the working folder, as it would for a reader.
    (tmp_path / "my_model.py").write_text(next(block for block in PYTHON if "my_model.py" in block))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "jaxvit", *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("code", [block for block in PYTHON if "my_model.py" not in block])
def test_every_python_block_runs(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_page_that_is_linked_exists():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"
