"""An installed jaxvit, without a checkout: content of the wheel, and use in an empty folder."""

import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("jaxvit", "configs", "results", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


def test_setup_names_every_package():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    named = setup["options"]["packages"].split()
    there = [str(file.parent.relative_to(ROOT)).replace("/", ".") for file in (ROOT / "jaxvit").rglob("__init__.py")]
    assert named == sorted([*there, "jaxvit.configs", "jaxvit.results"])
    folders = {file.parent for file in (ROOT / "jaxvit").rglob("*.py")}
    assert all((folder / "__init__.py").exists() for folder in folders)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy, since builds leave folders behind and include those of older builds."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "sources" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / "sources")
    words = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", folder / "sources"]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """call(words, folder) runs the jaxvit of the wheel in a separate environment.

    That environment has the wheel and nothing else; it finds jax and the others in the environment of the tests, which
    a .pth file adds behind its own packages. To install them once more would take minutes and a network. The checkout
    is out of its reach: neither PYTHONPATH nor the .pth files of the tests' environment count in it.
    """
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    words = ["--quiet", "--disable-pip-version-check", "install", "--no-deps", "--no-index", wheel]
    subprocess.run([sys.executable, "-m", "pip", f"--python={python}", *words], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    theirs = [path for path in sys.path if path.endswith("-packages")]
    (packages / "of_the_tests.pth").write_text("\n".join(theirs))

    def call(*words, cwd, program="jaxvit"):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [folder / "bin" / program, *words]
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = call("-c", "import jaxvit.configs; print(jaxvit.configs.__file__)", cwd=folder, program="python").strip()
    assert where == str(packages / "jaxvit" / "configs" / "__init__.py")
    return call


@pytest.mark.slow
def test_the_wheel_has_all_that_the_verbs_need(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, inside in (("jaxvit", "jaxvit"), ("configs", "jaxvit/configs"), ("results", "jaxvit/results")):
        files = [file.relative_to(ROOT / folder) for file in (ROOT / folder).rglob("*.py")]
        assert files and {f"{inside}/{file}" for file in files} <= names
    assert {"jaxvit/py.typed", "jaxvit/results/rows.toml", "jaxvit/exports/loaders/run_onnx.py"} <= names
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"jaxvit"}


@pytest.mark.slow
def test_it_works_in_an_empty_folder(installed, tmp_path):
    (tmp_path / "digits.py").write_text("raise SystemExit('a file of the working folder ran')")
    short = "--config.train.duration=2 epochs"
    for name in ("digits", "digits:cct"):
        said = installed("train", f"--config={name}", f"--workdir=runs/{name}", short, cwd=tmp_path)
        assert "test accuracy " in said and (tmp_path / "runs" / name / "result.json").exists()
    said = installed("sweep", "--config=token_learner:place_digits", "--dry_run", cwd=tmp_path)
    assert "4 cells" in said and "fails" not in said
    for words, program in ((["reproduce", "--list"], "jaxvit"), (["-m", "jaxvit", "reproduce", "--list"], "python")):
        assert "imagenet_token_learner_b16" in installed(*words, cwd=tmp_path, program=program)
    installed("export", "--workdir=runs/digits", cwd=tmp_path)
    assert (tmp_path / "runs" / "digits" / "export" / "run_stablehlo.py").exists()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["digits.py", "runs"]
