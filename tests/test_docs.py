"""Files, tests and folders that the pages name exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
# Where a page's path may begin; and what a run, an export or a user makes, which is no file of the project.
BASES = (ROOT, ROOT / "jaxvit", ROOT / "docs", ROOT / "results", ROOT / "benchmarks")
MADE = re.compile(
    r"^(runs|sweeps|RUN|DIR|images|hub|savedmodel|sam|my_|model\.|run_|figures/|evaluation/|metrics/|\.venv)"
)


def paths_in(page):
    """(path, name of a test or '') of every code span that looks like a file of the project."""
    for span in re.findall(r"`([^`\n]+)`", page.read_text()):
        found = re.fullmatch(r"([\w./<>-]+\.(?:py|md|sh|toml|csv|json|cfg))(?:::(\w+))?", span)
        if found and "<" not in span:
            yield found[1], found[2] or ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page):
    for path, test in paths_in(page):
        if "/" not in path or MADE.match(path):
            continue
        files = [base / path for base in BASES if (base / path).is_file()]
        assert files, f"{page.name} names {path}, which is not there"
        if test:
            names = {n.name for n in ast.walk(ast.parse(files[0].read_text())) if isinstance(n, ast.FunctionDef)}
            assert test in names, f"{page.name} names {path}::{test}, which is not there"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


PROMISES = [ROOT / "docs" / "reliability.md", ROOT / "docs" / "trust.md"]


def rows_of_promises(page):
    """(promise, cell with its tests) of every row of a table whose last column is 'shown by'."""
    inside = False
    for line in page.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if not line.startswith("|"):
            inside = False
        elif cells[-1] == "shown by":
            inside = True
        elif inside and not line.startswith("|--"):
            yield cells[0], cells[-1]


def names_of_tests(file):
    tree = ast.parse(file.read_text())
    return {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")}


@pytest.mark.parametrize("page", PROMISES, ids=lambda page: page.name)
def test_every_promise_has_a_test_that_is_there(page):
    rows = list(rows_of_promises(page))
    assert len(rows) > 12
    for promise, cell in rows:
        found, file = 0, ROOT / "tests" / "test_trust.py"
        for span in re.findall(r"`([^`]+)`", cell):
            path, _, name = span.rpartition("::") if "::" in span or span.startswith("test_") else (span, "", "")
            if path and path != "…":
                file = ROOT / path
            assert file.is_file() and file.parts[len(ROOT.parts)] == "tests", f"{page.name}: {promise[:60]}: {span}"
            if not file.name.startswith("test_"):
                continue  # a program beside the tests, which is named too
            names = names_of_tests(file)
            assert name in names if name else names, f"{page.name}: {promise[:60]}: there is no {span}"
            found += 1
        assert found, f"{page.name}: no test is named for: {promise[:80]}"
