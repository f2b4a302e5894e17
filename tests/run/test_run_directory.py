"""Damaged and foreign files in a run folder give one line with the file and the remedy."""

from __future__ import annotations

import json
import shutil

import jax
import pytest
from tiny import tiny_config

import jaxvit
import jaxvit.cli.evaluate
from jaxvit.errors import UsageError
from jaxvit.files import read_json
from jaxvit.run.folder import read_config, read_environment, read_result


@pytest.fixture(autouse=True)
def _optax_mixes_dtypes():
    with jax.numpy_dtype_promotion("standard"):
        yield


def settings(**changes):
    return tiny_config(train__duration="1 epochs", log__writers=("jsonl",), **changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    with jax.numpy_dtype_promotion("standard"):
        return workdir, jaxvit.train(settings(), workdir)


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"test": {',
        "{}",
        "[]",
        "5",
        "\ud8ff",
        "[" * 100_000,
        '{"test": {}}',
        {"test": []},
        {"seconds": {}},
        {"test": {"top1": 1.0}},
        {"test": {"top1": "x", "top5": 1.0, "loss": 0.0, "count": 1}},
        {"steps": "12"},
    ],
)
def test_a_damaged_result(run, trained, text):
    if isinstance(text, dict):
        text = json.dumps(trained[1] | text)
    (run / "result.json").write_text(text, errors="surrogatepass")
    for read in (lambda: jaxvit.train(settings(), run), lambda: read_result(run)):
        with pytest.raises(
            UsageError, match=r"run/result.json cannot be read \(.*\); it is damaged: delete it"
        ) as error:
            read()
        assert "\n" not in str(error.value)


def test_deleting_a_damaged_file_helps_as_the_line_says(run, trained):
    """Without its result, a run is only tested again; without the environment, its next start counts as the first."""
    (run / "result.json").unlink()
    assert jaxvit.train(settings(), run)["test"] == trained[1]["test"]
    assert len(read_environment(run)["starts"]) == 2
    for name in ("result.json", "environment.json"):
        (run / name).unlink()
    assert jaxvit.train(settings(), run)["test"] == trained[1]["test"]
    assert len(read_environment(run)["starts"]) == 1


@pytest.mark.parametrize(
    "text", ['{"data": {', "[]", '{"data": []}', '{"data": {"train": 1}, "starts": []}', '{"data": {}}']
)
def test_a_damaged_environment(run, text):
    (run / "result.json").unlink()
    (run / "environment.json").write_text(text)
    with pytest.raises(UsageError, match=r"run/environment.json cannot be read \(.*\); it is damaged: delete it"):
        jaxvit.train(settings(), run)
    with pytest.raises(UsageError, match=r"run/environment.json cannot be read"):
        jaxvit.cli.evaluate.main([f"--workdir={run}"])


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"config": []}',
        '{"config": {}}',
        '{"config": {"model": 1}}',
        {"config": {"a.b": 1}},
        {"extensions": 1},
    ],
)
def test_a_damaged_config(run, text):
    if isinstance(text, dict):
        there = read_json(run / "config.json")  # without its checksum
        text = json.dumps({**there, **text, "config": {**there["config"], **text.get("config", {})}})
    (run / "config.json").write_text(text)
    for read in (lambda: jaxvit.train(settings(), run), lambda: jaxvit.load(run), lambda: read_config(run)):
        with pytest.raises(UsageError, match=r"run/config.json cannot be read \(.*\); .* use a new --workdir"):
            read()


def test_files_that_cannot_be_opened(run):
    (run / "result.json").unlink()
    (run / "result.json").mkdir()
    with pytest.raises(UsageError, match=r"result.json cannot be read \(Is a directory\)"):
        jaxvit.train(settings(), run)


def test_damaged_metrics_are_not_thrown_away(run):
    (run / "result.json").unlink()
    file = run / "metrics.jsonl"
    before = b"5\n" + file.read_bytes()
    file.write_bytes(before)
    with pytest.raises(UsageError, match=r"metrics.jsonl, line 1: .* delete that line"):
        jaxvit.train(settings(), run)
    assert file.read_bytes() == before
