"""The source commit recorded for a run."""

import subprocess

from jaxvit.run import environment
from jaxvit.run.environment import source_commit


def git(folder, *words):
    who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    done = subprocess.run(["git", "-C", folder, *who, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_commit_of_the_checkout_that_the_package_lies_in(tmp_path, monkeypatch):
    package = tmp_path / "checkout" / "jaxvit" / "__init__.py"
    package.parent.mkdir(parents=True)
    package.write_text("")
    monkeypatch.setattr(environment, "INSTALLED_IN", package.parents[1])
    assert source_commit() == ""
    git(package.parent, "init", "--quiet", "..")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "--quiet", "--message=one")
    commit = git(package.parent, "rev-parse", "--short", "HEAD")
    assert source_commit() == commit
    (tmp_path / "checkout" / "notes.txt").write_text("not of the source")
    assert source_commit() == commit
    package.write_text("x = 1")
    assert source_commit() == f"{commit}-dirty"


def test_no_commit_of_another_project_that_has_it_installed(tmp_path, monkeypatch):
    package = tmp_path / "project" / "site-packages" / "jaxvit" / "__init__.py"
    package.parent.mkdir(parents=True)
    package.write_text("")
    git(tmp_path, "init", "--quiet", "project")
    monkeypatch.setattr(environment, "INSTALLED_IN", package.parents[1])
    assert source_commit() == ""
