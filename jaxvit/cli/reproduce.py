"""`jaxvit reproduce`: trains the documents' experiments and compares the results with their targets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from jaxvit import errors
from jaxvit.cli import command_line
from jaxvit.devices.runtime import lower_priority
from jaxvit.errors import RunFailedError, UsageError, first_line
from jaxvit.files import local_path
from jaxvit.pages.terminal import print_table
from jaxvit.reproduce.archive import SUFFIX as ARCHIVE_SUFFIX
from jaxvit.reproduce.archive import archived, folder_for, opened, pack, renew
from jaxvit.reproduce.page import conclusion, numbers, outcome
from jaxvit.reproduce.queue import listing, parse_limit, read_queue, run_queue, statuses
from jaxvit.reproduce.results import Results
from jaxvit.reproduce.rows import TableRow, choose, with_partner
from jaxvit.reproduce.runs import RunSettings, config_of, run_row
from jaxvit.reproduce.table import form_of, newest
from jaxvit.reproduce.transfer import EXPERIMENT, transfer
from jaxvit.shown import rich, terminal

_EXAMPLES = """examples:
  jaxvit reproduce --list                            the rows, their targets and results
  jaxvit reproduce fashion_fast_vit --seeds=1        trains fashion_vit and it, compares, adds to the table
  jaxvit reproduce mini_vit mini_vit_tl4 --seeds=2   the first two of each row's seeds
  jaxvit reproduce --all --epochs=2                  a short form; marked as such, not judged
  jaxvit reproduce transfer --seeds=1                fine-tuning against a probe and training from scratch
  jaxvit reproduce --take=rows_gpu/results           adds results from elsewhere to the table
  jaxvit reproduce --queue=results/queue.toml --dry_run                  shows finished and remaining runs
  jaxvit reproduce --queue=results/queue.toml --limit='2 hours'          runs for two hours at low priority
  jaxvit reproduce --pack=runs.tar                                       to continue on another machine:
  jaxvit reproduce --queue=results/queue.toml --limit='2 hours' --runs=runs.tar

The command judges the runs that it names, newly trained or already finished; --list and the page show all results.
Rows and configs come with jaxvit, so the command works in any folder and writes its results to results/ there. If that
folder has its own rows.toml, as in the jaxvit repository, those rows are used, and --list shows only the results in
that folder; otherwise it also shows the results that come with jaxvit.

exit codes: 0 all named rows pass; 1 a row misses a target, cannot be tested or failed; 2 a mistake in the command; 75
and 130 stopped and saved, the same command resumes. With --queue: 0 all done, 1 some runs failed, 75 time is up
"""

_PATHS = (
    ("take", "", "DIR", "merge the results in DIR into this table; run nothing"),
    ("queue", "", "FILE", "run the rows listed in FILE, see docs/scale.md"),
    ("runs", "runs/reproduce", "DIR", "folder of runs, or an archive DIR.tar (default: runs/reproduce)"),
    ("pack", "", "FILE.tar", "pack the runs into an archive; run nothing"),
    ("results", "results", "DIR", "folder of the results (default: results)"),
    ("configs", None, "DIR", "folder of the rows' configs (default: those of jaxvit)"),
)


def _show(rows: Sequence[TableRow], lines: Sequence[dict[str, str]], options: Any) -> None:
    table = Table(title=f"{len(rows)} row{'s' * (len(rows) != 1)}", title_justify="left")
    for name in ("row", "config", "target", "epochs", "seeds", "minutes", "measured"):
        table.add_column(name, overflow="fold")
    for row in rows:
        epochs, seeds = min(options.epochs or row.epochs, row.epochs), len(row.seeds[: options.seeds or None])
        minutes = f"{row.minutes * seeds * epochs / row.epochs:.0f}" if row.minutes else "unknown"
        form = form_of(row, options.epochs, options.dtype)
        runs = [run for run in newest(lines, row, form) if int(run["seed"]) in row.seeds[: options.seeds or None]]
        said, _ = outcome(row, runs, lines, form)
        if not runs and any(line["row"] == row.name for line in lines):
            said = ["not run in this form; see the page of results for another"]
        names = map(rich, (row.name, row.config))
        table.add_row(*names, numbers(row.target), str(epochs), str(seeds), minutes, "\n".join(map(terminal, said)))
    print_table(table)
    print("minutes: total over the seeds shown, on two CPU cores")


def _parser() -> command_line.Parser:
    parser = command_line.Parser("reproduce", "Runs the documents' experiments and compares the results.", _EXAMPLES)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows to run; --list shows them")
    parser.add_argument("--all", action="store_true", help="run every row, one after the other; takes days on a CPU")
    parser.add_argument("--list", action="store_true", help="show the rows; run nothing")
    parser.add_argument("--seeds", type=int, metavar="N", help="run the first N seeds of each row (default: all)")
    parser.add_argument("--together", action="store_true", help="train a row's seeds in one program, for accelerators")
    parser.add_argument("--epochs", type=int, metavar="N", help="run a short form of N epochs")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="", help="compute dtype (noted in results)")
    parser.add_argument("--limit", default="", metavar="TIME", help="with --queue: stop after this time: '2 hours'")
    for name, default, metavar, what in _PATHS:
        parser.add_argument(f"--{name}", default=default, type=local_path, metavar=metavar, help=what)
    parser.add_argument("--dry_run", action="store_true", help="show the rows that would run; train nothing")
    return parser


def main(argv: list[str]) -> int:
    """Runs the verb; returns the exit code."""
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    parser.refuse_unknown(rest)
    for name in ("seeds", "epochs"):
        number = getattr(options, name)
        if number is not None and number < 1:
            raise UsageError(f"--{name}={number}: must be 1 or more")
        setattr(options, name, number or 0)  # 0 = all
    results = Results.read(Path(options.results), Path(options.configs) if options.configs is not None else None)
    if options.take:
        _refuse_beside(options, "it does not go with --take, which only merges results", *_OF_RUNS, "pack")
        count = results.take(Path(options.take))
        print(f"{count} lines taken from {options.take}; table: {results.page}")
        return errors.DONE
    if options.pack:
        _refuse_beside(options, "it does not go with --pack, which only writes an archive", *_OF_RUNS)
        return _pack(Path(options.runs), Path(options.pack))
    if options.queue:
        _refuse_beside(options, "it does not go with --queue, whose file lists the runs")
        return _queue(options, results)
    if options.limit:
        raise UsageError(f"--limit={options.limit}: it needs --queue=FILE; leave it out")
    if options.rows == [EXPERIMENT]:
        return _transfer(options, results)
    if not (options.rows or options.all or options.list):
        raise UsageError("name rows, or use --all (takes days); jaxvit reproduce --list shows the rows")
    if options.all and options.rows:
        raise UsageError("--all includes every row: leave out the names, or --all")
    asked = choose(results.rows, options.rows, seeds=options.seeds, epochs=options.epochs, trials=options.list)
    rows = list({row.name: row for one in asked for row in with_partner(one, results.rows)}.values())
    runs_folder = folder_for(Path(options.runs))
    settings = RunSettings(results.configs, runs_folder, options.epochs, options.dtype, options.together)
    lines = results.lines()
    if options.dry_run:
        for row in rows:
            config_of(row, settings)
    if options.list or options.dry_run:
        _show(asked if options.list else rows, lines, options)
        return errors.DONE
    results.begin()
    made: list[dict[str, str]] = []
    not_run: dict[str, Exception] = {}
    with opened(Path(options.runs)):
        for row in rows:
            try:
                for line, run in run_row(row, row.seeds[: options.seeds or None], settings):
                    made.append({name: str(value) for name, value in line.items()})
                    results.add(line, run, row)
            except (UsageError, RunFailedError, OSError) as error:
                not_run[row.name] = error
                what = "stopped by" if isinstance(error, OSError) else "not run"
                print(f"{row.name}: {what}: {first_line(error)[:300]}")
    if len(not_run) == len(rows) and all(isinstance(error, UsageError) for error in not_run.values()):
        raise next(iter(not_run.values()))  # nothing ran: a mistake in the command, or missing data
    failed = bool(not_run.keys() & {row.name for row in asked})
    for row in rows:
        said, missed = conclusion(row, made, form_of(row, settings.epochs, settings.dtype))
        failed |= missed and row in asked  # a paired row is reported but not judged
        print(said)
    print(f"table: {results.page}", flush=True)
    return errors.SOME_INPUTS_FAILED if failed else errors.DONE


_OF_RUNS = ("dtype", "dry_run", "queue", "limit")


def _transfer(options: Any, results: Results) -> int:
    if options.all or options.together or options.epochs or options.dtype:
        raise UsageError(f"{EXPERIMENT}: its runs are fixed: leave out all flags but --seeds, --list and folders")
    run = not (options.list or options.dry_run)
    for line in transfer(results, folder_for(Path(options.runs)), seeds=options.seeds, run=run):
        print(line, flush=True)
    return errors.DONE


def _refuse_beside(options: Any, reason: str, *more: str) -> None:
    """Raises UsageError if flags are given that have no effect with another flag."""
    flags = [f"--{name}" for name in ("all", "list", "seeds", "together", "epochs", *more) if getattr(options, name)]
    if given := options.rows + flags:
        raise UsageError(f"{given[0]}: {reason}; leave it out")


def _queue(options: Any, results: Results) -> int:
    runs = Path(options.runs)
    settings = RunSettings(results.configs, folder_for(runs), dtype=options.dtype)
    tasks = read_queue(Path(options.queue), results.rows)
    parse_limit(options.limit)
    found = statuses(tasks, settings, results.folder, archived(runs))
    if options.dry_run:
        print(listing(found))
        return errors.DONE
    results.begin()
    lower_priority()
    with opened(runs):
        failed = run_queue(tasks, settings, results.folder, options.limit, results.add, lambda: renew(runs))
    print(f"table: {results.page}", flush=True)
    return errors.SOME_INPUTS_FAILED if failed else errors.DONE


def _pack(runs: Path, file: Path) -> int:
    if file.suffix != ARCHIVE_SUFFIX:
        raise UsageError(f"--pack={file}: the name must end in {ARCHIVE_SUFFIX}")
    if not (count := pack(folder_for(runs), file)):
        raise UsageError(f"--runs={runs}: it contains no runs")
    print(f"{count} run{'s' * (count > 1)} packed, {file.stat().st_size / 1e6:.1f} MB; continue with --runs={file}")
    return errors.DONE
