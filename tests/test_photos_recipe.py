"""benchmarks/photos_recipe.py: sets that `--data` reads, commands that run, a complete table."""

import importlib.util
from pathlib import Path

import pytest

from jaxvit.cli.train import main
from jaxvit.files import write_json

FILE = Path(__file__).parents[1] / "benchmarks" / "photos_recipe.py"


@pytest.fixture
def recipe(monkeypatch):
    spec = importlib.util.spec_from_file_location("photos_recipe", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SETS", {"tiny": ("digits", (3, 1))})
    return module


def test_a_set_is_written_once_and_trained_by_the_command(recipe, tmp_path, capsys):
    recipe.make_set("tiny", tmp_path / "tiny", images=8)
    files = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.png"))
    assert len(files) == 16 and files[0].startswith("tiny/1/") and files[-1].startswith("tiny/3/")
    recipe.make_set("tiny", tmp_path / "tiny", images=9)
    assert len([*tmp_path.rglob("*.png")]) == 16
    words = recipe.command("tiny", "plain", tmp_path, "")
    assert words[1:4] == ["-m", "jaxvit", "train"] and main([*words[4:], "--dry_run"]) == 0
    assert "fold 0 of 5 is test" in capsys.readouterr().out


def test_the_table_has_what_is_finished(recipe, tmp_path):
    result = {
        "test": {"top1": 0.5, "loss": 1.25, "std": {"top1": 0.0123}, "n": 5, "count": 500},
        "params": 1234,
        "steps": 2000,
        "seconds": {"train": 50.0},
    }
    (tmp_path / "tiny-vit").mkdir()
    write_json(tmp_path / "tiny-vit" / "result.json", result)
    (row,) = recipe.rows(tmp_path)
    assert (row["variant"], row["accuracy"], row["sd"], row["train_seconds_a_fold"]) == ("vit", 50.0, 1.23, 10.0)
    assert recipe.markdown([row]).splitlines() == [
        "| variant | parameters | tiny |",
        "|---|---|---|",
        "| vit | 1,234 | 50.0 ± 1.23 |",
    ]
