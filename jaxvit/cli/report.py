"""`jaxvit report`: compares runs in a table and draws their figures, from the run folders."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from jaxvit import errors
from jaxvit.cli import command_line
from jaxvit.cli.options import add_run_options, load_run
from jaxvit.errors import UsageError
from jaxvit.files import local_path
from jaxvit.pages.comparison import WRITERS, find_runs, summarize_run, with_checkpoints
from jaxvit.shown import terminal

_EXAMPLES = """examples:
  jaxvit report runs                                    all runs below runs/, best first
  jaxvit report runs/vit runs/cct --format=markdown
  jaxvit report runs/digits --figures                   draws figures and index.html into runs/digits/figures
  jaxvit report runs/digits --figures --reduce=merge:r=2        also draws which patches are merged

Figures (PNG and SVG): learning curves; predictions and most confident mistakes; confusion matrix and calibration;
patches; patches that --reduce merges; diagrams of the architecture and of special blocks; an animation of the shift
(GIF); maps of TokenLearner and TokenFuser, pooling weights, attention rollout, similarities of position embeddings,
receptive fields of ShiftViT. If the data set is missing, figures that need images are skipped with a message.
"""


def main(argv: list[str]) -> int:
    """Runs the verb; returns the exit code.

    Raises:
      UsageError: no runs found.
    """
    parser = command_line.Parser("report", "Compares runs in a table; draws the figures of each.", _EXAMPLES)
    parser.add_argument("folders", nargs="*", type=local_path, metavar="DIR", help="runs, or folders that contain runs")
    parser.add_argument("--figures", action="store_true", help="draw each run's figures")
    parser.add_argument("--format", choices=[*WRITERS], default="table", help="format of the table (default: table)")
    parser.add_argument("--split", default="", help="figures: split to evaluate (default: test)")
    parser.add_argument("--n", type=int, default=6, help="figures: example images for maps (default: 6)")
    add_run_options(parser)
    options, rest = parser.parse_known_intermixed_args(argv)
    parser.refuse_unknown(rest)
    folders = [*options.folders, *([options.workdir] if options.workdir else [])]
    if not folders:
        raise UsageError("name runs or a folder that contains runs, such as `jaxvit report runs`")
    if options.n < 1:
        raise UsageError(f"--n={options.n}: must be 1 or more")
    runs = [run for folder in folders for run in find_runs(Path(folder))]
    runs = list(dict.fromkeys(runs))
    rows, failed = [], set()

    @contextlib.contextmanager
    def leaving_the_others(run: Path) -> Iterator[None]:
        try:
            yield
        except UsageError as error:
            if len(runs) == 1:
                raise
            print(terminal(f"jaxvit: {run}: {error}"), file=sys.stderr)
            failed.add(run)

    for run in runs:
        with leaving_the_others(run):
            rows.append(summarize_run(run, own_code=options.own_code))
    WRITERS[options.format](sorted(rows, key=lambda row: -row.get("top1", -1)))
    if options.figures:
        from jaxvit.pages.gallery import draw_run

        for run in [run for run in runs if run not in failed]:
            options.workdir = str(with_checkpoints(run))
            with leaving_the_others(run):
                index = draw_run(
                    load_run(options),
                    run / "figures",
                    split=options.split,
                    examples=options.n,
                    data_dir=options.data_dir,
                    batch_size=options.batch_size,
                    devices=options.devices,
                )
                sys.stdout.flush()
                print(terminal(f"figures: {index}"))
    return errors.SOME_INPUTS_FAILED if failed else errors.DONE
