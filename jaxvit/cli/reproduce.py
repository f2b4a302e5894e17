"""`jaxvit reproduce`: the documents' results, each from one command, compared with what is asked for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from jaxvit import errors
from jaxvit.cli import command_line
from jaxvit.devices.runtime import lower_priority
from jaxvit.errors import RunFailedError, UsageError, first_line, nearest
from jaxvit.files import make_writable, packaged, write_text
from jaxvit.reproduce.archive import SUFFIX as ARCHIVE_SUFFIX
from jaxvit.reproduce.archive import archived, folder_for, opened, pack, renew
from jaxvit.reproduce.curves import draw_curves, keep_metrics, validations
from jaxvit.reproduce.effort import efforts_of
from jaxvit.reproduce.page import numbers, outcome, page
from jaxvit.reproduce.queue import listing, parse_limit, read_queue, run_queue, statuses
from jaxvit.reproduce.rows import Row, read_rows, rows_file
from jaxvit.reproduce.runs import Way, config_of, run_row, sort_out
from jaxvit.reproduce.table import form_of, is_full, keep, known_results, newest, results_of, writing

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


def with_partner(row: Row, every: dict[str, Row]) -> list[Row]:
    """A row, and before it the one that it must beat, equal or outrun.

    What is finished of it is not done again: for a ratio of times run both on the same quiet machine.
    """
    return [every[row.pair.row], row] if row.pair and row.pair.asked else [row]


def _show(rows: Sequence[Row], lines: Sequence[dict[str, str]], every: dict[str, Row], options: Any) -> None:
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
        table.add_row(row.name, row.config, numbers(row.target), str(epochs), str(seeds), minutes, "\n".join(said))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200
    console.print(table)
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
    parser.add_argument("--take", default="", metavar="DIR", help="add the table in DIR to this one; run nothing")
    parser.add_argument("--queue", default="", metavar="FILE", help="run what this file lists: see docs/scale.md")
    parser.add_argument("--limit", default="", metavar="TIME", help="with --queue: stop after so long, '2 hours'")
    parser.add_argument(
        "--runs", default="runs/reproduce", metavar="DIR", help="or DIR.tar, its archive (default: runs/reproduce)"
    )
    parser.add_argument("--pack", default="", metavar="FILE.tar", help="write such an archive; run nothing")
    parser.add_argument(
        "--results",
        default="results",
        metavar="DIR",
        help="where results.csv, its page, metrics and curves are kept (default: results)",
    )
    parser.add_argument("--configs", metavar="DIR", help="config files of the rows (default: those of jaxvit)")
    parser.add_argument("--dry_run", action="store_true", help="show the rows to be run, as --list does; train nothing")
    return parser


def _chosen(options: Any, every: dict[str, Row]) -> list[Row]:
    """Those that are asked for.

    Raises:
      UsageError: there is no such row, or one cannot be run so.
    """
    for name in options.rows:
        if name not in every:
            raise UsageError(f"there is no row '{name}'{nearest(name, every)}; see jaxvit reproduce --list")
    if options.all and options.rows:
        raise UsageError("--all names every row already: leave out the others, or --all")
    if not (options.rows or options.all or options.list):
        raise UsageError("name rows, or give --all, which takes days; jaxvit reproduce --list shows them")
    rows = [every[name] for name in dict.fromkeys(options.rows)] or list(every.values())
    most = max(rows, key=lambda row: len(row.seeds))
    if options.seeds > len(most.seeds):
        raise UsageError(f"--seeds={options.seeds}: {most.name} has {len(most.seeds)}; see jaxvit reproduce --list")
    for row in rows if options.rows else ():
        if options.epochs and row.steps:
            raise UsageError(f"--epochs={options.epochs}: {row.name} takes steps, no epochs; leave --epochs out")
        if options.epochs > row.epochs:
            raise UsageError(f"--epochs={options.epochs}: {row.name} has {row.epochs}; a short form has fewer")
    return rows


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
    results = Path(options.results)
    configs = packaged("configs") if options.configs is None else Path(options.configs)
    every = read_rows(rows_file(results))
    if options.take:
        _refuse_beside(
            options, "--take adds a whole table and runs nothing", "dtype", "dry_run", "queue", "limit", "pack"
        )
        return _take(Path(options.take), every, results, configs)
    if options.pack:
        _refuse_beside(options, "--pack writes an archive and runs nothing", "dtype", "dry_run", "queue", "limit")
        return _pack(Path(options.runs), Path(options.pack))
    if options.queue:
        _refuse_beside(options, "the queue's file says what is run")
        return _queue(options, every, results, configs)
    if options.limit:
        raise UsageError(f"--limit={options.limit}: it is for --queue=FILE; leave it out")
    asked = _chosen(options, every)
    rows = list({row.name: row for one in asked for row in with_partner(one, every)}.values())
    way = Way(configs, folder_for(Path(options.runs)), options.epochs, options.dtype, options.together)
    lines, _ = sort_out(known_results(results), every, configs)
    if options.dry_run:
        for row in rows:
            config_of(row, way)
    if options.list or options.dry_run:
        _show(asked if options.list else rows, lines, every, options)
        return errors.DONE
    _begin(results)
    made: list[dict[str, str]] = []
    not_run: dict[str, Exception] = {}
    with opened(Path(options.runs)):
        for row in rows:
            try:
                for line, run in run_row(row, row.seeds[: options.seeds or None], way):
                    made.append({name: str(value) for name, value in line.items()})
                    _keep(line, run, row, every, results, configs)
            except (UsageError, RunFailedError, OSError, jax.errors.JaxRuntimeError) as error:
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
    print(f"table: {results / 'README.md'}", flush=True)
    return errors.SOME_INPUTS_FAILED if failed else errors.DONE


def _begin(results: Path) -> None:
    """Makes the folder of results where it is missing.

    Raises:
      UsageError: it cannot be written, or has a README.md of somebody else's, which the page would replace.
    """
    if (results / "README.md").exists() and not any((results / ours).exists() for ours in ("results.csv", "rows.toml")):
        raise UsageError(f"{results} has a README.md that is no page of results; name another folder with --results")
    make_writable(results, "name another folder with --results")


def _refuse_beside(options: Any, reason: str, *more: str) -> None:
    """Raises UsageError where flags are given that say nothing beside another one."""
    flags = [f"--{name}" for name in ("all", "list", "seeds", "together", "epochs", *more) if getattr(options, name)]
    if given := options.rows + flags:
        raise UsageError(f"{given[0]}: {reason}; leave it out")


def _queue(options: Any, every: dict[str, Row], results: Path, configs: Path) -> int:
    """Works off a queue, or shows it."""
    runs = Path(options.runs)
    way = Way(configs, folder_for(runs), dtype=options.dtype)
    tasks = read_queue(Path(options.queue), every)
    parse_limit(options.limit)
    found = statuses(tasks, way, results, archived(runs))
    if options.dry_run:
        print(listing(found))
        return errors.DONE
    _begin(results)
    lower_priority()
    with opened(runs):
        failed = run_queue(
            tasks,
            way,
            results,
            options.limit,
            lambda line, run, row: _keep(line, run, row, every, results, configs),
            lambda: renew(runs),
        )
    print(f"table: {results / 'README.md'}", flush=True)
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


def _keep(
    line: dict[str, Any], run: Path | None, row: Row, every: dict[str, Row], results: Path, configs: Path
) -> None:
    """A run's line, metrics, curve and what the page says of it."""
    with writing(results):
        if run:
            keep_metrics(run, row, line, results)
        keep(line, results / "results.csv")
        _write_page(every, results, configs)


def _write_page(every: dict[str, Row], results: Path, configs: Path) -> None:
    lines, outdated = sort_out(results_of(results / "results.csv"), every, configs)
    curves, efforts = draw_curves(every, lines, results), efforts_of(lines, results)
    write_text(results / "README.md", page(every, lines, curves, outdated, efforts))


def _take(other: Path, every: dict[str, Row], results: Path, configs: Path) -> int:
    """Adds another table's lines, with their metrics.

    Raises:
      UsageError: there is none, it is this one, it has rows that this one has not, or lacks metrics of its lines.
    """
    if other.resolve() == results.resolve():
        raise UsageError(f"--take={other}: this is the table itself; name the folder of another")
    lines = results_of(other / "results.csv")
    if not lines:
        raise UsageError(f"--take={other}: there is no results.csv with lines in it")
    metrics: dict[str, str] = {}
    for line in lines:
        if line["row"] not in every:
            raise UsageError(f"--take={other}: there is no row '{line['row']}' here{nearest(line['row'], every)}")
        if line["metrics"]:
            file = other.resolve() / "metrics" / line["metrics"]
            if not file.is_file() or file.resolve() != file:
                raise UsageError(f"--take={other}: metrics/{line['metrics']} is missing; copy the whole folder")
            validations(file)
            metrics[line["metrics"]] = file.read_text(encoding="utf-8", errors="replace")
    _begin(results)
    sort_out(lines, every, configs)  # a config that cannot be read is told before anything is written
    with writing(results):
        (results / "metrics").mkdir(exist_ok=True)
        for name, text in metrics.items():
            write_text(results / "metrics" / name, text)
        for line in lines:
            keep(line, results / "results.csv")
        _write_page(every, results, configs)
    print(f"{len(lines)} lines taken from {other}; table: {results / 'README.md'}")
    return errors.DONE
