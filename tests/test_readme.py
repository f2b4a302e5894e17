"""Everything that the README and the pages show works."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import jax
import pytest
from tiny import tiny_config

import jaxvit
from jaxvit.cli.data import main
from jaxvit.cli.export import main as export
from jaxvit.data.preparable import PREPARABLE
from jaxvit.reproduce.rows import read_rows
from jaxvit.reproduce.table import newest, results_of

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/extend.md", "docs/scale.md", "docs/performance.md", "docs/export.md")


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.S)


def commands(page):
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    return [line for line in lines if line.startswith("jaxvit ")]


def own_files(page):
    """{name: text} of the users' files on a page, for the working folder."""
    found = {}
    for block in blocks(page, "python"):
        name = re.match(r"# (my_\w+\.py)\n", block)
        if name:
            found[name[1]] = block
    return found


def test_there_is_something_to_test():
    assert len(commands("README.md")) >= 6 and len(blocks("README.md", "python")) >= 2
    assert len(own_files("docs/extend.md")) >= 5
    assert all(text.count("\n") < 30 for text in own_files("docs/extend.md").values())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run and a folder of exported images, under the names that the pages use."""
    folder = tmp_path_factory.mktemp("trained")
    with jax.numpy_dtype_promotion("standard"):
        jaxvit.train(tiny_config(train__duration="1 steps"), folder / "runs" / "digits")
    main(["export", "digits", "--n=3", str(folder / "images")])
    export([f"--workdir={folder / 'runs' / 'digits'}"])
    return folder


def run_command(words, folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "jaxvit", *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize(("page", "command"), [(page, command) for page in PAGES for command in commands(page)])
def test_every_command_runs(page, command, tmp_path, request):
    """Commands of docs/extend.md train; all others are dry runs."""
    words = shlex.split(command, comments=True)[1:]
    if words[:2] == ["data", "prepare"]:  # needs a network, or an archive; tests/data has its own
        assert words[2] in PREPARABLE
        return
    if (
        words[0] in ("train", "sweep", "benchmark", "reproduce", "export")
        and "--dry_run" not in words
        and page != "docs/extend.md"
    ):
        words.append("--dry_run")
    if "--distributed" in words:  # the cluster is missing here
        words.remove("--distributed")
    words = [word for word in words if not word.startswith(("--coordinator", "--num_processes", "--process_id"))]
    for name, text in own_files(page).items():
        (tmp_path / name).write_text(text)
    if words[0] in ("evaluate", "predict", "report", "export") or any(word.startswith("--file=") for word in words):
        if page == "docs/extend.md":  # of the run that the page has trained
            (workdir,) = (word for word in words if word.startswith("--workdir="))
            (before,) = (c for c in commands(page) if c.startswith("jaxvit train ") and f" {workdir} " in c)
            run_command(shlex.split(before)[1:], tmp_path)
        else:
            shutil.copytree(request.getfixturevalue("trained"), tmp_path, dirs_exist_ok=True)
    if any(word.startswith("--queue=") for word in words):
        (tmp_path / "results").mkdir()
        shutil.copy(ROOT / "results" / "queue.toml", tmp_path / "results")
    done = run_command(words, tmp_path)
    if words[0] == "train" and page == "docs/extend.md":
        assert "test accuracy" in done.stdout


SNIPPETS = [block for page in PAGES for block in blocks(page, "python") if not block.startswith("# my_")]


@pytest.mark.parametrize("code", SNIPPETS)
def test_every_python_block_runs(code, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_results_shown_are_those_of_the_table():
    lines, rows = results_of(ROOT / "results" / "results.csv"), read_rows(ROOT / "results" / "rows.toml")

    def shown(name):
        runs = newest(lines, rows[name])
        assert all(", 2 cores" in run["hardware"] or run["hardware"].endswith(", 1 core") for run in runs)
        return f"{100 * fmean(float(run['top1']) for run in runs):.2f} ({len(runs)})" if runs else "not run"

    text = (ROOT / "README.md").read_text()
    table = re.findall(r"^\| `(\w+)` \| [^|]+ \| (\S+) \| ([^|]+) \| ([^|]+) \|$", text, re.M)
    assert len(table) == 5
    for name, document, written, better in table:
        assert document == f"{100 * rows[name].document['top1']:.2f}", name
        assert (written, better) == (shown(name), shown(f"{name}_best")), name


def test_every_page_that_is_linked_exists():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"
