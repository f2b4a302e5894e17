"""docs/reading.md names functions that exist, gives their correct line counts, and stays short.

python tests/test_reading.py    updates the counts
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reading.md"
MOST = 1200
ROW = re.compile(
    r"^\| \d+ \| \[`(?P<file>[\w/]+\.py)`\]\(\.\./(?P=file)\) \| (?P<names>.+?) \| (?P<lines>\d+) \|", re.M
)
TOTAL = re.compile(r"(?P<total>[\d,]+) lines in all")


def length_of(file, names):
    """Lines of the functions, methods ('Class.method') and classes of a file that are named."""
    tree = ast.parse((ROOT / file).read_text())
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}": inner for inner in node.body if isinstance(inner, ast.FunctionDef)}
    missing = [name for name in names if name not in found]
    assert not missing, f"{file} has no {missing}"
    first = {name: min([found[name].lineno, *(d.lineno for d in found[name].decorator_list)]) for name in names}
    return sum(found[name].end_lineno - first[name] + 1 for name in names)


def counts_of(text):
    """[(file, lines that the page states, lines that there are)]."""
    return [
        (row["file"], int(row["lines"]), length_of(row["file"], re.findall(r"`([\w.]+)`", row["names"])))
        for row in ROW.finditer(text)
    ]


def test_the_path_is_there_and_short():
    text = PAGE.read_text()
    counts = counts_of(text)
    assert len(counts) == len(re.findall(r"^\| \d+ \|", text, re.M)) > 15
    assert [(file, stated) for file, stated, _ in counts] == [(file, there) for file, _, there in counts], (
        "renew the counts: python tests/test_reading.py"
    )
    total = int(TOTAL.search(text)["total"].replace(",", ""))
    assert total == sum(there for *_, there in counts) < MOST


def renew():
    """Writes the counts that are true into the page."""
    text = PAGE.read_text()
    for row in reversed(list(ROW.finditer(text))):
        there = length_of(row["file"], re.findall(r"`([\w.]+)`", row["names"]))
        text = f"{text[: row.start('lines')]}{there}{text[row.end('lines') :]}"
    total = sum(there for *_, there in counts_of(text))
    found = TOTAL.search(text)
    PAGE.write_text(f"{text[: found.start('total')]}{total:,}{text[found.end('total') :]}")
    return total


if __name__ == "__main__":
    print(renew(), file=sys.stderr)
