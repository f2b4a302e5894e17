"""`jaxvit reproduce`: the documents' results, each from one command, compared with what is asked for them."""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import io
import platform
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxvit import command_line, errors
from jaxvit.config import load_config_file
from jaxvit.errors import RunFailedError, UsageError, nearest
from jaxvit.evaluate import evaluate, read_split
from jaxvit.loading import load
from jaxvit.rows import Row, compare, judge, read_rows, student, wilson
from jaxvit.run_directory import read_environment, write_text
from jaxvit.train import train
from jaxvit.training import hardware

COLUMNS = (
    *("row", "form", "config_hash", "seed", "n", "top1", "top5", "loss", "epochs", "weights", "params"),
    *(
        "compile_seconds",
        "train_seconds",
        "eval_seconds",
        "save_seconds",
        "hardware",
        "versions",
        "data",
        "commit",
        "date",
    ),
)
FULL = "full"

_EXAMPLES = """examples:
  jaxvit reproduce --list                            the rows, what they ask for and what is known
  jaxvit reproduce fashion_fast_vit                  trains it, or goes on; compares; adds a line to results/results.csv
  jaxvit reproduce mini_vit mini_vit_tl4 --seeds=2   the first two of each row's seeds
  jaxvit reproduce cct --epochs=2                    a short form, marked as such, which passes and fails nothing
  jaxvit reproduce                                   all rows, in their order; what is finished is not done again

exit codes: 0 what was run passes, 1 a target is missed or a row could not be run, 2 a mistake in the command, 75 and
130 stopped and saved: the same command goes on
"""


def results_of(file: Path) -> list[dict[str, str]]:
    """The lines of results.csv; [] if there is none.

    Raises:
      UsageError: it is not that file.
    """
    if not file.exists():
        return []
    with file.open(newline="") as stream:
        reader = csv.DictReader(stream)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise UsageError(f"{file}: its columns are not those of this version; move it away")
        return list(reader)


def run_row(
    row: Row, seeds: Sequence[int], epochs: int, configs: Path, runs: Path, *, together: bool = False
) -> Iterator[dict[str, Any]]:
    """Trains a row with each seed, or goes on, or takes what is finished; yields its lines of results.csv.

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
    config.train.duration = f"{epochs or row.epochs} epochs"
    form = FULL if epochs in (0, row.epochs) else f"{epochs} of {row.epochs} epochs"
    folder = runs / (row.name if form == FULL else f"{row.name}_{epochs}")
    if together and len(seeds) > 1:
        config.seeds = tuple(seeds)
        folder = folder / f"seeds_{'_'.join(map(str, seeds))}"
        for result in train(config, folder)["seeds"]:
            yield _line(row, form, epochs, result["seed"], result, folder / f"seed_{result['seed']}")
        return
    for seed in seeds:
        config.seed = seed
        print(f"{row.name}, seed {seed}: {row.config}", flush=True)
        yield _line(row, form, epochs, seed, train(config, folder / f"seed_{seed}"), folder / f"seed_{seed}")


def _line(row: Row, form: str, epochs: int, seed: int, result: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A finished run's line; measures its last weights where the row asks for these."""
    measured = result["test"]
    if row.weights == "latest":
        loaded = load(folder, checkpoint="latest", weights="model")
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
        **{f"{kind}_seconds": result["seconds"][kind] for kind in ("compile", "train", "eval", "save")},
        "hardware": f"{hardware.device_name()}, {hardware.machine()['cores']} cores",
        "versions": f"jax {importlib.metadata.version('jax')}, Python {platform.python_version()}",
        "data": read_environment(folder)["data"].get("test", {}).get("sha256", ""),
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }


def _commit() -> str:
    """The checkout's commit; '' outside of one."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip()


def keep(line: dict[str, Any], file: Path) -> None:
    """Adds a line to results.csv, in place of an older one of the same run on the same hardware."""
    same = ("row", "form", "seed", "hardware", "config_hash")
    lines = [old for old in results_of(file) if any(str(line[name]) != old[name] for name in same)]
    lines.append({name: str(line[name]) for name in COLUMNS})
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, stream.getvalue())


def newest(lines: Sequence[dict[str, str]], row: Row, form: str = FULL) -> list[dict[str, str]]:
    """A row's lines of one form on one hardware, that of the last line: one a seed, in the order of the seeds."""
    mine = [line for line in lines if line["row"] == row.name and line["form"] == form]
    if not mine:
        return []
    hardware_of_last = mine[-1]["hardware"]
    by_seed = {int(line["seed"]): line for line in mine if line["hardware"] == hardware_of_last}
    return [by_seed[seed] for seed in sorted(by_seed)]


def outcome(row: Row, lines: Sequence[dict[str, str]], rows: dict[str, Row]) -> tuple[list[str], bool]:
    """Sentences on what a row's full runs say to its targets, and whether all are met."""
    runs = newest(lines, row)
    if not runs:
        return ["not run"], False
    said, passed = [], True
    for verdict in judge(row, runs):
        passed &= verdict.passed
        end = "passes" if verdict.passed else f"misses it by {100 * verdict.missing:.2f} points"
        said.append(
            f"{verdict.measure} {verdict.value:.2%} (95 %: {verdict.low:.2%} to {verdict.high:.2%}) against "
            f"{verdict.target:.2%}: {end}"
        )
    if not row.target:
        values = [float(run["top1"]) for run in runs]
        low, high = student(values) if len(values) > 1 else wilson(values[0], int(runs[0]["n"]))
        said.append(f"top1 {statistics.fmean(values):.2%} (95 %: {low:.2%} to {high:.2%}); nothing is asked")
    if row.pair and (found := compare(row, runs, newest(lines, rows[row.pair.row]))):
        interval = "" if found.low is None else f" (95 %: {100 * found.low:+.2f} to {100 * found.high:+.2f})"
        equal = "" if found.equal is None else ", equal within a point" if found.equal else ", not shown to be equal"
        ratio = f"{found.ratio:.2f} times as fast"
        if found.asked:
            passed &= found.passed
            ratio += f", {found.asked:g} asked: {'passes' if found.passed else 'misses it'}"
        said.append(f"{100 * found.mean:+.2f} points to {row.pair.row}{interval}{equal}; {ratio}")
    return said, passed


def page(rows: dict[str, Row], lines: Sequence[dict[str, str]]) -> str:
    """results/README.md."""
    text = [
        "# Results",
        "",
        "What the five documents report, what is asked of this project for it, and what was measured. Written by",
        "`jaxvit reproduce` from `rows.toml` and `results.csv`, where every number has its line; a row without a line",
        "says so. Intervals are of 95 %: of one run Wilson's for its test images, of several seeds Student's for their",
        "mean.",
        "",
        "| row | config | document | asked | runs | measured |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows.values():
        runs = newest(lines, row)
        said, _ = outcome(row, lines, rows)
        forms = sorted({line["form"] for line in lines if line["row"] == row.name} - {FULL})
        for form in forms:
            short = newest(lines, row, form)
            values = ", ".join(f"{float(line['top1']):.2%}" for line in short)
            said.append(f"a short form, {form}: {values}")
        seeds = f"{len(runs)}, n = {runs[0]['n']}" if runs else "none"
        cells = [
            f"`{row.name}`",
            f"`{row.config}`",
            _numbers(row.document),
            _numbers(row.target),
            seeds,
            "<br>".join(said),
        ]
        text.append(f"| {' | '.join(cells)} |")
    text += ["", "## Departures that a row has switched on", ""]
    text += [f"- `{row.name}`: {', '.join(row.quirks)}" for row in rows.values() if row.quirks]
    notes = [f"- `{row.name}`: {row.note}" for row in rows.values() if row.note]
    if notes:
        text += ["", "## Notes", "", *notes]
    if lines:
        text += ["", "## Where", ""]
        text += [f"- {where}" for where in sorted({f"{line['hardware']}; {line['versions']}" for line in lines})]
    return "\n".join(text) + "\n"


def _numbers(numbers: Any) -> str:
    shown = [f"{name} {value:.4f}" if name == "loss" else f"{name} {value:.2%}" for name, value in numbers.items()]
    return ", ".join(shown) or "–"


def _show(rows: Sequence[Row], lines: Sequence[dict[str, str]], every: dict[str, Row]) -> None:
    table = Table(title=f"{len(rows)} rows", title_justify="left")
    for name in ("row", "config", "asked", "epochs", "minutes", "measured"):
        table.add_column(name, overflow="fold")
    for row in rows:
        minutes = f"{row.minutes * len(row.seeds):g}" if row.minutes else "long"
        said, _ = outcome(row, lines, every)
        table.add_row(row.name, row.config, _numbers(row.target), str(row.epochs), minutes, "\n".join(said))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200
    console.print(table)


def _parser() -> command_line.Parser:
    parser = command_line.Parser("reproduce", "Runs the documents' experiments and compares.", _EXAMPLES)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="(default: all)")
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
    rows = [every[name] for name in options.rows] or list(every.values())
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
            for line in run_row(row, seeds, options.epochs, *folders, together=options.together):
                keep(line, file)
                write_text(results / "README.md", page(every, results_of(file)))
        except (UsageError, RunFailedError) as error:
            failed = True
            print(f"{row.name}: not run: {error}", flush=True)
    lines = results_of(file)
    for row in rows:
        said, passed = outcome(row, lines, every)
        failed |= not passed and not options.epochs
        print(f"{row.name}: {'; '.join(said)}")
    print(f"table: {results / 'README.md'}", flush=True)
    return errors.SOME_INPUTS_FAILED if failed else errors.DONE


if __name__ == "__main__":
    command_line.run(main)
