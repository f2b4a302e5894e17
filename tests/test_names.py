"""Names of jaxvit in docstrings, comments and pages exist."""

import importlib
import inspect
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = "jaxvit/**/*.py configs/*.py benchmarks/*.py benchmarks/*.md docs/*.md *.md"
FILES = [file for pattern in FOLDERS.split() for file in sorted(ROOT.glob(pattern))]


def names_in(text):
    """Dotted names of the package in code spans, such as `jaxvit.load`."""
    for span in re.findall(r"`([^`\n]+)`", text):
        yield from re.findall(r"(?<![\w./-])jaxvit(?:\.[A-Za-z_]\w*)+", span)


def leads_somewhere(name):
    """True if a name is a module, or an attribute of a module, class or dataclass."""
    parts, found = name.split("."), None
    for used in range(1, len(parts) + 1):
        try:
            found = importlib.import_module(".".join(parts[:used]))
        except ModuleNotFoundError as error:
            if not name.startswith(error.name or ""):
                return True  # what the module itself needs is not installed here
            used -= 1
            break
    for part in parts[used:]:
        if part in getattr(found, "__annotations__", {}):  # a field without a default
            return True
        if not hasattr(found, part):
            return False
        found = inspect.getattr_static(found, part) if inspect.isclass(found) else getattr(found, part)
    return True


def test_a_name_that_is_not_there_is_found():
    assert [*names_in("`jaxvit.load`, ``jaxvit.run.train.train(config)``, `a/jaxvit.x`, jaxvit.y")] == [
        "jaxvit.load",
        "jaxvit.run.train.train",
    ]
    for name in ("jaxvit.load", "jaxvit.training.checkpoint", "jaxvit.trained.load.Loaded.step", "jaxvit.train"):
        assert leads_somewhere(name), name
    for name in ("jaxvit.loading", "jaxvit.train.train", "jaxvit.trained.load.Loaded.steps", "jaxvit.plan.resolve"):
        assert not leads_somewhere(name), name


def test_every_name_leads_somewhere():
    named = {(name, str(file.relative_to(ROOT))) for file in FILES for name in names_in(file.read_text())}
    there = {name: leads_somewhere(name) for name in sorted({name for name, _ in named})}
    assert len(there) > 30
    wrong = [f"{name} in {file}" for name, file in sorted(named) if not there[name]]
    assert not wrong, "; ".join(wrong)
