"""`jaxvit reproduce --queue`: trains the runs listed in a file one after the other, within a time limit.

The file is TOML, with one table for each entry, from top to bottom:

    [[run]]
    row = "cct_best"                    # a row of rows.toml
    seeds = [0, 1, 2]                   # some of the row's seeds, in this order; default: all

    [[run]]
    row = ["mini_vit", "mini_vit_tl4"]  # in turns, seed by seed, so that pairs can be compared early
    epochs = 2                          # a short form with fewer epochs; default: the full row

A run is finished if results.csv has its line, with the current recipe.
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
from jaxvit.reproduce.rows import TableRow
from jaxvit.reproduce.runs import RunSettings, config_of, folder_of, recipe_of, run_row
from jaxvit.reproduce.supervisor import Supervisor
from jaxvit.reproduce.table import form_of, newest, results_of

_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_KEYS = ("row", "seeds", "epochs")


@dataclass(frozen=True)
class Task:
    """One run of the queue: a row, a seed, and the number of epochs (0 = full).

    A row of steps on random images is a single task, with the seed of its config.
    """

    row: TableRow
    seed: int
    epochs: int = 0

    def __str__(self) -> str:
        short = f", {self.epochs} of {self.row.epochs} epochs" if self.epochs else ""
        return self.row.name if self.row.steps else f"{self.row.name}, seed {self.seed}{short}"

    def run_settings(self, settings: RunSettings) -> RunSettings:
        return dataclasses.replace(settings, epochs=self.epochs)

    def line_in(self, lines: Sequence[dict[str, str]], settings: RunSettings) -> dict[str, str] | None:
        """Its line in results.csv with the current recipe, from any machine; None if there is none."""
        form = form_of(self.row, self.epochs, settings.dtype)
        recipe = recipe_of(config_of(self.row, self.run_settings(settings)))
        found = [
            line
            for line in lines
            if (line["row"], line["form"], line["recipe"]) == (self.row.name, form, recipe)
            and (self.row.steps or int(line["seed"]) == self.seed)
        ]
        return found[-1] if found else None


def parse_limit(text: str) -> float:
    """Parses a limit such as '2 hours', '90 minutes' or '1.5 days' to seconds; '' gives math.inf.

    Raises:
      UsageError: the text is not a duration.
    """
    if not text:
        return math.inf
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(second|minute|hour|day)s?\s*", text)
    if not found or not float(found[1]):
        raise UsageError(f"--limit='{text}': write a time, such as --limit='2 hours' or --limit='90 minutes'")
    return float(found[1]) * _UNITS[found[2]]


def read_queue(file: Path, rows: Mapping[str, TableRow]) -> list[Task]:
    """Reads the runs of a queue file, in order.

    Raises:
      UsageError: the file does not exist, or is not a valid queue of these rows.
    """
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = packaged("results") / "queue.toml"
        raise UsageError(f"--queue={file}: there is no such file; start from a copy of {known}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError, RecursionError) as error:
        raise UsageError(f"--queue={file}: cannot be read: {first_line(error)}") from None
    listed = found.get("run", [])
    if set(found) - {"run"} or not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise UsageError(f"--queue={file}: it must contain only [[run]] tables")
    if not listed:
        raise UsageError(f"--queue={file}: it is empty; write [[run]] and below it row = 'NAME'")
    tasks: list[Task] = []
    for number, one in enumerate(listed, 1):
        try:
            more = _tasks(one, rows)
            if twice := [str(task) for i, task in enumerate(more) if task in tasks or task in more[:i]]:
                raise ValueError(f"{twice[0]} is listed twice")
        except ValueError as error:
            raise UsageError(f"--queue={file}: [[run]] number {number}: {error}") from None
        tasks += more
    return tasks


def _tasks(one: Mapping[str, Any], rows: Mapping[str, TableRow]) -> list[Task]:
    """The runs of one [[run]] table. Raises ValueError with a description of the mistake."""
    for key in one:
        if key not in _KEYS:
            raise ValueError(f"unknown key '{key}'{nearest(key, _KEYS)}; keys: {', '.join(_KEYS)}")
    names = [one["row"]] if isinstance(one.get("row"), str) else one.get("row")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError("row is missing; write row = 'NAME', or row = ['NAME', 'NAME']")
    for name in names:
        if name not in rows:
            raise ValueError(f"there is no row '{name}'{nearest(name, rows)}; see jaxvit reproduce --list")
    epochs, seeds = one.get("epochs", 0), one.get("seeds", [])
    if type(epochs) is not int or ("epochs" in one and epochs < 1):
        raise ValueError(f"epochs = {epochs!r}: must be a whole number, 1 or more")
    if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds) or ("seeds" in one and not seeds):
        raise ValueError(f"seeds = {seeds!r}: must be a list of whole numbers, such as [0, 1, 2]")
    chosen = [rows[name] for name in names]
    for row in chosen:
        if row.steps and set(one) - {"row"}:
            raise ValueError(f"{row.name} runs single steps and takes neither seeds nor epochs")
        if epochs >= row.epochs and epochs:
            raise ValueError(f"epochs = {epochs}: must be below the {row.epochs} epochs of {row.name}")
        for seed in seeds:
            if seed not in row.seeds:
                known = ", ".join(map(str, row.seeds))
                raise ValueError(f"seeds = {seeds}: {row.name} has the seeds {known} in rows.toml")
    turns = itertools.zip_longest(*(row.seeds[:1] if row.steps else seeds or row.seeds for row in chosen))
    pairs = [(row, seed) for turn in turns for row, seed in zip(chosen, turn, strict=True)]
    return [Task(row, seed, epochs) for row, seed in pairs if seed is not None]


@dataclass(frozen=True)
class Status:
    """State of a task: its line in results.csv if finished, else the progress of its run (None = not started)."""

    task: Task
    line: dict[str, str] | None
    at: Reached | None

    @property
    def minutes(self) -> float | None:
        """Expected remaining minutes on two otherwise idle CPU cores; None if the row has no estimate."""
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
            return "trained, not in results.csv yet"
        if self.at and self.at.step:
            epochs = self.task.epochs or self.task.row.epochs
            return f"saved after {self.at.epochs:.4g} of {epochs} epochs" if self.at.epochs else "saved"
        return "to do"


def statuses(
    tasks: Sequence[Task], settings: RunSettings, results: Path, archived: Mapping[str, Reached] | None = None
) -> list[Status]:
    """The state of each task, from results.csv, the folder of runs, and an archive that is not unpacked yet.

    Raises:
      UsageError: a row cannot be run with these settings, or results.csv is damaged.
    """
    lines = results_of(results / "results.csv")
    found = []
    for task in tasks:
        run = folder_of(task.row, task.run_settings(settings)) / f"seed_{task.seed}"
        at, packed = reached(run), (archived or {}).get(run.relative_to(settings.runs).as_posix())
        if packed and not (at and at >= packed):
            at = packed
        found.append(Status(task, task.line_in(lines, settings), at))
    return found


def listing(found: Sequence[Status]) -> str:
    """The table that a dry run prints."""
    total, known, rows = 0.0, True, []
    for number, status in enumerate(found, 1):
        minutes = status.minutes
        total, known = total + (minutes or 0.0), known and minutes is not None
        shown = "unknown" if minutes is None else f"{minutes:.0f}"
        rows.append((str(number), str(status.task), status.said(), shown, f"{total:.0f}" + "+" * (not known)))
    head = ("", "run", "state", "minutes", "sum")
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    sides = (str.rjust, str.ljust, str.ljust, str.rjust, str.rjust)
    text = ["  ".join(side(*cell) for side, *cell in zip(sides, row, widths, strict=True)) for row in [head, *rows]]
    return "\n".join([*text, left(found), "minutes: remaining, estimated for two otherwise idle CPU cores"])


def left(found: Sequence[Status]) -> str:
    """A summary such as '3 of 17 runs are finished; 14 left, about 11.2 hours'."""
    open_ones = [status for status in found if status.line is None]
    minutes = [status.minutes for status in open_ones]
    known = sum(m for m in minutes if m is not None)
    said = f"{len(found) - len(open_ones)} of {len(found)} runs are finished"
    if not open_ones:
        return said
    about = f"about {known / 60:.1f} hours" if known >= 60 else f"about {math.ceil(known)} minutes"
    more = " plus runs without an estimate" * (None in minutes)
    return f"{said}; {len(open_ones)} left, {about}{more}" if known else f"{said}; {len(open_ones)} left"


Keep = Callable[[dict[str, Any], Path | None, TableRow], None]


def work_off(
    tasks: Sequence[Task],
    settings: RunSettings,
    results: Path,
    stop: Supervisor,
    keep: Keep,
    after_each: Callable[[], Any],
) -> dict[str, Exception]:
    """Trains the unfinished runs, in order.

    Args:
      tasks: the queue.
      settings: settings of all runs; the number of epochs comes from each task.
      results: folder of results.csv, which tells which runs are finished.
      stop: supervisor, already entered.
      keep: called with (line, folder, row) of each finished run, to store them.
      after_each: called after each run, finished or not.

    Returns:
      {task: error} of the runs that failed.

    Raises:
      StoppedError: stopped by a signal or the time limit; all state is saved.
    """
    failed: dict[str, Exception] = {}
    for task in tasks:
        lines = results_of(results / "results.csv")
        if task.line_in(lines, settings) is not None:
            continue
        stop.between_runs(left(statuses(tasks, settings, results)))
        try:
            for line, run in run_row(
                task.row, (task.seed,), dataclasses.replace(task.run_settings(settings), stop=stop)
            ):
                keep(line, run, task.row)
                print(f"{task}: {_said(task, settings, results)}", flush=True)
        except (UsageError, RunFailedError, OSError) as error:
            failed[str(task)] = error
            print(f"{task}: not run: {first_line(error)[:300]}", flush=True)
        after_each()
        jax.clear_caches()  # free memory; the next run uses the compilation cache on disk
        gc.collect()
    return failed


def _said(task: Task, settings: RunSettings, results: Path) -> str:
    """The outcome of the row's runs so far."""
    lines, form = results_of(results / "results.csv"), form_of(task.row, task.epochs, settings.dtype)
    runs = newest(lines, task.row, form)
    count = "" if task.row.steps else f"{len(runs)} of {len(task.row.seeds)} seeds: "
    return count + "; ".join(outcome(task.row, runs, lines, form)[0])


def run_queue(
    tasks: Sequence[Task],
    settings: RunSettings,
    results: Path,
    limit: str,
    keep: Keep,
    after_each: Callable[[], Any] = lambda: None,
) -> dict[str, Exception]:
    """Runs `work_off` within a limit such as '2 hours', and prints what is left.

    Raises:
      UsageError: every run failed because of a user's mistake, or another queue is running on this machine.
      StoppedError: stopped by a signal or the time limit; all state is saved.
    """
    with Supervisor(parse_limit(limit)) as stop:
        try:
            failed = work_off(tasks, settings, results, stop, keep, after_each)
        except StoppedError as error:
            if stop.limit_reached:
                raise StoppedError(f"the limit of {limit} is reached: {error}", error.exit_code) from None
            raise
    found = statuses(tasks, settings, results)
    print(left(found), flush=True)
    open_ones = [status for status in found if status.line is None]
    if len(open_ones) == len(failed) == len(tasks) and all(isinstance(e, UsageError) for e in failed.values()):
        raise next(iter(failed.values()))
    return failed
