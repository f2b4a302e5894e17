"""The house rules that a machine can check: which package imports which, and what `import jaxvit` costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jaxvit"

# A package may import from these packages of ours only.
ALLOWED = {
    "ops": {"ops"},
    "layers": {"ops", "layers"},
    "models": {"ops", "layers", "models", "own_code"},
    "data": {"data", "errors", "own_code"},
    "training": {"training", "errors"},
    "export": {
        *("export", "errors", "ops", "layers", "models", "data", "training", "_version", "config", "rows"),
        *("loading", "run_directory"),
    },
    "figures": {"figures", "errors", "ops", "layers", "models", "training", "summary"},
}


def our_imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "jaxvit":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("jaxvit."))


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_point_one_way(package):
    for file in (PACKAGE / package).rglob("*.py"):
        if file.name == "__main__.py":  # a verb, and verbs know all
            continue
        if file.parent.name == "loaders":  # scripts of their own
            continue
        wrong = set(our_imports(file)) - ALLOWED[package]
        assert not wrong, f"{file.relative_to(PACKAGE)} must not import jaxvit.{', jaxvit.'.join(sorted(wrong))}"


def test_every_package_has_a_rule():
    assert {p.parent.name for p in PACKAGE.glob("*/__init__.py")} == set(ALLOWED)


# What the model side may import from outside, beside the standard library.
OUTSIDE = {"ops": {"jax", "numpy"}, "layers": {"jax", "numpy", "flax"}, "models": {"jax", "numpy", "flax"}}


@pytest.mark.parametrize("package", sorted(OUTSIDE))
def test_the_model_side_needs_little(package):
    for file in (PACKAGE / package).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            outside = {name.split(".")[0] for name in names} - {"jaxvit"} - set(sys.stdlib_module_names)
            assert outside <= OUTSIDE[package], file


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import jaxvit", "jax flax numpy ml_collections"),
        (
            "import jaxvit.layers",
            "tensorflow_datasets grain orbax.checkpoint ml_collections jaxvit.training jaxvit.data",
        ),
    ],
)
def test_what_an_import_does_not_pull_in(statement, absent):
    code = f"{statement}\nimport sys\nprint([m for m in {absent.split()} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
