"""`jaxvit reproduce --queue`: runs of rows in the order that a file gives, within a time limit, one at a time.

The file is TOML, one table for each step of the queue, worked off from top to bottom:

    [[run]]
    row = "cct_best"                    # a row of rows.toml
    seeds = [0, 1, 2]                   # of the row's seeds, in this order; without it all of them

    [[run]]
    row = ["mini_vit", "mini_vit_tl4"]  # in turn, seed by seed: pairs can be compared as early as possible
    epochs = 2                          # a short form, of fewer epochs than the row has; without it the row in full

What is finished is what has a line of today's recipe in results.csv.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxvit.errors import RunFailedError, StoppedError, UsageError, first_line, nearest
from jaxvit.files import packaged
from jaxvit.reproduce.archive import Reached, reached
from jaxvit.reproduce.page import outcome
from jaxvit.reproduce.rows import Row
from jaxvit.reproduce.runs import Way, config_of, folder_of, recipe_of, run_row
from jaxvit.reproduce.supervisor import Supervisor
from jaxvit.reproduce.table import form_of, newest, results_of

_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_KEYS = ("row", "seeds", "epochs")


@dataclass(frozen=True)
class Task:
    """One run of the queue: a row with one seed, in full or in so many epochs (0 = in full).

    A row of steps on random images is one task; its config has the seed.
    """

    row: Row
    seed: int
    epochs: int = 0

    def __str__(self) -> str:
        short = f", {self.epochs} of {self.row.epochs} epochs" if self.epochs else ""
        return self.row.name if self.row.steps else f"{self.row.name}, seed {self.seed}{short}"

    def way(self, way: Way) -> Way:
        return dataclasses.replace(way, epochs=self.epochs)

    def line_in(self, lines: Sequence[dict[str, str]], way: Way) -> dict[str, str] | None:
        """Its line of today's recipe, from any machine; None where there is none."""
        form = form_of(self.row, self.epochs, way.dtype)
        recipe = recipe_of(config_of(self.row, self.way(way)))
        found = [
            line
            for line in lines
            if (line["row"], line["form"], line["recipe"]) == (self.row.name, form, recipe)
            and (self.row.steps or int(line["seed"]) == self.seed)
        ]
        return found[-1] if found else None


def parse_limit(text: str) -> float:
    """Seconds that a limit such as '2 hours', '90 minutes' or '1.5 days' stands for; math.inf for ''.

    Raises:
      UsageError: it is no such limit.
    """
    if not text:
        return math.inf
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(second|minute|hour|day)s?\s*", text)
    if not found or not float(found[1]):
        raise UsageError(f"--limit='{text}': write a time, such as --limit='2 hours' or --limit='90 minutes'")
    return float(found[1]) * _UNITS[found[2]]


def read_queue(file: Path, rows: Mapping[str, Row]) -> list[Task]:
    """The runs of a queue, in its order.

    Raises:
      UsageError: the file is not there, or is no queue of these rows.
    """
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = packaged("results") / "queue.toml"
        raise UsageError(f"--queue={file}: there is no such file; {known} is one to start from") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError, RecursionError) as error:
        raise UsageError(f"--queue={file}: cannot be read: {first_line(error)}") from None
    listed = found.get("run", [])
    if set(found) - {"run"} or not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise UsageError(f"--queue={file}: it holds tables that begin with [[run]], and nothing else")
    if not listed:
        raise UsageError(f"--queue={file}: there is nothing in it; write [[run]] and below it row = 'NAME'")
    tasks: list[Task] = []
    for number, one in enumerate(listed, 1):
        try:
            more = _tasks(one, rows)
            if twice := [str(task) for i, task in enumerate(more) if task in tasks or task in more[:i]]:
                raise ValueError(f"{twice[0]} is there twice")
        except ValueError as error:
            raise UsageError(f"--queue={file}: [[run]] number {number}: {error}") from None
        tasks += more
    return tasks


def _tasks(one: Mapping[str, Any], rows: Mapping[str, Row]) -> list[Task]:
    """Raises ValueError, with what is wrong."""
    for key in one:
        if key not in _KEYS:
            raise ValueError(f"'{key}' is not known{nearest(key, _KEYS)}; it takes {', '.join(_KEYS)}")
    names = [one["row"]] if isinstance(one.get("row"), str) else one.get("row")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError("row is missing; write row = 'NAME', or row = ['NAME', 'NAME']")
    for name in names:
        if name not in rows:
            raise ValueError(f"there is no row '{name}'{nearest(name, rows)}; see jaxvit reproduce --list")
    epochs, seeds = one.get("epochs", 0), one.get("seeds", [])
    if type(epochs) is not int or ("epochs" in one and epochs < 1):
        raise ValueError(f"epochs = {epochs!r}: must be a whole number from 1")
    if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds) or ("seeds" in one and not seeds):
        raise ValueError(f"seeds = {seeds!r}: must be a list of whole numbers, such as [0, 1, 2]")
    chosen = [rows[name] for name in names]
    for row in chosen:
        if row.steps and set(one) - {"row"}:
            raise ValueError(f"{row.name} takes steps: it has neither seeds nor epochs")
        if epochs >= row.epochs and epochs:
            raise ValueError(f"epochs = {epochs}: {row.name} has {row.epochs}; a short form has fewer")
        for seed in seeds:
            if seed not in row.seeds:
                known = ", ".join(map(str, row.seeds))
                raise ValueError(f"seeds = {seeds}: {row.name} has {known}; rows.toml says which count")
    turns = itertools.zip_longest(*(row.seeds[:1] if row.steps else seeds or row.seeds for row in chosen))
    pairs = [(row, seed) for turn in turns for row, seed in zip(chosen, turn, strict=True)]
    return [Task(row, seed, epochs) for row, seed in pairs if seed is not None]


@dataclass(frozen=True)
class Status:
    """Where a task stands: its line if it is finished, else how far its run is (None = not begun)."""

    task: Task
    line: dict[str, str] | None
    at: Reached | None

    @property
    def minutes(self) -> float | None:
        """Expected still, on two CPU cores that do nothing else; None where the row does not know."""
        row = self.task.row
        if self.line is not None or (self.at and self.at.finished):
            return 0.0
        epochs = self.task.epochs or row.epochs
        done = min(self.at.epochs / epochs, 1.0) if self.at else 0.0
        return row.minutes * epochs / row.epochs * (1 - done) if row.minutes else None

    def said(self) -> str:
        if self.line is not None:
            return f"finished: top1 {float(self.line['top1']):.2%}" if self.line["top1"] else "finished"
        if self.at and self.at.finished:
            return "trained; its line is to be written"
        if self.at and self.at.step:
            epochs = self.task.epochs or self.task.row.epochs
            return f"saved after {self.at.epochs:.4g} of {epochs} epochs" if self.at.epochs else "saved"
        return "to do"


def statuses(
    tasks: Sequence[Task], way: Way, results: Path, archived: Mapping[str, Reached] | None = None
) -> list[Status]:
    """Where each task stands, by results.csv, the folder of runs, and an archive of it that is not unpacked.

    Raises:
      UsageError: a row cannot be run so, or results.csv is damaged.
    """
    lines = results_of(results / "results.csv")
    found = []
    for task in tasks:
        run = folder_of(task.row, task.way(way)) / f"seed_{task.seed}"
        at, packed = reached(run), (archived or {}).get(run.relative_to(way.runs).as_posix())
        if packed and not (at and at >= packed):
            at = packed
        found.append(Status(task, task.line_in(lines, way), at))
    return found


def listing(found: Sequence[Status]) -> str:
    """What a dry run shows."""
    total, known, rows = 0.0, True, []
    for number, status in enumerate(found, 1):
        minutes = status.minutes
        total, known = total + (minutes or 0.0), known and minutes is not None
        shown = "not known" if minutes is None else f"{minutes:.0f}"
        rows.append((str(number), str(status.task), status.said(), shown, f"{total:.0f}" + "+" * (not known)))
    head = ("", "run", "state", "minutes", "sum")
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    sides = (str.rjust, str.ljust, str.ljust, str.rjust, str.rjust)
    text = ["  ".join(side(*cell) for side, *cell in zip(sides, row, widths, strict=True)) for row in [head, *rows]]
    return "\n".join([*text, left(found), "minutes: expected still, on two CPU cores that do nothing else"])


def left(found: Sequence[Status]) -> str:
    """Such as '3 of 17 runs are finished; 14 are left, of about 11.2 hours'."""
    open_ones = [status for status in found if status.line is None]
    minutes = [status.minutes for status in open_ones]
    known = sum(m for m in minutes if m is not None)
    said = f"{len(found) - len(open_ones)} of {len(found)} runs are finished"
    if not open_ones:
        return said
    about = f"about {known / 60:.1f} hours" if known >= 60 else f"about {math.ceil(known)} minutes"
    more = " and those whose time is not known" * (None in minutes)
    return f"{said}; {len(open_ones)} left, of {about}{more}" if known else f"{said}; {len(open_ones)} left"


Keep = Callable[[dict[str, Any], Path | None, Row], None]


def work_off(
    tasks: Sequence[Task], way: Way, results: Path, stop: Supervisor, keep: Keep, after_each: Callable[[], Any]
) -> dict[str, Exception]:
    """Runs what is not finished, in order.

    Args:
      tasks: the queue.
      way: of all runs; each task's length is its own.
      results: folder of results.csv, which says what is finished.
      stop: entered.
      keep: takes a finished run's line, its folder and its row: writes them at once.
      after_each: called after each run, finished or not.

    Returns:
      {task: why it could not be run}.

    Raises:
      StoppedError: asked to stop, or the time is over; everything is saved.
    """
    failed: dict[str, Exception] = {}
    for task in tasks:
        lines = results_of(results / "results.csv")
        if task.line_in(lines, way) is not None:
            continue
        stop.between_runs(left(statuses(tasks, way, results)))
        try:
            for line, run in run_row(task.row, (task.seed,), dataclasses.replace(task.way(way), stop=stop)):
                keep(line, run, task.row)
                print(f"{task}: {_said(task, way, results)}", flush=True)
        except (UsageError, RunFailedError, OSError) as error:
            failed[str(task)] = error
            print(f"{task}: not run: {first_line(error)[:300]}", flush=True)
        after_each()
        jax.clear_caches()  # what the next run needs lies in the cache on disk
        gc.collect()
    return failed


def _said(task: Task, way: Way, results: Path) -> str:
    """What the row's runs say so far."""
    lines, form = results_of(results / "results.csv"), form_of(task.row, task.epochs, way.dtype)
    runs = newest(lines, task.row, form)
    count = "" if task.row.steps else f"{len(runs)} of {len(task.row.seeds)} seeds: "
    return count + "; ".join(outcome(task.row, runs, lines, form)[0])


def run_queue(
    tasks: Sequence[Task], way: Way, results: Path, limit: str, keep: Keep, after_each: Callable[[], Any] = lambda: None
) -> dict[str, Exception]:
    """`work_off` within a limit such as '2 hours'; says what is left when that is reached.

    Raises:
      UsageError: nothing at all could be run, for the user's mistake; or another queue is at work here.
      StoppedError: asked to stop, or the time is over; everything is saved.
    """
    with Supervisor(parse_limit(limit)) as stop:
        try:
            failed = work_off(tasks, way, results, stop, keep, after_each)
        except StoppedError as error:
            if stop.limit_reached:
                raise StoppedError(f"the limit of {limit} is reached: {error}", error.exit_code) from None
            raise
    found = statuses(tasks, way, results)
    print(left(found), flush=True)
    open_ones = [status for status in found if status.line is None]
    if len(open_ones) == len(failed) == len(tasks) and all(isinstance(e, UsageError) for e in failed.values()):
        raise next(iter(failed.values()))
    return failed
