"""Type hints: the cores use real types, and an installed jaxvit says that it has them. `.ci/run` runs basedpyright."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORES = ("ops", "layers", "models", "training", "config", "run")


@pytest.mark.parametrize("core", CORES)
def test_any_is_absent(core):
    for file in sorted((ROOT / "jaxvit" / core).glob("*.py")):
        names = {node.id for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Name)}
        assert "Any" not in names, f"{file.relative_to(ROOT)}: name a type, or write object"


def test_the_type_checker_reads_the_cores():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["basedpyright"]
    assert {f"jaxvit/{core}" for core in CORES} <= set(settings["include"])
    assert '"$JAXVIT_VENV/bin/basedpyright"' in (ROOT / ".ci" / "run").read_text()
    assert (ROOT / "jaxvit" / "py.typed").exists()
