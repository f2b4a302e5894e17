"""Reads and writes results/results.csv, which has one line for each run."""

from __future__ import annotations

import csv
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxvit.errors import UsageError
from jaxvit.files import Lock, check_regular, locked_folder, write_csv
from jaxvit.reproduce.rows import TableRow, rows_file

COLUMNS = (
    *("row", "form", "recipe", "config_hash", "seed", "n", "top1", "top5", "loss", "precision", "recall"),
    *("validation", "epochs", "weights"),
    *("params", "multiply_adds", "compile_seconds", "train_seconds", "eval_seconds", "save_seconds"),
    *("hardware", "versions", "data", "commit", "date", "metrics"),
)


FULL = "full"


_ON_RANDOM = " on random images"


def form_of(row: TableRow, epochs: int = 0, dtype: str = "") -> str:
    """Describes how a row is run: 'full' or a number of epochs (0 = full), and the dtype ('' = from the config)."""
    length = f"{epochs} of {row.epochs} epochs" if 0 < epochs < row.epochs else FULL
    if row.steps:
        length = f"{row.steps} step{'s' * (row.steps > 1)}{_ON_RANDOM}"
    return f"{length}, {dtype}" if dtype else length


def how(form: str) -> tuple[int, str]:
    """Inverse of `form_of`: (epochs, dtype)."""
    length, _, dtype = form.partition(", ")
    short = re.fullmatch(r"(\d+) of \d+ epochs", length)
    return int(short[1]) if short else 0, dtype


def metrics_name(line: Mapping[str, Any]) -> str:
    """Name of a run's file in results/metrics; each line of results.csv has its own."""
    form = "" if line["form"] == FULL else f"_{line['form'].replace(' ', '_').replace(',', '')}"
    key = hashlib.sha256(f"{line['config_hash']} {line['hardware']}".encode()).hexdigest()[:6]
    return f"{line['row']}{form}_seed_{line['seed']}_{key}.jsonl"


def is_full(form: str) -> bool:
    """True if the form is a full run; only full runs can pass."""
    return form.partition(",")[0] == FULL


def results_of(file: Path) -> list[dict[str, str]]:
    """Reads the lines of results.csv; [] if the file does not exist.

    Raises:
      UsageError: the file is damaged or has other columns.
    """
    if not file.exists():
        return []
    try:
        check_regular(file)
        with file.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise UsageError(f"{file}: its columns are not those of this version; move it away")
            lines = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{file}: cannot be read ({error}); put a copy of it back, or move it away") from None
    if any(None in line or None in line.values() or not is_whole(line) for line in lines):
        raise UsageError(f"{file}: a line is damaged; put a copy of it back, or move it away")
    return lines


def known_results(results: Path) -> list[dict[str, str]]:
    """Reads the lines of a folder of results; if its rows come with jaxvit, also the results that come with jaxvit.

    Raises:
      UsageError: a results.csv is damaged.
    """
    folders = [rows_file(results).parent]
    if folders[0].resolve() != results.resolve():
        folders.append(results)
    return [line for folder in folders for line in results_of(folder / "results.csv")]


def is_whole(line: dict[str, str]) -> bool:
    """True if the values of a line are plausible. Rows of steps have no accuracy and no metrics file."""
    of_steps = line["form"].partition(",")[0].endswith(_ON_RANDOM)
    try:
        counts = [int(line[name]) for name in ("seed", "n", "params", "multiply_adds")]
        amounts = [float(line[name]) for name in ("loss", "train_seconds")]
        shares = [float(line[name]) for name in ("top1", "top5", "precision", "recall") if not of_steps]
        shares.append(float(line["validation"] or 0))
    except ValueError:
        return False
    return (
        min(counts) >= 0
        and (counts[1] == 0) == of_steps
        and all(0 <= amount < math.inf for amount in amounts)
        and all(0 <= share <= 1 for share in shares)
        and line["metrics"] == ("" if of_steps else metrics_name(line))
        and "/" not in line["metrics"]
    )


def writing(results: Path) -> Lock:
    """Lock on the folder: one process writes at a time, and reads what the last one wrote."""
    return locked_folder(results)


def keep(line: Mapping[str, Any], file: Path) -> None:
    """Adds a line to results.csv, replacing the line of the same run on the same hardware. Hold `writing` around it."""
    same = ("row", "form", "seed", "hardware", "config_hash")
    lines = [old for old in results_of(file) if any(str(line[name]) != old[name] for name in same)]
    lines.append({name: str(line[name]) for name in COLUMNS})
    write_csv(file, COLUMNS, lines)


def newest(lines: Sequence[dict[str, str]], row: TableRow, form: str = FULL) -> list[dict[str, str]]:
    """A row's lines with one form, recipe, data and hardware, sorted by seed.

    If there are several such sets, returns the one with the most seeds, or the last of these.
    """
    alike: dict[tuple[str, ...], dict[int, dict[str, str]]] = {}
    for line in lines:
        if (line["row"], line["form"]) == (row.name, form) and int(line["seed"]) in row.seeds:
            key = line["recipe"], line["data"], line["hardware"]
            alike[key] = {**alike.pop(key, {}), int(line["seed"]): line}
    if not alike:
        return []
    by_seed = max(reversed(alike.values()), key=len)
    return [by_seed[seed] for seed in sorted(by_seed)]
