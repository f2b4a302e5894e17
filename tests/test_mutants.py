"""The mutants of tests/mutants.py fit the code: their lines and their tests exist."""

import ast
from pathlib import Path

import pytest
from mutants import MUTANTS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_has_its_line_and_its_tests(name):
    mutant = MUTANTS[name]
    assert (ROOT / mutant.file).read_text().count(mutant.line) == 1
    ast.parse((ROOT / mutant.file).read_text().replace(mutant.line, mutant.mistake))
    for test in mutant.tests:
        file, _, function = test.partition("::")
        tree = ast.parse((ROOT / file).read_text())
        assert not function or function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
