"""Compares runs: finds them in folders, summarizes each as a row, and prints a table, Markdown or CSV."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from jaxvit.errors import UsageError
from jaxvit.files import csv_text
from jaxvit.pages.terminal import print_table
from jaxvit.run.folder import checkpoint_folder, read_config, read_result, seed_folders
from jaxvit.shown import markdown, rich
from jaxvit.training.journal import deciding_validations, read_jsonl
from jaxvit.weights.model_json import ModelFacts, read_model


def find_runs(folder: Path) -> Iterator[Path]:
    """Yields the runs in a folder, or the folder itself if it is a run. A run with several seeds is yielded once.

    Raises:
      UsageError: the folder does not exist or contains no runs.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder")
    found = False
    for parent, folders, files in os.walk(folder):
        folders.sort()
        if "config.json" in files and (
            "model.json" in files or "environment.json" in files or seed_folders(Path(parent))
        ):
            found = True
            folders.clear()  # subfolders of a run belong to it
            yield Path(parent)
    if not found:
        raise UsageError(f"{folder}: there are no runs here; train one with `jaxvit train`")


def with_checkpoints(run: Path) -> Path:
    """The folder with checkpoints: the run itself, or its first seed."""
    seeds = seed_folders(run)
    return seeds[0] if seeds and not checkpoint_folder(run).exists() else run


def summarize_run(run: Path, *, own_code: bool = False) -> dict[str, Any]:
    """Summarizes a run as a row of the table.

    Keys: run, model, data, source (`init.from`), params, macs, steps, best_epoch, seeds, top1, top1_std, top5, loss,
    validation, train_seconds, state. Unknown values are missing: an unfinished run has no result, and without
    `own_code` (see `jaxvit.load`) the multiply-adds of a model outside jaxvit are unknown.

    Raises:
      UsageError: a file of the run is damaged.
    """
    config = read_config(run)
    row: dict[str, Any] = {"run": str(run), "model": config.model.name, "data": config.data.name}
    if source := config.get("init", {}).get("from", ""):  # older runs have no such key
        row["source"] = source
    folder = with_checkpoints(run)
    if (folder / "model.json").exists():
        row["params"], row["macs"] = _count(read_model(folder), own_code)
    records = read_jsonl(folder / "metrics.jsonl")
    row["steps"] = max((record["step"] for record in records), default=0)
    if not (run / "result.json").exists():
        validations = [r["top1"] for r in deciding_validations(records) if r.get("top1") is not None]
        best = {"validation": max(validations)} if validations else {}
        return row | best | {"state": "not finished"}
    result = read_result(run)
    test = result["test"]
    row |= {name: test[name] for name in ("top1", "top5", "loss", "count") if name in test}
    if "std" in test:
        row |= {"top1_std": test["std"]["top1"], "seeds": test["n"]}
    at_best = [r.get("top1") for r in deciding_validations(records) if r["epoch"] == result["best_epoch"]]
    if at_best and "std" not in test:
        row["validation"] = at_best[0]
    row |= {"steps": result["steps"], "best_epoch": result["best_epoch"], "params": result["params"]}
    return row | {"train_seconds": result["seconds"]["train"], "state": "finished"}


def _count(facts: ModelFacts, own_code: bool) -> tuple[int | None, int | None]:
    """(parameters, multiply-adds of one image); (None, None) if the model cannot be created here."""
    from jaxvit.models.count import abstract_variables, count_macs, count_params

    try:
        model, shape = facts.create(own_code=own_code), facts.input_shape
        return count_params(abstract_variables(model, shape)), count_macs(model, shape)["all"]
    except Exception:  # a user's model that cannot be imported here, or invalid attributes
        return None, None


_COLUMNS = (
    ("run", "run"),
    ("model", "model"),
    ("data", "data"),
    ("source", "starts from"),
    ("params", "parameters"),
    ("macs", "multiply-adds"),
    ("steps", "steps"),
    ("best_epoch", "best epoch"),
    ("validation", "validation"),
    ("top1", "test"),
    ("top5", "test top-5"),
    ("loss", "test loss"),
    ("train_seconds", "training"),
)


_TEXTS = ("run", "model", "data", "source")  # columns on the left


def _columns(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """(key, heading) of the columns to show: without `source` if all runs began at random."""
    return [each for each in _COLUMNS if each[0] != "source" or any("source" in row for row in rows)]


def _cells(row: dict[str, Any], columns: Sequence[tuple[str, str]]) -> list[str]:
    def text(name: str) -> str:
        value = row.get(name)
        if value is None:
            return row["state"] if name == "top1" and row["state"] != "finished" else ""
        if name == "top1" and "top1_std" in row:
            return f"{value:.2%} ± {row['top1_std']:.2%} (n = {row['seeds']})"
        if name in ("validation", "top1", "top5"):
            return f"{value:.2%}"
        if name == "macs":
            return f"{value / 1e6:,.2f} M"
        if name == "loss":
            return f"{value:.4f}"
        if name == "train_seconds":
            return f"{value:,.1f} s"
        return f"{value:,}" if isinstance(value, int) else str(value)

    return [text(name) for name, _ in columns]


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    table, columns = Table(), _columns(rows)
    for name, heading in columns:
        table.add_column(heading, justify="left" if name in _TEXTS else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(rich, _cells(row, columns)))
    print_table(table)


def _print_markdown(rows: Sequence[dict[str, Any]]) -> None:
    columns = _columns(rows)
    print("| " + " | ".join(heading for _, heading in columns) + " |")
    print("|" + "|".join("---" if name in _TEXTS else "--:" for name, _ in columns) + "|")
    for row in rows:
        print("| " + " | ".join(map(markdown, _cells(row, columns))) + " |")


def _print_csv(rows: Sequence[dict[str, Any]]) -> None:
    names = [*(name for name, _ in _columns(rows)), "top1_std", "seeds", "count", "state"]
    print(csv_text(names, rows), end="")


WRITERS = {"table": _print_table, "markdown": _print_markdown, "csv": _print_csv}
