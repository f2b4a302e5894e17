"""A grid of runs over values of config keys, and its table: the logic of `jaxvit sweep`.

Each cell of the grid is an ordinary run in its own folder. The same command again skips finished cells, resumes the
stopped one, and retries failed ones.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import jax
from ml_collections import ConfigDict

from jaxvit import errors
from jaxvit.config.identity import differences
from jaxvit.config.initial_weights import fill_in
from jaxvit.config.keys import from_plain, to_plain
from jaxvit.config.overrides import parse_config_arguments
from jaxvit.config.plan import resolve
from jaxvit.config.reader import ConfigReader
from jaxvit.data.image_folder import refuse_among_images
from jaxvit.devices import hardware
from jaxvit.errors import RunFailedError, StoppedError, UsageError, is_disk_failure
from jaxvit.files import (
    Lock,
    check_regular,
    make_folder,
    naming,
    read_json,
    refuse_backslash,
    require,
    write_csv,
    write_json,
)
from jaxvit.layers.stack import plainly
from jaxvit.models.count import count_macs, count_params
from jaxvit.run.assembly import Assembly, assemble
from jaxvit.run.folder import finished_result
from jaxvit.run.result_types import Result
from jaxvit.run.train import train
from jaxvit.shown import terminal


@dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Attributes:
      settings: {key: value as written}.
      config: config of the run.
      overrides: keys set on the command line.
    """

    settings: dict[str, str]
    config: ConfigDict
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the cell's folder, and in the table."""
        text = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in self.settings.items())
        clean = re.sub(r"[^\w.,=+()-]", "", text, flags=re.ASCII)[:150]
        if clean == text:
            return clean
        # Without the characters that a folder name cannot have, two cells could have the same name.
        return f"{clean},{hashlib.sha256(json.dumps(self.settings).encode()).hexdigest()[:8]}"

    @cached_property
    def _looked_at(self) -> tuple[str, int, int]:
        try:
            plan = resolve(
                self.config, devices=hardware.device_count(), platform=hardware.platform(), overrides=self.overrides
            )
            return ("", *_size(assemble(plan, self.overrides)))
        except (UsageError, RunFailedError) as error:
            return str(error), 0, 0

    @property
    def problem(self) -> str:
        """Why the cell cannot be run; '' = it can. The check opens the data and traces the model."""
        return self._looked_at[0]

    @property
    def params(self) -> int:
        """Number of parameters."""
        return self._looked_at[1]

    @property
    def macs(self) -> int:
        """Multiply-adds for one image, by the convention `all`."""
        return self._looked_at[2]


def split_values(text: str) -> list[str]:
    """Splits at commas outside brackets and quotes: '4,8' to ['4', '8'], '(2,),(2, 3)' to ['(2,)', '(2, 3)']."""
    values, depth, quote, start = [], 0, "", 0
    for i, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif letter == "," and depth == 0:
            values.append(text[start:i].strip())
            start = i + 1
    return [*values, text[start:].strip()]


def parse_grid(over: Sequence[str]) -> dict[str, list[str]]:
    """Parses the values of --over to {'model.tokens': ['4', '8'], …}.

    Raises:
      UsageError: a word is not KEY=VALUE,VALUE,…, or names a key or a value twice.
    """
    grid: dict[str, list[str]] = {}
    for word in over:
        key, equals, text = word.partition("=")
        key, values = key.strip().removeprefix("--").removeprefix("config."), split_values(text)
        if not equals or not key or not all(values):
            raise UsageError(f"--over '{word}': write it as KEY=VALUE,VALUE, such as --over 'optim.peak_lr=3e-4,1e-3'")
        if key in grid:
            raise UsageError(f"--over '{word}': {key} is given twice; put all its values into one --over")
        if len(set(values)) != len(values):
            raise UsageError(f"--over '{word}': a value is given twice")
        grid[key] = values
    return grid


def make_cells(spec: str, words: Sequence[str], grid: dict[str, list[str]]) -> list[Cell]:
    """Makes the cells of a grid; the last key varies fastest. `Cell.problem` says why a cell cannot be run.

    Raises:
      UsageError: the config file, a key or the type of a value is wrong for all cells; or two cells are equal.
    """
    cells: list[Cell] = []
    seen: dict[str, Cell] = {}
    for values in itertools.product(*grid.values()):
        cell = _make_cell(spec, words, dict(zip(grid, values, strict=True)))
        for same in (cell.name, json.dumps(to_plain(cell.config), default=str)):
            if same in seen:
                one, other = (_written(c.settings) for c in (seen[same], cell))
                raise UsageError(f"--over: {one} and {other} are the same run; leave one out")
            seen[same] = cell
        cells.append(cell)
    return cells


def _make_cell(spec: str, words: Sequence[str], settings: dict[str, str]) -> Cell:
    tokens = [*words, *(f"--config.{key}={value}" for key, value in settings.items())]
    try:
        config, overrides, _ = parse_config_arguments(spec, tokens)
    except UsageError as error:  # the verb has checked `words`; so --over is wrong
        raise UsageError(str(error).replace("--config.", "--over ", 1)) from None
    with contextlib.suppress(UsageError):  # `Cell.problem` says it
        config, _ = fill_in(config, given=overrides)
    return Cell(settings, config, tuple(overrides))


def _written(settings: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items())


def _size(assembly: Assembly) -> tuple[int, int]:
    model = assembly.model
    macs = count_macs(plainly(model), assembly.plan.input_shape)["all"]
    return count_params(assembly.abstract_state.variables), macs


def parse_part(text: str) -> tuple[int, int]:
    """Parses 'I/N', the I-th of N parts of a grid, counted from 1.

    Raises:
      UsageError: the text is not of this form.
    """
    found = re.fullmatch("([0-9]+)/([0-9]+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"--part={text}: write it as I/N with I from 1 to N, such as --part=2/6")
    return int(found[1]), int(found[2])


def sweep(
    cells: Sequence[Cell], rows: Sequence[dict[str, object]], workdir: Path, part: tuple[int, int] = (1, 1)
) -> None:
    """Trains all unfinished cells; updates `rows`, made by `begin_rows`, and sweep.csv after each cell.

    sweep.csv keeps the rows of cells from earlier starts that this one does not include.

    Args:
      cells: all cells of the grid.
      rows: a row per cell.
      workdir: folder of the sweep, which the caller has locked if there is one part.
      part: (I, N) = train every N-th cell from the I-th on. Other processes may train the other cells at the same time,
        so each change of sweep.csv takes the lock for a moment and first reads what the others have written.
    """
    index, parts = part
    names = {cell.name for cell in cells}
    own = {cell.name for cell in cells[index - 1 :: parts]}

    def write() -> None:
        with Lock(workdir / ".lock") if parts > 1 else contextlib.nullcontext():
            table = _read_rows(workdir / "sweep.csv")
            if parts > 1:
                _take_over(rows, [row for row in table if row["cell"] not in own])
            write_rows([*rows, *(row for row in table if row["cell"] not in names)], workdir / "sweep.csv")

    write()
    for i, (cell, row) in enumerate(zip(cells, rows, strict=True)):
        if cell.name not in own:
            continue
        print(f"cell {i + 1}/{len(cells)}: {cell.name}", flush=True)
        if row["status"] == "done":
            print("finished before", flush=True)
            continue
        try:
            if cell.problem:
                raise UsageError(cell.problem)
            row |= {"params": cell.params, "macs": cell.macs}
            row |= {"status": "done", **_numbers(train(cell.config, workdir / cell.name, overrides=cell.overrides))}
        except (UsageError, RunFailedError) as error:
            row |= {"status": "failed", "error": str(error)}
            print(terminal(f"failed: {error}"), flush=True)
        except (StoppedError, KeyboardInterrupt):
            row["status"] = "stopped"
            write()
            raise
        jax.clear_caches()  # the next cell compiles its own program
        write()


def _take_over(rows: Sequence[dict[str, object]], table: Sequence[Mapping[str, str]]) -> None:
    """Updates the rows of cells that other processes train by what these have written to the table."""
    written = {row["cell"]: row for row in table}
    for row in rows:
        theirs = written.get(str(row["cell"]), {})
        if theirs.get("status", "not run") != "not run":
            row |= {name: _number(value) for name, value in theirs.items() if name not in row or row[name] != value}


def _number(text: str) -> str | int | float:
    """The number that a cell of a CSV file contains, or else its text."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def begin_rows(cells: Sequence[Cell], workdir: Path) -> list[dict[str, object]]:
    """Returns a row per cell before training; rows of finished cells have their results."""
    # From the table of an earlier start, so that finished cells need no tracing.
    multiply_adds = {row["cell"]: int(row["macs"]) for row in _read_rows(workdir / "sweep.csv") if row["macs"]}
    rows = []
    for cell in cells:
        row = new_row(cell)
        with contextlib.suppress(UsageError):  # reported when the cell is run
            result = finished_result(workdir / cell.name, cell.config)
            if result is not None:
                macs = multiply_adds.get(cell.name) or cell.macs
                row |= {"params": result["params"], "macs": macs, "status": "done", **_numbers(result)}
        rows.append(row)
    return rows


def _read_rows(file: Path) -> list[dict[str, str]]:
    """Reads the table of an earlier start as text; [] if there is none, or it is unusable."""
    try:
        check_regular(file)
        with file.open(newline="") as stream:
            rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(stream)]
    except (OSError, ValueError, csv.Error):
        return []
    sound = all("cell" in row and row.get("macs", "0").isdecimal() and None not in row for row in rows)
    return [row | {"macs": row.get("macs", "")} for row in rows] if sound else []


def new_row(cell: Cell) -> dict[str, object]:
    """Returns the row of a cell that has not been run."""
    return {"cell": cell.name, **cell.settings, "params": "", "macs": "", "status": "not run"}


def _numbers(result: Result) -> dict[str, object]:
    test = result["test"]
    values = cast(Mapping[str, object], test)
    return {
        **{name: values[name] for name in ("top1", "top5", "loss", "count") if name in test},
        **({"top1_std": test["std"]["top1"], "n": test.get("n")} if "std" in test else {}),
        "train_seconds": result["seconds"]["train"],
        "best_epoch": result.get("best_epoch", ""),
    }


def write_rows(rows: Sequence[Mapping[str, object]], file: Path) -> None:
    """Writes all rows as CSV, atomically."""
    write_csv(file, list(dict.fromkeys(name for row in rows for name in row)), rows)


def count_done(rows: Sequence[dict[str, object]]) -> int:
    """Counts the rows of finished cells."""
    return sum(row["status"] == "done" for row in rows)


@contextlib.contextmanager
def open_sweep(workdir: Path, config: ConfigDict, grid: dict[str, list[str]], *, wait: bool = False) -> Iterator[None]:
    """Opens and locks the folder of a sweep; writes its grid and config to sweep.json.

    With `wait`, it waits while another process holds the lock; otherwise this is an error.

    Raises:
      UsageError: the folder belongs to another sweep or process, or contains other files.
    """
    refuse_backslash(workdir, "--workdir=")
    refuse_among_images(workdir, ConfigReader(config)("data.name", str))
    file = workdir / "sweep.json"
    # A kill before sweep.json leaves these two.
    names = {path.name for path in workdir.iterdir()} if workdir.is_dir() else set()
    if not file.exists() and names - {".lock", f".{file.name}.tmp"}:
        raise UsageError(f"--workdir={workdir}: this folder holds other files; name a new one for the sweep")
    if file.exists():
        remedy = "it is damaged: use a new --workdir"
        before = read_json(file, remedy)
        parts = [before.get(key) for key in ("config", "grid")] if isinstance(before, dict) else [None]
        require(all(isinstance(part, dict) for part in parts), file, "it holds no sweep", remedy)
        try:
            theirs, swept = from_plain(before["config"]), set(before["grid"])
        except (ValueError, KeyError, TypeError) as error:  # names that no config can have
            raise UsageError(f"{file} cannot be read ({errors.first_line(error)}); {remedy}") from None
        changed = {k: v for k, v in differences(theirs, config).items() if k not in swept | set(grid)}
        if changed or swept != set(grid):
            what = next((f"{k}: {old!r} there, {new!r} here" for k, (old, new) in changed.items()), "")
            what = what or f"it goes over {', '.join(sorted(swept))}"
            raise UsageError(f"--workdir={workdir}: this folder holds another sweep ({what}); name a new one")
    try:
        make_folder(workdir)
        with naming(workdir):
            busy = f"--workdir={workdir}: another process uses this sweep folder"
            lock = Lock(workdir / ".lock", "" if wait else busy)
    except OSError as error:
        if is_disk_failure(error):
            raise
        reason = "it is a file" if workdir.is_file() else error.strerror
        raise UsageError(f"--workdir={workdir}: cannot be written ({reason}); name another folder") from None
    with lock:
        write_json(file, {"grid": grid, "config": to_plain(config)}, with_checksum=True)
        yield
