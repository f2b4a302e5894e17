"""`jaxvit sweep`: trains a grid of runs, then prints a table and draws a figure."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from jaxvit import errors
from jaxvit.cli import command_line
from jaxvit.config.files import load_grid
from jaxvit.config.overrides import parse_config_arguments, split_overrides
from jaxvit.errors import StoppedError, UsageError
from jaxvit.figures.sweep import draw_sweep
from jaxvit.files import Lock, local_path
from jaxvit.pages.terminal import print_table
from jaxvit.run.sweep import begin_rows, count_done, make_cells, new_row, open_sweep, parse_grid, parse_part, sweep
from jaxvit.shown import rich, terminal

_EXAMPLES = """examples:
  jaxvit sweep --config=digits --over 'model.depth=2,4' --over 'optim.peak_lr=3e-4,1e-3' --workdir=sweeps/1
  jaxvit sweep --config=token_learner:place --workdir=sweeps/place             the config defines the grid
  jaxvit sweep --config=token_learner:place --dry_run                          lists the cells, trains nothing
  jaxvit sweep --config=token_learner:place --workdir=sweeps/place --part=2/3  one of three jobs that share the cells

--config.key=value applies to all cells. With --config.seeds='(0, 1, 2)' each cell is a mean over three seeds.

exit codes: 0 done; 1 done, but some cells failed; 2 a mistake in the command; 75 and 130 stopped and saved, the same
command resumes
"""


def print_rows(rows: Sequence[dict[str, Any]], keys: Sequence[str], title: str) -> None:
    """Prints the table, with the best accuracy in bold."""
    table = Table(title=title, title_justify="left")
    for key in keys:
        table.add_column(rich(key.rpartition(".")[2]), no_wrap=True)
    for name in ("parameters", "multiply-adds", "test accuracy", "loss", "training"):
        table.add_column(name, justify="right", no_wrap=True)
    best = max((row["top1"] for row in rows if "top1" in row), default=None)
    for row in rows:
        accuracy = row["status"]
        if "top1" in row:
            spread = f" ± {row['top1_std']:.2%} (n = {row['n']})" if "top1_std" in row else ""
            accuracy = f"{row['top1']:.2%}{spread}"
        table.add_row(
            *(rich(row[key]) for key in keys),
            f"{row['params']:,}" if row["params"] else "",
            f"{row['macs'] / 1e6:,.2f} M" if row["macs"] else "",
            f"[bold]{accuracy}[/bold]" if "top1" in row and row["top1"] == best else accuracy,
            f"{row['loss']:.4f}" if "loss" in row else "",
            f"{row['train_seconds']:.1f} s" if "train_seconds" in row else "",
        )
    print_table(table)
    for row in rows:
        if row.get("error"):
            print(terminal(f"{row['cell']}: {row['error']}"))


def _parser() -> command_line.Parser:
    parser = command_line.Parser("sweep", "Trains a grid of runs over values of config keys.", _EXAMPLES)
    parser.add_argument(
        "--config",
        metavar="NAME[:VARIANT]",
        help="a config of jaxvit, such as digits:vit, or a file, such as ./mine.py:small; it may define the grid",
    )
    parser.add_argument(
        "--over", action="append", default=[], metavar="KEY=V,V,…", help="a key and its values; repeat for further keys"
    )
    parser.add_argument(
        "--workdir", type=local_path, metavar="DIR", help="folder of the sweep, with a subfolder for each cell"
    )
    parser.add_argument("--dry_run", action="store_true", help="list the cells with their sizes; train nothing")
    parser.add_argument("--count", action="store_true", help="print the number of cells; train nothing")
    parser.add_argument(
        "--part",
        type=parse_part,
        default=(1, 1),
        metavar="I/N",
        help="train only every N-th cell from the I-th on; N such commands may run at the same time in one folder",
    )
    return parser


def main(argv: list[str]) -> int:
    """Runs the verb; returns the exit code."""
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    if not options.config:
        raise UsageError("--config is missing, such as --config=digits")
    words, unknown = split_overrides(rest)
    parser.refuse_unknown(unknown)
    tokens = [word for _, _, word in words]
    config, _, _ = parse_config_arguments(options.config, tokens)
    over = options.over or [f"{k}={','.join(map(str, v))}" for k, v in load_grid(options.config).items()]
    if not over:
        raise UsageError("--over is missing, such as --over 'optim.peak_lr=3e-4,1e-3'")
    grid = parse_grid(over)
    for key, _, word in words:
        if key in grid:
            raise UsageError(f"{word}: the grid already varies {key}; remove one of the two")
    count = math.prod(map(len, grid.values()))
    if options.count:
        print(count)
        return errors.DONE
    print(
        f"{count} {'cell' if count == 1 else 'cells'} over {', '.join(grid)}", flush=True
    )  # creating the cells takes time
    cells = make_cells(options.config, tokens, grid)
    if options.dry_run:
        rows = [new_row(cell) | {"params": cell.params, "macs": cell.macs} for cell in cells]
        rows = [
            row | ({"status": "fails", "error": cell.problem} if cell.problem else {})
            for row, cell in zip(rows, cells, strict=True)
        ]
        print_rows(rows, list(grid), f"{len(cells)} cells; dry run: nothing was trained")
        return errors.SOME_INPUTS_FAILED if any(cell.problem for cell in cells) else errors.DONE
    if not options.workdir:
        raise UsageError("--workdir is missing; name the sweep's folder, such as --workdir=sweeps/one")
    workdir = Path(options.workdir)
    shared = options.part[1] > 1
    with contextlib.ExitStack() as lock:
        lock.enter_context(open_sweep(workdir, config, grid, wait=shared))
        rows = begin_rows(cells, workdir)
        if shared:
            lock.close()  # other processes train their parts at the same time
        try:
            sweep(cells, rows, workdir, options.part)
        except (StoppedError, KeyboardInterrupt):
            print_rows(rows, list(grid), f"{count_done(rows)} of {len(cells)} cells done; stopped")
            print(terminal(f"table: {workdir / 'sweep.csv'}"), flush=True)
            raise
        if shared:
            lock.enter_context(Lock(workdir / ".lock"))
        figure = workdir / "figures" / "sweep.png"
        done = [row for row in rows if "top1" in row]
        if done:
            draw_sweep(done, list(grid), figure)
    index, parts = options.part
    failed = sum(row["status"] == "failed" for row in rows[index - 1 :: parts])
    print_rows(rows, list(grid), f"{count_done(rows)} of {len(rows)} cells done")
    print(f"table: {workdir / 'sweep.csv'}" + (f"   figure: {figure}" if done else ""))
    sys.stdout.flush()
    return errors.SOME_INPUTS_FAILED if failed else errors.DONE
