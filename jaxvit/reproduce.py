"""`jaxvit reproduce`: the documents' results, each from one command, compared with what is asked for them."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import platform
import subprocess
import time
from collections.abc import Iterator, Sequence
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
from jaxvit.row_results import COLUMNS, FULL, form_of, keep, numbers, outcome, page, results_of
from jaxvit.rows import Row, read_rows
from jaxvit.run_directory import read_environment, write_text
from jaxvit.train import train
from jaxvit.training import hardware

STEP_BATCH = 12  # images of a step on random images

_EXAMPLES = """examples:
  jaxvit reproduce --list                            the rows, what they ask for and what is known
  jaxvit reproduce fashion_fast_vit                  trains it, or goes on; compares; adds to results/results.csv; and
                                                     before it fashion_vit, whose time it is compared with
  jaxvit reproduce mini_vit mini_vit_tl4 --seeds=2   the first two of each row's seeds
  jaxvit reproduce cct --epochs=2                    a short form, marked as such, which passes and fails nothing
  jaxvit reproduce --all                             all rows, in their order; what is finished is not done again

exit codes: 0 what was run passes, 1 a target is missed or a row could not be run, 2 a mistake in the command, 75 and
130 stopped and saved: the same command goes on
"""


def with_partner(row: Row, every: dict[str, Row]) -> list[Row]:
    """A row, and before it the one that it must beat or outrun: times of another day or machine say nothing."""
    asked = row.pair is not None and (row.pair.ratio > 0 or row.pair.above)
    return [every[row.pair.row], row] if row.pair and asked else [row]


def run_row(
    row: Row, seeds: Sequence[int], epochs: int, configs: Path, runs: Path, *, together: bool = False
) -> Iterator[tuple[dict[str, Any], Path | None]]:
    """Trains a row with each seed, or goes on, or takes what is finished; yields its lines of results.csv.

    Beside each line is the run's folder; None for a row of steps, which has none.

    Args:
      row: what to run.
      seeds: of the runs.
      epochs: 0 = the row's own.
      configs: folder of config files.
      runs: folder for the runs.
      together: all seeds as one run, which an accelerator trains in one program; else one after the other.

    Raises:
      UsageError, RunFailedError, StoppedError: as `jaxvit.train`.
    """
    config = load_config_file(str(configs / row.config))
    if row.steps:
        print(f"{row.name}: {row.config}, {form_of(row)}", flush=True)
        yield _take_steps(row, config), None
        return
    config.train.duration = f"{epochs or row.epochs} epochs"
    form = FULL if epochs in (0, row.epochs) else f"{epochs} of {row.epochs} epochs"
    folder = runs / (row.name if form == FULL else f"{row.name}_{epochs}")
    if together and len(seeds) > 1:
        config.seeds = tuple(seeds)
        folder = folder / f"seeds_{'_'.join(map(str, seeds))}"
        for result in train(config, folder)["seeds"]:
            run = folder / f"seed_{result['seed']}"
            yield _line(row, form, epochs, result["seed"], result, run), run
        return
    for seed in seeds:
        config.seed = seed
        print(f"{row.name}, seed {seed}: {row.config}", flush=True)
        run = folder / f"seed_{seed}"
        yield _line(row, form, epochs, seed, train(config, run), run), run


def _take_steps(row: Row, config: ConfigDict) -> dict[str, Any]:
    """Takes a recipe's steps on random images, as its model, augmentation and optimizer have it; its line.

    Raises:
      RunFailedError: the loss is not finite, or the device fails.
    """
    of_recipe = config_hash(config)
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
        "config_hash": of_recipe,
        "seed": subject.plan.seed,
        "n": 0,
        "loss": round(loss, 6),
        "params": params,
        "multiply_adds": _multiply_adds(assembly.model, subject.plan.input_shape),
        **{f"{kind}_seconds": round(value, 3) for kind, value in seconds.items()},
        **_circumstances(),
    }


def _multiply_adds(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    return count_macs(model, input_shape)["all"]


def _circumstances() -> dict[str, str]:
    return {
        "hardware": f"{hardware.device_name()}, {hardware.machine()['cores']} cores",
        "versions": f"jax {importlib.metadata.version('jax')}, Python {platform.python_version()}",
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }


def _line(row: Row, form: str, epochs: int, seed: int, result: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A finished run's line; measures its last weights where the row asks for these."""
    measured = result["test"]
    loaded = load(folder, checkpoint=row.weights, weights="model" if row.weights == "latest" else "chosen")
    if row.weights == "latest":
        _, source = read_split(loaded, "test")
        measured, _ = evaluate(loaded, source)
    return {
        "row": row.name,
        "form": form,
        "config_hash": result["config_hash"],
        "seed": seed,
        "n": measured["count"],
        **{name: round(measured[name], 6) for name in ("top1", "top5", "loss")},
        "epochs": epochs or row.epochs,
        "weights": row.weights,
        "params": result["params"],
        "multiply_adds": _multiply_adds(loaded.model, loaded.input_shape),
        **{f"{kind}_seconds": result["seconds"][kind] for kind in ("compile", "train", "eval", "save")},
        "data": read_environment(folder)["data"].get("test", {}).get("sha256", ""),
        **_circumstances(),
    }


def _commit() -> str:
    """The checkout's commit; '' outside of one."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip()


def _show(rows: Sequence[Row], lines: Sequence[dict[str, str]], every: dict[str, Row]) -> None:
    table = Table(title=f"{len(rows)} rows", title_justify="left")
    for name in ("row", "config", "asked", "epochs", "minutes", "measured"):
        table.add_column(name, overflow="fold")
    for row in rows:
        minutes = f"{row.minutes * len(row.seeds):g}" if row.minutes else "long"
        said, _ = outcome(row, lines, every)
        table.add_row(row.name, row.config, numbers(row.target), str(row.epochs), minutes, "\n".join(said))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200
    console.print(table)


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
    parser.add_argument("--runs", default="runs/reproduce", metavar="DIR", help="(default: runs/reproduce)")
    parser.add_argument("--results", default="results", metavar="DIR", help="rows.toml, results.csv, README.md")
    parser.add_argument("--configs", default="configs", metavar="DIR", help="(default: configs)")
    parser.add_argument("--dry_run", action="store_true", help="say what would be run; train nothing")
    return parser


def main(argv: list[str]) -> int:
    """The verb."""
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    parser.refuse_unknown(rest)
    for name in ("seeds", "epochs"):
        if getattr(options, name) < 0:
            raise UsageError(f"--{name}={getattr(options, name)}: must be 1 or more")
    results = Path(options.results)
    every = read_rows(results / "rows.toml")
    for name in options.rows:
        if name not in every:
            raise UsageError(f"there is no row '{name}'{nearest(name, every)}; see jaxvit reproduce --list")
    rows = list({row.name: row for name in options.rows for row in with_partner(every[name], every)}.values())
    if options.all and options.rows:
        raise UsageError("--all names every row already: leave out the others, or --all")
    if not (rows or options.all or options.list):
        raise UsageError("name rows, or give --all, which takes days; jaxvit reproduce --list shows them")
    rows = rows or list(every.values())
    file = results / "results.csv"
    lines = results_of(file)
    if options.list or options.dry_run:
        _show(rows, lines, every)
        return errors.DONE
    failed = False
    for row in rows:
        seeds = row.seeds[: options.seeds or None]
        folders = Path(options.configs), Path(options.runs)
        try:
            for line, run in run_row(row, seeds, options.epochs, *folders, together=options.together):
                keep(line, file)
                if run:
                    keep_metrics(run, row, line["form"], line["seed"], results)
                write_text(results / "README.md", page(every, results_of(file), draw_curves(every, results)))
        except (UsageError, RunFailedError, jax.errors.JaxRuntimeError) as error:
            failed = True
            print(f"{row.name}: not run: {first_line(error)[:300]}", flush=True)
    lines = results_of(file)
    for row in rows:
        said, passed = outcome(row, lines, every)
        failed |= not passed and (not options.epochs or row.steps > 0)
        print(f"{row.name}: {'; '.join(said)}")
    print(f"table: {results / 'README.md'}", flush=True)
    return errors.SOME_INPUTS_FAILED if failed else errors.DONE


if __name__ == "__main__":
    command_line.run(main)
