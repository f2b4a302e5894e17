"""`jaxvit benchmark`: measures training and inference speed, compile time and memory of models."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxvit import errors
from jaxvit.cli import command_line
from jaxvit.devices import quiet
from jaxvit.errors import RunFailedError, UsageError
from jaxvit.exports.formats import format_of
from jaxvit.files import local_path, make_writable, write_text
from jaxvit.shown import terminal
from jaxvit.speed.models import PACKAGES, circumstances, measure_each, measure_one
from jaxvit.speed.page import in_short, markdown, show, show_plan, write_tables
from jaxvit.speed.steps import Effort, facts_of
from jaxvit.speed.subject import configure, make_subject

_EXAMPLES = """examples:
  jaxvit benchmark --model=tutorial_cct                         workload of its document, on synthetic images
  jaxvit benchmark --model=tutorial_cct --batch=32 --dtype=bfloat16 --json
  jaxvit benchmark --model=tutorial_mini_vit,tutorial_mini_vit_tl4 --out=speed    writes benchmark.md and benchmark.csv
  jaxvit benchmark --config=digits --config.augment.policy=trivial                data and feed of the config
  jaxvit benchmark --model=vit --config.model.depth=4 --trace=profile --dry_run   prints the plan only
  jaxvit benchmark --file=export/model.onnx,export/model.stablehlo --workdir=runs/digits   exported files

The measurements take turns: --rounds turns of --seconds each, blocking only after several steps. Results are medians
and quartiles. TFLOP/s count 2 operations per multiply-add of `jaxvit summary` ('all'), times 3 for training; the peak
is that of large matrix products in the same dtype. Several models run one after the other, each in a new process, so
that their memory peaks are separate. A `jaxvit reproduce --queue` on this machine pauses meanwhile. docs/performance.md
explains each figure.
"""


def _parser() -> command_line.Parser:
    parser = command_line.Parser("benchmark", "Measures the speed and memory of models on this machine.", _EXAMPLES)
    parser.add_argument("--model", action="append", default=[], metavar="NAME", help="a model, or several: a,b,c")
    parser.add_argument(
        "--config", metavar="NAME[:VARIANT]", help="a config instead of --model, such as digits:vit or ./mine.py"
    )
    parser.add_argument(
        "--file", action="append", default=[], metavar="FILE", help="exported files instead of --model; runs them"
    )
    parser.add_argument(
        "--workdir",
        default="",
        type=local_path,
        metavar="RUN",
        help="with --file: the run they were exported from, for comparison",
    )
    parser.add_argument(
        "--own_code", action="store_true", help="with --workdir or a hub folder: import the user's code that it names"
    )
    parser.add_argument("--batch", type=int, metavar="N", help="batch size (default: the document's)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="", help="compute dtype (default: the model's)"
    )
    parser.add_argument("--reduce", default="", metavar="HOW", help="merge or remove tokens, such as merge:r=8")
    parser.add_argument("--synthetic", action="store_true", help="use random images even if the data set exists")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each measurement (default: 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="duration of a turn (default: 2)")
    parser.add_argument("--trace", type=local_path, metavar="DIR", help="write a profile of some steps to DIR")
    parser.add_argument("--out", type=local_path, metavar="DIR", help="write benchmark.md and benchmark.csv to DIR")
    parser.add_argument("--json", action="store_true", help="print one JSON object per model and line")
    parser.add_argument("--dry_run", action="store_true", help="print what would be measured; measure nothing")
    return parser


def main(argv: list[str]) -> int:
    """Runs the verb; returns the exit code.

    Raises:
      UsageError: unknown model, config or key, or incompatible values.
      RunFailedError: the only model cannot run here.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    if options.file or options.workdir or options.own_code:
        return _files(parser, options, rest)
    models = list(dict.fromkeys(name for value in options.model for name in value.split(",")))
    _check(options, models)
    effort = Effort(options.rounds, options.seconds)
    # Check all models before measuring the first.
    configured = []
    for model in models or [""]:
        *one, unknown = configure(model, options.config, rest, batch=options.batch or 0, dtype=options.dtype)
        parser.refuse_unknown(unknown)
        configured.append(one)
    if options.dry_run:
        subjects = [
            make_subject(config, overrides=overrides, synthetic=options.synthetic, origin=origin, reduce=options.reduce)
            for config, overrides, origin in configured
        ]
        for subject in subjects:
            show_plan(facts_of(subject), effort)
        print("dry run: nothing was measured")
        return errors.DONE
    trace, out = (Path(folder) if folder else None for folder in (options.trace, options.out))
    for folder in filter(None, (out, trace)):
        make_writable(folder, "name another folder")
    with quiet.asked():
        if len(models) > 1:
            return _each(models, options, rest, trace, out)
        config, overrides, origin = configured[0]
        how = {"synthetic": options.synthetic, "origin": origin, "trace": trace, "reduce": options.reduce}
        found = measure_one(config, effort, overrides=overrides, **how)
    if options.json:
        print(json.dumps(found), flush=True)
    else:
        show(found)
    if out:
        write_tables([found], out)
    return errors.DONE


def _each(
    models: Sequence[str], options: argparse.Namespace, rest: Sequence[str], trace: Path | None, out: Path | None
) -> int:
    """Measures several models. Results so far are printed and written even if a later model fails."""
    words = [f"--rounds={options.rounds}", f"--seconds={options.seconds}", *rest]
    words += [f"--batch={options.batch}"] if options.batch else []
    words += [f"--dtype={options.dtype}"] if options.dtype else []
    words += [f"--reduce={options.reduce}"] if options.reduce else []
    words += ["--synthetic"] if options.synthetic else []
    found: list[dict[str, Any]] = []
    code = errors.DONE
    try:
        for model, one in measure_each(models, words, trace=trace):
            if isinstance(one, RunFailedError):
                print(terminal(f"jaxvit: {model}: {one}"), file=sys.stderr, flush=True)
                code = errors.SOME_INPUTS_FAILED
                continue
            found.append(one)
            if options.json:
                print(json.dumps(one), flush=True)
            else:
                print(in_short(one), file=sys.stderr, flush=True)
            if out:
                write_tables(found, out)
    finally:
        if found and not options.json:
            print(markdown(found), end="")
    return code


def _files(parser: command_line.Parser, options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Measures exported files."""
    from jaxvit.speed.files import BATCHES, measure_files, page

    parser.refuse_unknown(rest)
    files = [Path(local_path(name)) for value in options.file for name in value.split(",")]
    if not files:
        raise UsageError(
            "--workdir and --own_code are for --file: name exported files, such as --file=RUN/export/model.stablehlo"
        )
    for name in ("model", "config", "batch", "dtype", "synthetic", "trace"):
        if (value := getattr(options, name)) not in (None, "", []) and value is not False:
            raise UsageError(f"--{name} does not apply to exported files (--file); leave one of them out")
    effort = Effort(options.rounds, options.seconds)
    for path in files:
        format_of(path).check()
    if options.dry_run:
        print(f"{terminal(', '.join(map(str, files)))}: batches of {' and '.join(map(str, BATCHES))}")
        print("dry run: nothing was measured")
        return errors.DONE
    if options.out:
        make_writable(Path(options.out), "name another folder")
    with quiet.asked():
        found = measure_files(files, options.workdir, effort, own_code=options.own_code, reduce=options.reduce)
    about = circumstances(*PACKAGES, "onnxruntime", "tensorflow")
    said = page(found, about)
    print(json.dumps({"files": found, **about}) + "\n" if options.json else said, end="")
    if options.out:
        write_text(Path(options.out) / "files.md", said)
    return errors.DONE


def _check(options: argparse.Namespace, models: Sequence[str]) -> None:
    if bool(models) == bool(options.config):
        raise UsageError(
            "name a model, a config or exported files: --model=NAME, --config=NAME or --file=FILE; see "
            "jaxvit benchmark --help"
        )
    if not all(models):
        raise UsageError(f"--model={','.join(options.model)}: a name is missing; write --model=a,b")
    if options.batch is not None and options.batch < 1:
        raise UsageError(f"--batch={options.batch}: must be 1 or more")
