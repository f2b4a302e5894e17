"""The experiment on transfer, with tiny models on the digits."""

import csv

import jax
import pytest

from jaxvit.errors import UsageError
from jaxvit.reproduce import transfer
from jaxvit.reproduce.results import Results

CONFIG = """
from itertools import product

from jaxvit.config.keys import base_config

STEPS = {{2: {steps}, 3: 3}}


def get_config(variant):
    task, model, way = variant.split("_")
    config = base_config("vit", patch=4, dim=8, depth=1, heads=2)
    config.data.classes = (0, 2, 4, 6) if way == "pretrain" else (1, 3, 5)
    config.data.test = "test[:40]" if way == "pretrain" else "test[:30]"
    config.train.batch_size, config.train.duration = 6, "3 steps"
    config.checkpoint.every = "3 steps"
    return config


VARIANTS = tuple("_".join(v) for v in product(("cifar100", "fashion"), ("vit",), ("pretrain", "finetune", "scratch")))
"""


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(transfer, "SIZES", (2, 3))
    monkeypatch.setattr(transfer, "SEEDS", (0, 1))
    monkeypatch.setattr(transfer, "MODELS", ("vit",))
    monkeypatch.setattr(transfer, "TASKS", {"cifar100": "some digits to others"})
    monkeypatch.setattr(transfer.cells, "__defaults__", (0, ("cifar100",), ("vit",)))
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_every_cell_is_run_once_and_stands_in_the_table(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "transfer.py").write_text(CONFIG.format(steps=2))
    results, runs = tmp_path / "results", tmp_path / "runs"
    found = Results(results, tmp_path / "configs", {})
    said = list(transfer.transfer(found, runs))
    assert len(said) == 1 + 2 * 2 * 3 + 1
    lines = transfer.read_lines(results)
    assert len(lines) == 13 and {line["way"] for line in lines} == {"pretrain", *transfer.WAYS}
    tuned = [line for line in lines if line["way"] == "finetune"]
    assert len({line["source"] for line in tuned}) == 1 and all(len(line["source"]) == 16 for line in tuned)
    assert {line["steps"] for line in lines if line["per_class"] == "2" and line["way"] != "probe"} == {"2"}
    table = (results / "transfer.md").read_text()
    assert "not run" not in table and "fine-tuned minus scratch" in table
    # The mean of two seeds, as printed.
    values = [float(line["top1"]) for line in tuned if line["per_class"] == "3"]
    assert "| vit | fine-tuned | " in table and f"{sum(values) / 2:.1%} (" in table
    assert list(transfer.transfer(found, runs)) == said[-1:]
    # Another recipe: only the cells that it changes are run again, and the table leaves their old results out.
    (tmp_path / "configs" / "transfer.py").write_text(CONFIG.format(steps=3))
    shown = transfer.page(lines, tmp_path / "configs", runs)
    assert shown.count("not run") == 5
    listed = list(transfer.transfer(found, runs, run=False))
    assert sum(line.endswith("not run") for line in listed) == 6
    # Another trained model: what starts from it counts no more, and training from scratch does.
    other = CONFIG.format(steps=2).replace("(0, 2, 4, 6)", "(0, 2, 4)")
    (tmp_path / "configs" / "transfer.py").write_text(other)
    kept = transfer.current(lines, tmp_path / "configs", runs)
    assert {line["way"] for line in kept} == {"scratch"} and len(kept) == 4
    list(transfer.transfer(found, tmp_path / "others"))
    lines = transfer.read_lines(results)
    assert len(lines) == 13 and {line["source"] for line in lines if line["way"] == "finetune"}.isdisjoint(
        line["source"] for line in tuned
    )


def test_a_damaged_table_is_refused(tmp_path):
    (tmp_path / "transfer.csv").write_text("task,model\n")
    with pytest.raises(UsageError, match=r"transfer.csv: cannot be read"):
        transfer.read_lines(tmp_path)
    with (tmp_path / "transfer.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, transfer.COLUMNS)
        writer.writeheader()
        writer.writerow({**dict.fromkeys(transfer.COLUMNS, "1"), "top1": "3"})
    with pytest.raises(UsageError, match=r"a line is damaged"):
        transfer.read_lines(tmp_path)
    with pytest.raises(UsageError, match=r"--seeds=9"):
        list(transfer.transfer(Results(tmp_path, tmp_path, {}), tmp_path, seeds=9))
