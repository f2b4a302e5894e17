"""Everything that the README and the pages show works."""

import importlib
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path
from statistics import fmean

import jax
import pytest
from tiny import tiny_config

import jaxvit
from jaxvit.cli.export import main as export
from jaxvit.data.preparable import PREPARABLE
from jaxvit.reproduce.rows import read_rows
from jaxvit.reproduce.table import newest, results_of

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/extend.md", "docs/photos.md", "docs/scale.md", "docs/performance.md", "docs/export.md")
LONG_PAGES = ("docs/extend.md", "docs/scale.md")  # many trainings


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
    """A run and its exported file, under the names that the pages use."""
    folder = tmp_path_factory.mktemp("trained")
    with jax.numpy_dtype_promotion("standard"):
        jaxvit.train(tiny_config(train__duration="1 steps"), folder / "runs" / "digits")
    export([f"--workdir={folder / 'runs' / 'digits'}"])
    for name in ("token_learner", "shiftvit", "cct"):
        shutil.copytree(folder / "runs" / "digits", folder / "runs" / name)
    return folder


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A working folder, with jax's default promotion; modules imported from it are unloaded at the end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] * (page in LONG_PAGES)) for page in PAGES]
)
def test_every_command_of_a_page_runs(page, reader, trained, capsys):
    """A page's commands run in order in one folder; only docs/extend.md trains, others make dry runs."""
    really = page == "docs/extend.md"
    for name, text in own_files(page).items():
        (reader / name).write_text(text)
    if not really:
        shutil.copytree(trained, reader, dirs_exist_ok=True)
        (reader / "runs" / "photos").symlink_to("digits")
        (reader / "results").mkdir()
        queue = (ROOT / "results" / "queue.toml").read_text().split("[[run]]")[:3]  # tests/reproduce reads all of it
        (reader / "results" / "queue.toml").write_text("[[run]]".join(queue))
    for command in commands(page):
        words = shlex.split(command, comments=True)[1:]
        if words[:2] == ["data", "prepare"]:  # needs a network, or an archive; tests/data has its own
            assert words[2] in PREPARABLE
            continue
        if words[0] in ("train", "sweep", "benchmark", "reproduce", "export") and not really:
            words = [*(word for word in words if word != "--dry_run"), "--dry_run"]
        # The cluster is missing here.
        cluster = ("--distributed", "--coordinator", "--num_processes", "--process_id")
        words = [word for word in words if not word.startswith(cluster)]
        if really and "--config=digits" in words and "name=my_model" not in command:
            words.append("--config.model.depth=1")
        code = importlib.import_module(f"jaxvit.cli.{words[0]}").main(words[1:])
        out, err = capsys.readouterr()
        assert code == 0, f"{command}: {err}"
        assert not (really and words[0] == "train") or "test accuracy" in out, command


SNIPPETS = [block for page in PAGES for block in blocks(page, "python") if not block.startswith("# my_")]


@pytest.mark.parametrize("code", SNIPPETS)
def test_every_python_block_runs(code, reader):
    (reader / "block.py").write_text(code)
    runpy.run_path("block.py")


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
