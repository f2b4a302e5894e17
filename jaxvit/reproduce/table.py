"""results/results.csv, one line for each run of a row, and what these say: results/README.md."""

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
from jaxvit.reproduce.rows import Row, rows_file

COLUMNS = (
    *("row", "form", "recipe", "config_hash", "seed", "n", "top1", "top5", "loss", "precision", "recall"),
    *("validation", "epochs", "weights"),
    *("params", "multiply_adds", "compile_seconds", "train_seconds", "eval_seconds", "save_seconds"),
    *("hardware", "versions", "data", "commit", "date", "metrics"),
)


FULL = "full"


_ON_RANDOM = " on random images"


def form_of(row: Row, epochs: int = 0, dtype: str = "") -> str:
    """How a row is run: in full, or in so many epochs (0 = its own); in a dtype ('' = its config's)."""
    length = f"{epochs} of {row.epochs} epochs" if 0 < epochs < row.epochs else FULL
    if row.steps:
        length = f"{row.steps} step{'s' * (row.steps > 1)}{_ON_RANDOM}"
    return f"{length}, {dtype}" if dtype else length


def how(form: str) -> tuple[int, str]:
    """The epochs (0 = the row's own) and the dtype ('' = its config's) that `form_of` made a form of."""
    length, _, dtype = form.partition(", ")
    short = re.fullmatch(r"(\d+) of \d+ epochs", length)
    return int(short[1]) if short else 0, dtype


def metrics_name(line: Mapping[str, Any]) -> str:
    """The file in results/metrics of a run: each run that has a line of its own has one of its own."""
    form = "" if line["form"] == FULL else f"_{line['form'].replace(' ', '_').replace(',', '')}"
    key = hashlib.sha256(f"{line['config_hash']} {line['hardware']}".encode()).hexdigest()[:6]
    return f"{line['row']}{form}_seed_{line['seed']}_{key}.jsonl"


def is_full(form: str) -> bool:
    """Whether a run of this form can pass."""
    return form.partition(",")[0] == FULL


def results_of(file: Path) -> list[dict[str, str]]:
    """The lines of results.csv; [] if there is none.

    Raises:
      UsageError: it is not that file.
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
    """The lines of a folder of results; where its rows are those that come with jaxvit, what came with them as well.

    Raises:
      UsageError: a results.csv is not one.
    """
    folders = [rows_file(results).parent]
    if folders[0].resolve() != results.resolve():
        folders.append(results)
    return [line for folder in folders for line in results_of(folder / "results.csv")]


def is_whole(line: dict[str, str]) -> bool:
    """Whether its numbers can be those of a run, and its metrics a file beside it; steps have no accuracy."""
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
    """Within, no other process writes into this folder: each reads what the one before it has left."""
    return locked_folder(results)


def keep(line: Mapping[str, Any], file: Path) -> None:
    """Adds a line to results.csv, in place of an older one of the same run on the same hardware; within `writing`."""
    same = ("row", "form", "seed", "hardware", "config_hash")
    lines = [old for old in results_of(file) if any(str(line[name]) != old[name] for name in same)]
    lines.append({name: str(line[name]) for name in COLUMNS})
    write_csv(file, COLUMNS, lines)


def newest(lines: Sequence[dict[str, str]], row: Row, form: str = FULL) -> list[dict[str, str]]:
    """A row's lines of one form, recipe, data and hardware: one for each of its seeds, in their order.

    These are the ones with the most seeds, of several the last.
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
