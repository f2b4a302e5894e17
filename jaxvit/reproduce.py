"""`jaxvit reproduce`: the documents' results, each from one command, compared with what is asked for them."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from jaxvit import command_line, errors
from jaxvit.config import config_hash, load_config_file
from jaxvit.data.batches import TrainBatches
from jaxvit.errors import RunFailedError, UsageError, first_line, nearest
from jaxvit.evaluate import evaluate, read_split
from jaxvit.loading import load
from jaxvit.measurement import make_subject
from jaxvit.models.count import count_macs, count_params
from jaxvit.row_curves import draw_curves, keep_metrics
from jaxvit.row_results import COLUMNS, form_of, is_full, keep, numbers, outcome, page, results_of, writing
from jaxvit.rows import Row, read_rows
from jaxvit.run_directory import make_writable, read_environment, source_commit, write_text
from jaxvit.train import train
from jaxvit.training import hardware
from jaxvit.training.journal import read_jsonl

STEP_BATCH = 12  # images of a step on random images

# Lengths of a config that a short form shortens with it; shares of the training shorten by themselves.
_LENGTHS = ("optim.warmup", "optim.length", "optim.cooldown", "augment.mix_until")

_EXAMPLES = """examples:
  jaxvit reproduce --list                            the rows, what they ask for and what is known
  jaxvit reproduce fashion_fast_vit --seeds=1        trains it, or goes on; compares; adds to results/results.csv; and
                                                     before it fashion_vit, whose time it is compared with
  jaxvit reproduce mini_vit mini_vit_tl4 --seeds=2   the first two of each row's seeds
  jaxvit reproduce cct --epochs=2                    a short form, marked as such, which passes and fails nothing
  jaxvit reproduce --all                             all rows, in their order; what is finished is not done again
  jaxvit reproduce --take=rows_gpu/results           adds what was run elsewhere to the table

exit codes: 0 the rows named pass, 1 one misses a target or could not be run, 2 a mistake in the command, 75 and 130
stopped and saved: the same command goes on
"""


@dataclass(frozen=True)
class Way:
    """How rows are run.

    Attributes:
      configs: folder of config files.
      runs: folder for the runs.
      epochs: a short form of so many; 0 = each row's own.
      dtype: of the computation; '' = the config's own.
      together: all seeds of a row as one run, which an accelerator trains in one program; else one after the other.
    """

    configs: Path
    runs: Path
    epochs: int = 0
    dtype: str = ""
    together: bool = False


def with_partner(row: Row, every: dict[str, Row]) -> list[Row]:
    """A row, and before it the one that it must beat, equal or outrun.

    What is finished of it is not done again: for a ratio of times run both on the same quiet machine.
    """
    return [every[row.pair.row], row] if row.pair and row.pair.asked else [row]


def config_of(row: Row, way: Way) -> ConfigDict:
    """A row's config as it is run.

    Raises:
      UsageError: there is no such config, or it cannot be run so.
    """
    config = load_config_file(str(way.configs / row.config))
    if way.dtype:
        if "dtype" not in config.model:
            raise UsageError(f"--dtype={way.dtype}: {config.model.name} has no attribute dtype; leave it out")
        config.model.dtype = way.dtype
    if row.steps:
        return config
    config.train.duration = f"{way.epochs or row.epochs} epochs"
    if way.epochs:
        for key in _LENGTHS:
            section, _, leaf = key.partition(".")
            number, _, unit = config[section][leaf].partition(" ")
            if unit:
                shorter = float(number) * way.epochs / row.epochs
                config[section][leaf] = f"{round(shorter) if unit.startswith('step') else shorter:g} {unit}"
    return config


def run_row(row: Row, seeds: Sequence[int], way: Way) -> Iterator[tuple[dict[str, Any], Path | None]]:
    """Trains a row with each seed, or goes on, or takes what is finished; yields its lines of results.csv.

    Beside each line is the run's folder; None for a row of steps, which has none.

    Raises:
      UsageError, RunFailedError, StoppedError: as `jaxvit.train`.
    """
    config, form = config_of(row, way), form_of(row, way.epochs, way.dtype)
    if row.steps:
        print(f"{row.name}: {row.config}, {form}", flush=True)
        yield _take_steps(row, config), None
        return
    folder = way.runs / row.name
    if not is_full(form):
        folder /= f"{way.epochs}_epochs"
    folder /= way.dtype
    if way.together and len(seeds) > 1:
        config.seeds = tuple(seeds)
        folder /= f"seeds_{'_'.join(map(str, seeds))}"
        for result in train(config, folder)["seeds"]:
            run = folder / f"seed_{result['seed']}"
            yield _line(row, form, config, result["seed"], result, run), run
        return
    for seed in seeds:
        config.seed = seed
        print(f"{row.name}, seed {seed}: {row.config}", flush=True)
        run = folder / f"seed_{seed}"
        yield _line(row, form, config, seed, train(config, run), run), run


def _take_steps(row: Row, config: ConfigDict) -> dict[str, Any]:
    """Takes a recipe's steps on random images, as its model, augmentation and optimizer have it; its line.

    Raises:
      RunFailedError: the loss is not finite, or the device fails.
    """
    of_recipe = {"recipe": recipe_of(config), "config_hash": config_hash(config)}
    config.train.batch_size = STEP_BATCH
    subject = make_subject(config, synthetic=True)
    assembly, started = subject.assembly, time.monotonic()
    state = jax.jit(assembly.create_state)(assembly.init_key())
    params = count_params(state.variables)
    batches = TrainBatches(subject.dataset.read(subject.plan.data.train), STEP_BATCH, subject.plan.seed)
    step = jax.jit(assembly.train_step(), donate_argnums=0).lower(state, dict(batches[0])).compile()
    compiled = time.monotonic()
    for i in range(row.steps):
        state, sums = step(state, dict(batches[i]))
    loss = float(sums["loss"] / sums["count"])
    if not math.isfinite(loss):
        raise RunFailedError(f"{row.config}: the loss of step {row.steps} is {loss}")
    seconds = {"compile": compiled - started, "train": time.monotonic() - compiled}
    return {
        **dict.fromkeys(COLUMNS, ""),
        "row": row.name,
        "form": form_of(row),
        **of_recipe,
        "seed": subject.plan.seed,
        "n": 0,
        "loss": round(loss, 6),
        "params": params,
        "multiply_adds": _multiply_adds(assembly.model, subject.plan.input_shape),
        **{f"{kind}_seconds": round(value, 3) for kind, value in seconds.items()},
        "hardware": _hardware(hardware.device_name(), hardware.machine()["cores"], subject.plan.train.devices),
        "versions": _versions(importlib.metadata.version("jax"), platform.python_version()),
        "commit": source_commit(),
        "date": datetime.date.today().isoformat(),
    }


def recipe_of(config: ConfigDict) -> str:
    """The config's hash without its seed: the same for runs that may be averaged."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.seed, config.seeds = 0, ()
    return config_hash(config)


def _hardware(device: str, cores: str, devices: int) -> str:
    return f"{devices} devices of " * (devices > 1) + f"{device}, {cores} cores"


def _versions(jax_version: str, python: str) -> str:
    return f"jax {jax_version}, Python {python}"


def _multiply_adds(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    return count_macs(model, input_shape)["all"]


def _line(row: Row, form: str, config: ConfigDict, seed: int, result: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A finished run's line; measures its last weights where the row asks for these."""
    measured = result["test"]
    loaded = load(folder, checkpoint=row.weights, weights="model" if row.weights == "latest" else "chosen")
    if row.weights == "latest":
        _, source = read_split(loaded, "test")
        found, _ = evaluate(loaded, source)
        measured = found | found["keras"]  # the precision and recall that a run's own test has
    environment = read_environment(folder)
    return {
        "row": row.name,
        "form": form,
        "recipe": recipe_of(config),
        "config_hash": result["config_hash"],
        "seed": seed,
        "n": measured["count"],
        **{name: round(measured[name], 6) for name in ("top1", "top5", "loss", "precision", "recall")},
        "epochs": round(max(record["epoch"] for record in read_jsonl(folder / "metrics.jsonl")), 3),
        "weights": row.weights,
        "params": result["params"],
        "multiply_adds": _multiply_adds(loaded.model, loaded.input_shape),
        **{f"{kind}_seconds": result["seconds"][kind] for kind in ("compile", "train", "eval", "save")},
        "data": "/".join(about["sha256"] for about in environment["data"].values()),
        **circumstances(environment["starts"]),
    }


def circumstances(starts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Where and by what a run was trained: of all its starts, joined by ' + ' where they differ."""

    def each(tell: Callable[[Mapping[str, Any]], str]) -> str:
        return " + ".join(dict.fromkeys(tell(start) for start in starts))

    def where(start: Mapping[str, Any]) -> str:
        return _hardware(start.get("device", "?"), start.get("cores", "?"), len(start.get("devices", ())))

    return {
        "hardware": each(where),
        "versions": each(lambda start: _versions(start["packages"]["jax"], start["python"])),
        "commit": each(lambda start: start.get("commit", "")),
        "date": starts[-1]["time"].partition("T")[0] if starts else "",
    }


def _show(rows: Sequence[Row], lines: Sequence[dict[str, str]], every: dict[str, Row], options: Any) -> None:
    table = Table(title=f"{len(rows)} rows", title_justify="left")
    for name in ("row", "config", "asked", "epochs", "seeds", "minutes", "measured"):
        table.add_column(name, overflow="fold")
    for row in rows:
        epochs, seeds = options.epochs or row.epochs, len(row.seeds[: options.seeds or None])
        minutes = f"{row.minutes * seeds * epochs / row.epochs:.0f}" if row.minutes else "long"
        said, _ = outcome(row, lines, every)
        table.add_row(row.name, row.config, numbers(row.target), str(epochs), str(seeds), minutes, "\n".join(said))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200
    console.print(table)
    print("minutes: of all seeds together, on two CPU cores")


def _parser() -> command_line.Parser:
    parser = command_line.Parser("reproduce", "Runs the documents' experiments and compares.", _EXAMPLES)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="what to run; --list shows them")
    parser.add_argument("--all", action="store_true", help="every row, one after the other: days on a CPU")
    parser.add_argument("--list", action="store_true", help="show the rows; run nothing")
    parser.add_argument(
        "--seeds", type=int, default=0, metavar="N", help="the first N of each row's seeds (default: all)"
    )
    parser.add_argument("--together", action="store_true", help="a row's seeds in one program, for an accelerator")
    parser.add_argument("--epochs", type=int, default=0, metavar="N", help="a short form of so many epochs")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="", help="of the computation, marked as such in the table"
    )
    parser.add_argument("--take", default="", metavar="DIR", help="add the table in DIR to this one; run nothing")
    parser.add_argument("--runs", default="runs/reproduce", metavar="DIR", help="(default: runs/reproduce)")
    parser.add_argument("--results", default="results", metavar="DIR", help="rows.toml, results.csv, README.md")
    parser.add_argument("--configs", default="configs", metavar="DIR", help="(default: configs)")
    parser.add_argument("--dry_run", action="store_true", help="say what would be run; train nothing")
    return parser


def _chosen(options: Any, every: dict[str, Row]) -> list[Row]:
    """Those that are asked for.

    Raises:
      UsageError: there is no such row, or one cannot be run so.
    """
    for name in ("seeds", "epochs"):
        if getattr(options, name) < 0:
            raise UsageError(f"--{name}={getattr(options, name)}: must be 1 or more")
    for name in options.rows:
        if name not in every:
            raise UsageError(f"there is no row '{name}'{nearest(name, every)}; see jaxvit reproduce --list")
    if options.all and options.rows:
        raise UsageError("--all names every row already: leave out the others, or --all")
    if not (options.rows or options.all or options.list):
        raise UsageError("name rows, or give --all, which takes days; jaxvit reproduce --list shows them")
    rows = [every[name] for name in dict.fromkeys(options.rows)] or list(every.values())
    for row in rows if options.rows else ():
        if not row.steps and options.epochs > row.epochs:
            raise UsageError(f"--epochs={options.epochs}: {row.name} has {row.epochs}; a short form has fewer")
    return rows


def main(argv: list[str]) -> int:
    """The verb."""
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    parser.refuse_unknown(rest)
    results = Path(options.results)
    every, file = read_rows(results / "rows.toml"), results / "results.csv"
    if options.take:
        return _take(Path(options.take), every, results)
    asked = _chosen(options, every)
    rows = list({row.name: row for one in asked for row in with_partner(one, every)}.values())
    way = Way(Path(options.configs), Path(options.runs), options.epochs, options.dtype, options.together)
    lines = results_of(file)
    if options.dry_run:
        for row in rows:
            config_of(row, way)
    if options.list or options.dry_run:
        _show(asked if options.list else rows, lines, every, options)
        return errors.DONE
    make_writable(results, "name another folder with --results, with a copy of rows.toml in it")
    not_run: dict[str, Exception] = {}
    for row in rows:
        try:
            for line, run in run_row(row, row.seeds[: options.seeds or None], way):
                _keep(line, run, row, every, results)
        except (UsageError, RunFailedError, OSError, jax.errors.JaxRuntimeError) as error:
            not_run[row.name] = error
            print(f"{row.name}: {'stopped by' if isinstance(error, OSError) else 'not run'}: {first_line(error)[:300]}")
    if len(not_run) == len(rows) and all(isinstance(error, UsageError) for error in not_run.values()):
        raise next(iter(not_run.values()))  # nothing was done: a mistake in the command, or no data
    lines, failed = results_of(file), False
    for row in rows:
        form = form_of(row, way.epochs, way.dtype)
        said, passed = outcome(row, lines, every, form)
        if row in asked:  # what a partner says on its own accuracy is told, no more
            failed |= row.name in not_run or (not passed and (is_full(form) or row.steps > 0))
        print(f"{row.name}{'' if is_full(form) else f', {form}'}: {'; '.join(said)}")
    print(f"table: {results / 'README.md'}", flush=True)
    return errors.SOME_INPUTS_FAILED if failed else errors.DONE


def _keep(line: dict[str, Any], run: Path | None, row: Row, every: dict[str, Row], results: Path) -> None:
    """A run's line, metrics, curve and what the page says of it."""
    with writing(results):
        keep(line, results / "results.csv")
        if run:
            keep_metrics(run, row, line, results)
        _write_page(every, results)


def _write_page(every: dict[str, Row], results: Path) -> None:
    lines = results_of(results / "results.csv")
    write_text(results / "README.md", page(every, lines, draw_curves(every, results)))


def _take(other: Path, every: dict[str, Row], results: Path) -> int:
    """Adds another table's lines, with their metrics.

    Raises:
      UsageError: there is none, or it has rows that this one has not.
    """
    lines = results_of(other / "results.csv")
    if not lines:
        raise UsageError(f"--take={other}: there is no results.csv with lines in it")
    for line in lines:
        if line["row"] not in every:
            raise UsageError(f"--take={other}: there is no row '{line['row']}' here{nearest(line['row'], every)}")
    make_writable(results, "name another folder with --results")
    with writing(results):
        (results / "metrics").mkdir(exist_ok=True)
        for metrics in (other / "metrics").glob("*.jsonl"):
            shutil.copyfile(metrics, results / "metrics" / metrics.name)
        for line in lines:
            keep(line, results / "results.csv")
        _write_page(every, results)
    print(f"{len(lines)} lines taken from {other}; table: {results / 'README.md'}")
    return errors.DONE


if __name__ == "__main__":
    command_line.run(main)
