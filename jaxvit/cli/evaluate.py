"""`jaxvit evaluate`: evaluates a trained model on any split, overall and per class, from its run folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from rich.table import Table

from jaxvit.cli import command_line
from jaxvit.cli.options import add_cascade_options, add_run_options, load_run
from jaxvit.errors import UsageError
from jaxvit.files import local_path, locked_folder, make_writable, write_json
from jaxvit.pages.terminal import print_table
from jaxvit.shown import rich, terminal
from jaxvit.trained import scores
from jaxvit.trained.cascade import parse_cascade
from jaxvit.trained.evaluate import evaluate_cascade, evaluate_source, read_split

_EXAMPLES = """examples:
  jaxvit evaluate --workdir=runs/digits                              test split, best checkpoint
  jaxvit evaluate --workdir=runs/digits --split=validation --checkpoint=latest
  jaxvit evaluate --workdir=runs/digits --split='test[:100]' --json  any split in TFDS notation
  jaxvit evaluate --workdir=runs/cifar --data=photos                 other images, of all or some of the classes
  jaxvit evaluate --workdir=runs/cifar --reduce=merge:r=8            with fewer tokens: docs/tokens.md

Writes to RUN/evaluation/: test.json (all results), test.csv (a row per class), test_confusion.csv, and test_images.csv
(a row per image, in the order of the split, with its file).
"""


def main(argv: list[str]) -> int:
    """Runs the verb; returns the exit code.

    Raises:
      UsageError: unknown run, split or data set.
    """
    parser = command_line.Parser("evaluate", "Evaluates a trained model on a split of labelled images.", _EXAMPLES)
    add_run_options(parser)
    parser.add_argument(
        "--split", default="", help="the run's train, validation or test split, or TFDS notation (default: test)"
    )
    parser.add_argument("--data", default="", metavar="NAME", help="another data set, or a folder of images")
    parser.add_argument(
        "--out", default="", type=local_path, metavar="DIR", help="folder for the files (default: RUN/evaluation)"
    )
    add_cascade_options(parser)
    parser.add_argument(
        "--max_drop",
        type=float,
        metavar="POINTS",
        help="with --cascade: choose the threshold on validation that costs at most so many points of accuracy",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    options, rest = parser.parse_known_args(argv)
    parser.refuse_unknown(rest)
    _check_cascade(options)
    loaded = load_run(options)
    cascade = parse_cascade(loaded, options.cascade, options.threshold or 0.0) if options.cascade else None
    split, source = read_split(loaded, options.split, options.data, options.data_dir)
    folder = Path(options.out) if options.out else loaded.workdir / "evaluation"
    make_writable(folder, "name another with --out=DIR")
    how = {"split": split, "batch_size": options.batch_size, "devices": options.devices}
    if cascade:
        chosen_on = None
        if options.max_drop is not None:
            chosen_on = read_split(loaded, "validation", "", options.data_dir)[1]
        drop = (options.max_drop or 0.0) / 100
        found, outcomes = evaluate_cascade(cascade, source, chosen_on, max_drop=drop, **how)
    else:
        found, outcomes = evaluate_source(loaded, source, **how)
    file = folder / _file_name(found, options)
    with locked_folder(folder):  # another evaluation of the same split would write the same files
        scores.write_tables(found, outcomes, file, source.files)
        write_json(file.with_name(f"{file.name}.json"), found, with_checksum=True)
    if options.json:
        print(json.dumps(found))
    else:
        _show(found, file)
    return 0


def _check_cascade(options: Any) -> None:
    given = [name for name in ("threshold", "max_drop") if getattr(options, name) is not None]
    if not options.cascade and given:
        raise UsageError(f"--{given[0]} belongs to --cascade, such as --cascade=4,16")
    if options.cascade and len(given) != 1:
        raise UsageError(
            "--cascade needs either --threshold, a probability, or --max_drop, the points of accuracy that the "
            "threshold may cost on validation"
        )
    if options.max_drop is not None and not 0 <= options.max_drop <= 100:
        raise UsageError(f"--max_drop={options.max_drop:g}: must be from 0 to 100 points of accuracy")


def _file_name(found: dict[str, Any], options: Any) -> str:
    words = [options.data, found["split"], options.checkpoint if options.checkpoint != "best" else ""]
    words.append(options.weights if options.weights != "chosen" else "")
    words += [options.reduce, f"tokens_{options.tokens}" if options.tokens else ""]
    words.append(f"cascade_{options.cascade}" if options.cascade else "")
    return "_".join(re.sub(r"\W+", "_", word).strip("_") for word in words if word)


def _show(found: dict[str, Any], file: Path) -> None:
    rows = sorted(found["per_class"], key=lambda row: row["f1"]) if len(found["per_class"]) > 30 else found["per_class"]
    title = f"{found['data']}, {found['count']:,} images" + (", the 30 worst classes" if len(rows) > 30 else "")
    table = Table(title=rich(title))
    table.add_column("class")
    for heading in ("images", "precision", "recall", "F1"):
        table.add_column(heading, justify="right")
    for row in rows[:30]:
        values = (f"{100 * row[name]:.2f}" for name in ("precision", "recall", "f1"))
        table.add_row(rich(row["name"]), f"{row['count']:,}", *values)
    table.add_section()
    for kind in ("macro", "weighted"):
        table.add_row(f"mean, {kind}", "", *(f"{100 * found[n][kind]:.2f}" for n in ("precision", "recall", "f1")))
    print_table(table)
    if len(found["class_names"]) <= 12:
        print_table(_confusion(found))
    if found["most_confused"]:
        print("most frequent confusions:")
        for pair in found["most_confused"][:5]:
            share = f"{100 * pair['share']:.1f} % of {pair['true']}"
            print(terminal(f"  {pair['true']} predicted as {pair['predicted']}: {pair['count']:,} ({share})"))
    right = f"{round(found['top1'] * found['count']):,} of {found['count']:,} images"
    print(f"accuracy {100 * found['top1']:.2f}% ({right}), top-5 {100 * found['top5']:.2f}%")
    if "threshold" in found:
        share = found["mean_macs"] / found["macs"]
        print(
            f"cascade: threshold {found['threshold']:.4f}, {found['again']:.1%} of the images asked again; mean "
            f"{found['mean_macs']:,.0f} multiply-adds per image, {share:.1%} of the second stage alone, whose accuracy "
            f"is {found['top1_alone']:.2%}"
        )
    print(f"loss {found['loss']:.4f}, expected calibration error {100 * found['ece']:.2f}%")
    keras = found["keras"]
    print(f"Keras precision {100 * keras['precision']:.2f}%, recall {100 * keras['recall']:.2f}% (micro, above 1/2)")
    files = terminal(f"{file}.json, .csv, _confusion.csv, _images.csv")
    print(f"weights of step {found['step']:,} ({found['weights']}); files: {files}")


def _confusion(found: dict[str, Any]) -> Table:
    table = Table(title="true class by row, predicted by column")
    table.add_column("")
    for name in found["class_names"]:
        table.add_column(rich(name[:8]), justify="right")
    for i, (name, row) in enumerate(zip(found["class_names"], found["confusion"], strict=True)):
        cells = (f"[bold]{n}[/bold]" if i == j else (str(n) if n else "·") for j, n in enumerate(row))
        table.add_row(rich(name), *cells)
    return table
