"""`jaxvit predict`: classifies image files with a trained model, from its run folder."""

from __future__ import annotations

import csv
import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from jaxvit import errors
from jaxvit.cli import command_line
from jaxvit.cli.options import add_run_options, load_run
from jaxvit.data.depth import Depth, hint
from jaxvit.data.image_files import PassedOver
from jaxvit.errors import UsageError
from jaxvit.files import local_path, make_writable
from jaxvit.shown import csv_cell, terminal
from jaxvit.trained.image_files import find_images, refuse_among
from jaxvit.trained.predict import Prediction, predict_files

FORMATS = ("table", "csv", "jsonl")
PICTURES = 36  # images in a figure, by default

_EXAMPLES = """examples:
  jaxvit predict --workdir=runs/digits images            a folder and its subfolders
  jaxvit predict --workdir=runs/digits 'photos/*.jpg' one.png --top=3
  find . -name '*.webp' | jaxvit predict --workdir=runs/digits - --format=jsonl > predictions.jsonl
  jaxvit predict --workdir=runs/digits images --figure=grid.png

Images are decoded, rotated upright (EXIF), composited on white if transparent, resized to cover the model's input size,
centre-cropped, and normalized as in training. If a file's folder has the name of a class, it is taken as the true
class. Files that cannot be read are reported and skipped; the exit code is then 1.
"""


def main(argv: list[str]) -> int:
    """Runs the verb; returns the exit code.

    Raises:
      UsageError: unknown run, or no images.
    """
    parser = command_line.Parser("predict", "Classifies image files with a trained model.", _EXAMPLES)
    parser.add_argument(
        "images",
        nargs="*",
        type=local_path,
        metavar="IMAGES",
        help="files, folders, patterns; - reads names from stdin",
    )
    add_run_options(parser)
    parser.add_argument("--top", type=int, default=5, metavar="K", help="classes to print for each image (default: 5)")
    parser.add_argument("--format", choices=FORMATS, default="table", help="format of stdout (default: table)")
    parser.add_argument(
        "--figure", default="", type=local_path, metavar="FILE", help="draw the images with their predictions"
    )
    parser.add_argument(
        "--pictures", type=int, default=PICTURES, help=f"number of images in the figure (default: {PICTURES})"
    )
    options, rest = parser.parse_known_intermixed_args(argv)
    parser.refuse_unknown(rest)
    if not options.images:
        raise UsageError("name images: files, folders, patterns, or - for a list on stdin; see jaxvit predict --help")
    for name in ("top", "pictures"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name}={getattr(options, name)}: must be 1 or more")
    figure = _figure_file(options.figure)
    loaded = load_run(options)
    passed_over, depth = PassedOver(), Depth(loaded.config.data.white)
    names = find_images(options.images, sys.stdin, passed_over)
    some = list(itertools.islice(names, 2))
    if all(map(os.path.isdir, some)) and len(some) < 2:
        besides = f"; passed over: {passed_over}" if passed_over else ""
        raise UsageError(f"{' '.join(options.images)}: no images found{besides}")
    names = itertools.chain(some, names)
    if figure and figure.exists():
        names = refuse_among(names, figure)
    pictures: list[tuple[np.ndarray, Prediction]] = []
    write = WRITERS[options.format](sys.stdout, min(options.top, len(loaded.class_names)))
    counts = dict.fromkeys(("done", "failed", "labelled", "right"), 0)
    how = {"top": options.top, "batch": options.batch_size, "devices": options.devices}
    with _Progress() as advance:
        for image, said in predict_files(loaded, names, **how, depth=depth):
            write(said)
            advance()
            counts["failed" if said.error else "done"] += 1
            if said.error:
                print(terminal(f"jaxvit: {said.file}: {said.error}"), file=sys.stderr)
                continue
            counts["labelled"] += bool(said.truth)
            counts["right"] += bool(said.right)
            if figure and len(pictures) < options.pictures:
                pictures.append((image, said))
    if figure and pictures:
        from jaxvit.figures.predictions import caption, draw_predictions

        captions = [caption(*said.top[0], said.right, said.truth) for _, said in pictures]
        draw_predictions([image for image, _ in pictures], captions, figure)
    sys.stdout.flush()
    if passed_over:
        print(terminal(f"passed over: {passed_over}"), file=sys.stderr)
    if said := hint(depth.notes, depth.white):
        print(terminal(f"warning: {said}; the run was trained with 0"), file=sys.stderr)
    print(terminal(_sum_up(counts, figure if pictures else None)), file=sys.stderr)
    return errors.SOME_INPUTS_FAILED if counts["failed"] else errors.DONE


def _write_table(stream: TextIO, top: int) -> Callable[[Prediction], None]:
    def write(said: Prediction) -> None:
        if not said.error:  # errors go to stderr
            stream.write(terminal(f"{said.file}: {_confidences(said)}") + "\n")

    return write


def _confidences(said: Prediction) -> str:
    classes = ", ".join(f"{name} {100 * probability:.2f}%" for name, probability in said.top)
    if said.right is None:
        return classes
    return f"{classes}  ({'right' if said.right else f'wrong, it is {said.truth}'})"


def _write_csv(stream: TextIO, top: int) -> Callable[[Prediction], None]:
    rows = csv.writer(stream, lineterminator="\n")
    places = range(1, top + 1)
    rows.writerow(["file", "true", *(f"{kind}{i}" for i in places for kind in ("class", "probability")), "error"])

    def write(said: Prediction) -> None:
        pairs = [value for name, probability in said.top for value in (name, f"{probability:.6g}")]
        cells = [said.file, said.truth, *pairs, *[""] * (2 * top - len(pairs)), said.error]
        rows.writerow(map(csv_cell, cells))

    return write


def _write_jsonl(stream: TextIO, top: int) -> Callable[[Prediction], None]:
    def write(said: Prediction) -> None:
        line: dict[str, Any] = {"file": said.file}
        line |= {"error": said.error} if said.error else {"top": [list(pair) for pair in said.top]}
        line |= {"true": said.truth} if said.truth else {}
        stream.write(json.dumps(line) + "\n")

    return write


WRITERS = {"table": _write_table, "csv": _write_csv, "jsonl": _write_jsonl}


def _figure_file(name: str) -> Path | None:
    if not name:
        return None
    file = Path(name)
    if file.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UsageError(f"--figure={name}: the name must end in .png, .svg or .pdf")
    if not file.parent.is_dir():
        raise UsageError(f"--figure={name}: there is no folder {file.parent}")
    if file.is_dir():
        raise UsageError(f"--figure={name}: this is a folder; name a file")
    make_writable(file.parent, f"choose another folder for --figure={name}")
    return file


class _Progress:
    """A counter of files on stderr, shown if stderr is a terminal and stdout is not."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        columns = (SpinnerColumn(), TextColumn("images"), MofNCompleteColumn(), TimeElapsedColumn())
        quiet = not console.is_terminal or sys.stdout.isatty()
        self._progress = Progress(*columns, console=console, transient=True, disable=quiet)

    def __enter__(self) -> Callable[[], None]:
        self._progress.start()
        task = self._progress.add_task("images", total=None)
        return lambda: self._progress.advance(task)

    def __exit__(self, *error: object) -> None:
        self._progress.stop()


def _sum_up(counts: dict[str, int], figure: Path | None) -> str:
    parts = [f"{counts['done']:,} image{'s' * (counts['done'] != 1)}"]
    if counts["labelled"]:
        share = 100 * counts["right"] / counts["labelled"]
        parts.append(f"{counts['right']:,} of {counts['labelled']:,} right ({share:.2f}%)")
    if counts["failed"]:
        parts.append(f"{counts['failed']:,} could not be read")
    return "; ".join(parts) + (f"; {figure}" if figure else "")
