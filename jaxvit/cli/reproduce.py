"""`jaxvit reproduce`: the documents' results, each from one command, compared with what is asked for them."""

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
from jaxvit.reproduce.page import numbers, outcome
from jaxvit.reproduce.queue import listing, parse_limit, read_queue, run_queue, statuses
from jaxvit.reproduce.results import Results
from jaxvit.reproduce.rows import Row, choose, with_partner
from jaxvit.reproduce.runs import Way, config_of, run_row
from jaxvit.reproduce.table import form_of, is_full, newest
from jaxvit.shown import rich, terminal

_EXAMPLES = """examples:
  jaxvit reproduce --list                            the rows, what they ask for and what is known
  jaxvit reproduce fashion_fast_vit --seeds=1        trains it, or goes on; compares; adds to results/results.csv; and
                                                     before it fashion_vit, whose time it is compared with
  jaxvit reproduce mini_vit mini_vit_tl4 --seeds=2   the first two of each row's seeds
  jaxvit reproduce cct --epochs=2                    a short form, marked as such, which passes and fails nothing
  jaxvit reproduce --all                             all rows, in their order; what is finished is not done again
  jaxvit reproduce --take=rows_gpu/results           adds what was run elsewhere to the table
  jaxvit reproduce --queue=results/queue.toml --dry_run                  what is finished, what would be run
  jaxvit reproduce --queue=results/queue.toml --limit='2 hours'          the next two hours of it, at low priority
  jaxvit reproduce --pack=runs.tar                                       to go on with on another machine:
  jaxvit reproduce --queue=results/queue.toml --limit='2 hours' --runs=runs.tar

Judged are the runs that the command asks for, whether it trains them or finds them finished; --list and the page tell
of all that the table has.

The rows and their configs come with jaxvit: any folder will do. There results/ is made for what is measured. Where it
has a rows.toml, as in the project's own folder, the rows are those; --list then shows its table alone, else what came
with jaxvit as well.

exit codes: 0 the rows named pass, 1 one misses a target, cannot be tested or could not be run, 2 a mistake in the
command, 75 and 130 stopped and saved: the same command goes on. Of a queue: 0 all of it has been run, 1 some could not
be, 75 its limit is reached
"""


def _show(rows: Sequence[Row], lines: Sequence[dict[str, str]], options: Any) -> None:
    table = Table(title=f"{len(rows)} row{'s' * (len(rows) != 1)}", title_justify="left")
    for name in ("row", "config", "asked", "epochs", "seeds", "minutes", "measured"):
        table.add_column(name, overflow="fold")
    for row in rows:
        epochs, seeds = min(options.epochs or row.epochs, row.epochs), len(row.seeds[: options.seeds or None])
        minutes = f"{row.minutes * seeds * epochs / row.epochs:.0f}" if row.minutes else "not known"
        form = form_of(row, options.epochs, options.dtype)
        runs = [run for run in newest(lines, row, form) if int(run["seed"]) in row.seeds[: options.seeds or None]]
        said, _ = outcome(row, runs, lines, form)
        if not runs and any(line["row"] == row.name for line in lines):
            said = ["not run in this form; the page of results has another"]
        names = map(rich, (row.name, row.config))
        table.add_row(*names, numbers(row.target), str(epochs), str(seeds), minutes, "\n".join(map(terminal, said)))
    print_table(table)
    print("minutes: of the seeds shown together, on two CPU cores")


def _parser() -> command_line.Parser:
    parser = command_line.Parser("reproduce", "Runs the documents' experiments and compares.", _EXAMPLES)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="what to run; --list shows them")
    parser.add_argument("--all", action="store_true", help="every row, one after the other: days on a CPU")
    parser.add_argument("--list", action="store_true", help="show the rows; run nothing")
    parser.add_argument("--seeds", type=int, metavar="N", help="the first N of each row's seeds (default: all)")
    parser.add_argument("--together", action="store_true", help="a row's seeds in one program, for an accelerator")
    parser.add_argument(
        "--epochs", type=int, metavar="N", help="a short form of so many epochs; with --all of longer rows"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="", help="of the computation, marked as such in the table"
    )
    parser.add_argument(
        "--take", default="", type=local_path, metavar="DIR", help="add the table in DIR to this one; run nothing"
    )
    parser.add_argument(
        "--queue", default="", type=local_path, metavar="FILE", help="run what this file lists: see docs/scale.md"
    )
    parser.add_argument("--limit", default="", metavar="TIME", help="with --queue: stop after so long, '2 hours'")
    parser.add_argument(
        "--runs",
        default="runs/reproduce",
        type=local_path,
        metavar="DIR",
        help="or DIR.tar, its archive (default: runs/reproduce)",
    )
    parser.add_argument(
        "--pack", default="", type=local_path, metavar="FILE.tar", help="write such an archive; run nothing"
    )
    of_results = "where results.csv, its page, metrics and curves are kept (default: results)"
    parser.add_argument("--results", default="results", type=local_path, metavar="DIR", help=of_results)
    parser.add_argument(
        "--configs", type=local_path, metavar="DIR", help="config files of the rows (default: those of jaxvit)"
    )
    parser.add_argument("--dry_run", action="store_true", help="show the rows to be run, as --list does; train nothing")
    return parser


def main(argv: list[str]) -> int:
    """The verb."""
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
        _refuse_beside(options, "--take adds a whole table and runs nothing", *_OF_RUNS, "pack")
        count = results.take(Path(options.take))
        print(f"{count} lines taken from {options.take}; table: {results.page}")
        return errors.DONE
    if options.pack:
        _refuse_beside(options, "--pack writes an archive and runs nothing", *_OF_RUNS)
        return _pack(Path(options.runs), Path(options.pack))
    if options.queue:
        _refuse_beside(options, "the queue's file says what is run")
        return _queue(options, results)
    if options.limit:
        raise UsageError(f"--limit={options.limit}: it is for --queue=FILE; leave it out")
    if not (options.rows or options.all or options.list):
        raise UsageError("name rows, or give --all, which takes days; jaxvit reproduce --list shows them")
    if options.all and options.rows:
        raise UsageError("--all names every row already: leave out the others, or --all")
    asked = choose(results.rows, options.rows, seeds=options.seeds, epochs=options.epochs)
    rows = list({row.name: row for one in asked for row in with_partner(one, results.rows)}.values())
    way = Way(results.configs, folder_for(Path(options.runs)), options.epochs, options.dtype, options.together)
    lines = results.lines()
    if options.dry_run:
        for row in rows:
            config_of(row, way)
    if options.list or options.dry_run:
        _show(asked if options.list else rows, lines, options)
        return errors.DONE
    results.begin()
    made: list[dict[str, str]] = []
    not_run: dict[str, Exception] = {}
    with opened(Path(options.runs)):
        for row in rows:
            try:
                for line, run in run_row(row, row.seeds[: options.seeds or None], way):
                    made.append({name: str(value) for name, value in line.items()})
                    results.add(line, run, row)
            except (UsageError, RunFailedError, OSError) as error:
                not_run[row.name] = error
                what = "stopped by" if isinstance(error, OSError) else "not run"
                print(f"{row.name}: {what}: {first_line(error)[:300]}")
    if len(not_run) == len(rows) and all(isinstance(error, UsageError) for error in not_run.values()):
        raise next(iter(not_run.values()))  # nothing was done: a mistake in the command, or no data
    failed = False
    for row in rows:
        form = form_of(row, way.epochs, way.dtype)
        runs = [line for line in made if line["row"] == row.name]
        said, passed = outcome(row, runs, made, form)
        measured = f", n = {runs[0]['n']}, {len(runs)} of {len(row.seeds)} seeds" if runs and not row.steps else ""
        if row in asked:  # what a partner says on its own accuracy is told, no more
            failed |= row.name in not_run or (not passed and (is_full(form) or row.steps > 0))
        short = "" if is_full(form) or row.steps else f", {form}"  # steps are told by what is said of them
        print(f"{row.name}{short}{measured}: {'; '.join(said)}")
    print(f"table: {results.page}", flush=True)
    return errors.SOME_INPUTS_FAILED if failed else errors.DONE


_OF_RUNS = ("dtype", "dry_run", "queue", "limit")


def _refuse_beside(options: Any, reason: str, *more: str) -> None:
    """Raises UsageError where flags are given that say nothing beside another one."""
    flags = [f"--{name}" for name in ("all", "list", "seeds", "together", "epochs", *more) if getattr(options, name)]
    if given := options.rows + flags:
        raise UsageError(f"{given[0]}: {reason}; leave it out")


def _queue(options: Any, results: Results) -> int:
    """Works off a queue, or shows it."""
    runs = Path(options.runs)
    way = Way(results.configs, folder_for(runs), dtype=options.dtype)
    tasks = read_queue(Path(options.queue), results.rows)
    parse_limit(options.limit)
    found = statuses(tasks, way, results.folder, archived(runs))
    if options.dry_run:
        print(listing(found))
        return errors.DONE
    results.begin()
    lower_priority()
    with opened(runs):
        failed = run_queue(tasks, way, results.folder, options.limit, results.add, lambda: renew(runs))
    print(f"table: {results.page}", flush=True)
    return errors.SOME_INPUTS_FAILED if failed else errors.DONE


def _pack(runs: Path, file: Path) -> int:
    """Writes the archive of a folder of runs."""
    if file.suffix != ARCHIVE_SUFFIX:
        raise UsageError(f"--pack={file}: name a file that ends in {ARCHIVE_SUFFIX}, so that --runs takes it")
    count = pack(folder_for(runs), file)
    if not count:
        raise UsageError(f"--runs={runs}: there is no run in it to pack")
    print(f"{count} run{'s' * (count > 1)} packed, {file.stat().st_size / 1e6:.1f} MB; go on with --runs={file}")
    return errors.DONE
