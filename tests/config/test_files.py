"""Values of --config: a config of jaxvit, or a file."""

import importlib

import pytest

from jaxvit.config.files import load_config_file, packaged_configs, split_spec
from jaxvit.config.identity import config_hash
from jaxvit.errors import UsageError
from jaxvit.files import packaged


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A working folder with files that must not run; one has the name of a config of jaxvit."""
    for name in ("digits.py", "mine.py", "digits"):
        (tmp_path / name).write_text("raise AssertionError('it ran')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def test_a_bare_name_is_the_packaged_config(trap):
    folder = packaged("configs")
    assert {"digits", "cct", "photos"} <= set(packaged_configs()) and "__init__" not in packaged_configs()
    for name in ("digits", "digits:cct"):
        file, _, variant = name.partition(":")
        path = f"{folder / file}.py" + f":{variant}" * bool(variant)
        assert config_hash(load_config_file(name)) == config_hash(load_config_file(path))


@pytest.mark.parametrize("spec", ["./digits.py", "digits.py", "./digits.py:cct"])
def test_a_path_is_the_file(trap, spec):
    with pytest.raises(UsageError, match=r"the file does not run: AssertionError: it ran"):
        load_config_file(spec)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (
            "digitz",
            r"jaxvit has no config 'digitz' \(did you mean 'digits'\?\); it has cct, .* \./NAME\.py",
        ),
        ("mine", r"has no config 'mine'; for the file of that name in this folder, write --config=\./mine\.py$"),
        ("mine:small", r"write --config=\./mine\.py:small$"),
        ("digits:cc", r"no variant 'cc' \(did you mean 'cct'\?\)"),
        ("__init__", r"jaxvit has no config '__init__'"),
        ("..", r"jaxvit has no config '\.\.'"),
        ("elsewhere/digits.py:cct", r"there is no file 'elsewhere/digits\.py'; .* write --config=digits:cct$"),
        ("./min.py", r"there is no file '\./min\.py' \(did you mean 'mine\.py'\?\)"),
        ("~nobody_of_that_name/x.py", "~nobody_of_that_name/x.py: there is no such user or home folder"),
        (f"{'x' * 300}.py", "a name in this path has 303 bytes"),
        ("x" * 300, "jaxvit has no config 'x"),
    ],
)
def test_a_wrong_name_is_one_line_with_the_remedy(trap, spec, says):
    with pytest.raises(UsageError, match=says) as error:
        load_config_file(spec)
    assert "\n" not in str(error.value) and str(error.value).startswith(f"--config={spec}: ")


@pytest.mark.parametrize(
    "words", [["train"], ["sweep", "--over=seed=1,2"], ["benchmark"], ["data", "show"], ["data", "benchmark"]]
)
def test_every_verb_has_the_rule(trap, words):
    main = importlib.import_module(f"jaxvit.cli.{words[0]}").main
    with pytest.raises(UsageError, match=r"write --config=\./mine\.py"):
        main([*words[1:], "--config=mine"])
    with pytest.raises(UsageError, match="no variant 'none'; digits has vit"):
        main([*words[1:], "--config=digits:none"])


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("digits", ("digits", "")),
        ("digits:cct", ("digits", "cct")),
        ("a/b.py", ("a/b.py", "")),
        ("a/b.py:c", ("a/b.py", "c")),
        ("3:30/b.py", ("3:30/b.py", "")),
        ("3:30/b.py:c", ("3:30/b.py", "c")),
        ("b:c.py", ("b:c.py", "")),
        ("a/b:c", ("a/b", "c")),
    ],
)
def test_where_the_variant_begins(spec, parts):
    assert split_spec(spec) == parts


def test_a_path_with_a_colon(tmp_path):
    (tmp_path / "3:30").mkdir()
    (tmp_path / "3:30" / "mine.py").write_text(
        "from jaxvit.config import base_config\nMODELS = {'a': 'vit', 'b': 'cct'}\n"
        "def get_config(variant='a'): return base_config(MODELS[variant])\n"
    )
    assert load_config_file(f"{tmp_path}/3:30/mine.py:b").model.name == "cct"
