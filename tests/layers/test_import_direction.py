"""Imports point one way: ops < layers < models."""

import ast
from pathlib import Path

import jaxvit

ALLOWED = {
    "ops": {"ops"},
    "layers": {"ops", "layers"},
    "models": {"ops", "layers", "models"},
}
OUTSIDE = {"ops": {"jax", "numpy"}, "layers": {"jax", "numpy", "flax"}, "models": {"jax", "numpy", "flax"}}
STANDARD = {"ast", "collections", "dataclasses", "difflib", "functools", "importlib", "math", "typing"}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_imports_point_one_way():
    root = Path(jaxvit.__file__).parent
    seen = 0
    for package, allowed in ALLOWED.items():
        for path in (root / package).glob("*.py"):
            for name in imported(path):
                top, *rest = name.split(".")
                seen += 1
                if top == "jaxvit":
                    assert rest[0] in allowed, f"{path} imports {name}"
                else:
                    assert top in OUTSIDE[package] | STANDARD, f"{path} imports {name}"
    assert seen > 50
