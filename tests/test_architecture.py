"""The rules of the architecture: allowed imports between packages, and the cost of an import."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jaxvit"

# One line a package, from the bottom up: what it may import of ours, beside itself. Lazy imports and those under
# TYPE_CHECKING count like all others. Only the command line may import everything.
ALLOWED = {
    "errors": "",
    "shown": "",
    "files": "errors shown",
    "own_code": "errors",
    "ops": "",
    "layers": "ops",
    "models": "own_code ops layers",
    "devices": "errors files",
    "data": "errors shown files own_code ops",
    "training": "errors shown files own_code ops devices",
    "weights": "errors shown files own_code ops layers models data training",
    "config": "errors shown files own_code ops layers models devices data training weights",
    "figures": "errors shown files ops layers models training",
    "run": "errors shown files own_code ops layers models devices data training weights config figures",
    "trained": "errors shown files own_code ops layers models devices data training weights config run",
    "exports": "errors shown files own_code ops layers models devices data weights config run trained",
    "pages": "errors shown files ops layers models devices data training weights config figures run trained",
    "speed": "errors shown files ops layers models devices data training config run trained exports pages",
    "ahead": "errors shown files layers models devices run speed",
    "reproduce": "errors shown files models devices data training config figures run trained speed",
    "cli": "*",
}
FLAT = {"__init__", "__main__", "_version", "errors", "files", "own_code", "shown"}
SCRIPTS = PACKAGE / "exports" / "loaders"  # run by themselves, beside an exported file


def modules():
    """{dotted name: file} of the package, without the scripts."""
    files = (file for file in PACKAGE.rglob("*.py") if SCRIPTS not in file.parents)
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imports_of(file):
    """Modules of jaxvit that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{file}: name what is imported in full"
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "jaxvit":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("jaxvit."))


def package_of(name):
    return name.split(".")[1] if "." in name else ""


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package):
    allowed = {package, "_version", *ALLOWED[package].split()}
    for name, file in modules().items():
        if package_of(name) != package or allowed >= {"*"}:
            continue
        wrong = {package_of(other) for other in imports_of(file)} - allowed
        assert not wrong, f"{file.relative_to(ROOT)} must not import jaxvit.{', jaxvit.'.join(sorted(wrong))}"


def test_the_lines_are_an_order():
    """A package imports only packages above it, and only the command line may import everything."""
    above = []
    for package, allowed in ALLOWED.items():
        assert allowed == "*" or set(allowed.split()) <= set(above), package
        above.append(package)
    assert [package for package, allowed in ALLOWED.items() if allowed == "*"] == ["cli"]


def test_every_package_has_its_line_and_little_lies_flat():
    packages = {file.parent.name for file in PACKAGE.glob("*/__init__.py")}
    flat = {file.stem for file in PACKAGE.glob("*.py")}
    assert flat == FLAT and len(flat) <= 8
    assert packages | (flat - {"__init__", "__main__", "_version"}) == set(ALLOWED)


def test_no_file_imports_itself_by_way_of_others():
    every = modules()
    graph = {}
    for name, file in every.items():
        targets = set()
        for target in imports_of(file):
            # `from jaxvit.a import b`: module a.b if there is one, else module a.
            targets.add(target if target in every else target.rpartition(".")[0])
        graph[name] = {target for target in targets if target in every and target not in (name, "jaxvit")}
    graph.pop("jaxvit")  # lazy: see test_what_an_import_does_not_pull_in
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_verbs_are_leaves():
    """Nothing imports the command line, and no verb imports another."""
    shared = ("jaxvit.cli.command_line", "jaxvit.cli.options", "jaxvit.cli.other_libraries", "jaxvit.cli.streams")
    for name, file in modules().items():
        for target in imports_of(file):
            if target.startswith("jaxvit.cli") and not (name == "jaxvit.__main__" or package_of(name) == "cli"):
                pytest.fail(f"{name} imports {target}")
            if target.startswith("jaxvit.cli.") and not target.startswith(shared):
                pytest.fail(f"{name} imports the verb {target}")


def test_verbs_are_short():
    lengths = {file.name: len(file.read_text().splitlines()) for file in (PACKAGE / "cli").glob("*.py")}
    assert max(lengths.values()) <= 200, lengths


def test_the_page_draws_the_same_house():
    page = (ROOT / "docs" / "architecture.md").read_text()
    for package in ALLOWED:
        assert f"| `{package}" in page, f"docs/architecture.md has no row for {package}"


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
        ("import jaxvit.config", "jax flax tensorflow_datasets orbax.checkpoint"),
    ],
)
def test_what_an_import_does_not_pull_in(statement, absent):
    code = f"{statement}\nimport sys\nprint([m for m in {absent.split()} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def imported(file):
    """Modules that a test imports, those in the programs that it starts too: 'a.b' for `from a.b import c`."""
    text = file.read_text()
    for names in re.findall(r"^\s*(?:from\s+([\w.]+)\s+import\b|import\s+([\w.]+))", text, re.M):
        yield "".join(names)


def test_no_test_imports_another():
    """Shared code is in modules without tests, such as tests/tiny.py: so a change of one test cannot break another."""
    files = sorted((ROOT / "tests").rglob("*.py"))
    tests = {file.stem for file in files if file.stem.startswith("test_")}
    assert len(tests) > 50
    for file in files:
        wrong = {name for name in imported(file) if name.split(".")[-1] in tests}
        assert not wrong, f"{file.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"


def test_tests_of_operations_need_only_operations():
    """So a fault of a layer, a model or a run does not turn them red. PIL and scipy are references for resizing."""
    outside = {"jax", "numpy", "pytest", "PIL", "scipy", *sys.stdlib_module_names}
    for file in (ROOT / "tests" / "ops").glob("*.py"):
        names = [name.split(".") for name in imported(file)]
        wrong = {".".join(name) for name in names if name[0] not in outside and name[:2] != ["jaxvit", "ops"]}
        wrong -= {"jaxvit"} if "from jaxvit import ops\n" in file.read_text() else set()
        assert not wrong, f"{file.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"


# Where a newcomer looks, and what stands there: each is one step from the question.
WALK = {
    "what does Muon train": ("jaxvit.training.muon", "muon_axes"),
    "where do initial values by formula go": ("jaxvit.run.initial_state", "InitialValues"),
    "where is the schedule": ("jaxvit.training.optimizer", "make_schedule"),
    "where does a config key become a number": ("jaxvit.config.plan", "resolve"),
    "what is in a checkpoint": ("jaxvit.training.checkpoint", "Checkpoints"),
    "where would a new pooling go": ("jaxvit.layers.pool", "Pool"),
    "where is a batch put together": ("jaxvit.data.batches", "gather"),
    "where is the step": ("jaxvit.training.step", "train_step"),
    "where is a model's name": ("jaxvit.models.registry", "MODELS"),
    "what does a verb do": ("jaxvit.cli.train", "main"),
}


@pytest.mark.parametrize("question", WALK)
def test_a_newcomer_finds_it_in_one_step(question):
    """The table of questions names a file and a definition that exist."""
    module, name = WALK[question]
    file = modules()[module]
    defined = [
        *(n.name for n in ast.parse(file.read_text()).body if isinstance(n, ast.FunctionDef | ast.ClassDef)),
        *(
            t.id
            for n in ast.parse(file.read_text()).body
            if isinstance(n, ast.Assign | ast.AnnAssign)
            for t in (n.targets if isinstance(n, ast.Assign) else [n.target])
            if isinstance(t, ast.Name)
        ),
    ]
    assert name in defined
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert f"| {question}? | `{name}` in `{file.relative_to(ROOT)}` |" in page
