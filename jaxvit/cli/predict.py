"""`jaxvit predict`: classifies image files with a trained model, from its run folder."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import numpy as np

from jaxvit import errors
from jaxvit.cli import command_line
from jaxvit.cli.options import (
    Progress,
    add_cascade_options,
    add_image_options,
    add_run_options,
    figure_file,
    load_run,
    named_images,
    say_how_images_were_read,
)
from jaxvit.data.depth import Depth
from jaxvit.data.image_files import PassedOver
from jaxvit.errors import UsageError
from jaxvit.files import local_path
from jaxvit.shown import terminal
from jaxvit.trained.cascade import make_predictor, parse_cascade
from jaxvit.trained.image_files import Converted, refuse_among
from jaxvit.trained.predict import predict_files
from jaxvit.trained.prediction import Prediction
from jaxvit.trained.rows import STREAMS, output_file, writing

PICTURES = 36  # images in a figure, by default

_EXAMPLES = """examples:
  jaxvit predict --workdir=runs/digits images            a folder and its subfolders
  jaxvit predict --workdir=runs/digits 'photos/*.jpg' one.png --top=3
  find . -name '*.webp' | jaxvit predict --workdir=runs/digits - --format=jsonl > predictions.jsonl
  jaxvit predict --workdir=runs/digits images --out=predictions.parquet
  jaxvit predict --workdir=runs/digits images --figure=grid.png
  jaxvit predict --workdir=runs/elastic images --cascade=4,16 --threshold=.9     more tokens only where unsure

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
    add_image_options(parser)
    add_run_options(parser)
    parser.add_argument("--top", type=int, default=5, metavar="K", help="classes to print for each image (default: 5)")
    parser.add_argument(
        "--format", choices=[*STREAMS], help="format of stdout (default: table; with --out, nothing is printed)"
    )
    parser.add_argument(
        "--out", default="", type=local_path, metavar="FILE", help="write the rows to a .csv, .jsonl or .parquet file"
    )
    parser.add_argument(
        "--figure", default="", type=local_path, metavar="FILE", help="draw the images with their predictions"
    )
    parser.add_argument(
        "--pictures", type=int, default=PICTURES, help=f"number of images in the figure (default: {PICTURES})"
    )
    add_cascade_options(parser)
    options, rest = parser.parse_known_intermixed_args(argv)
    parser.refuse_unknown(rest)
    if not options.images:
        raise UsageError("name images: files, folders, patterns, or - for a list on stdin; see jaxvit predict --help")
    for name in ("top", "pictures"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name}={getattr(options, name)}: must be 1 or more")
    figure, out = figure_file(options.figure), output_file(options.out) if options.out else None
    if (options.threshold is None) != (not options.cascade):
        raise UsageError("--cascade and --threshold belong together, such as --cascade=4,16 --threshold=.9")
    loaded = load_run(options)
    cascade = parse_cascade(loaded, options.cascade, options.threshold) if options.cascade else None
    passed_over, depth, converted = PassedOver(), Depth(loaded.config.data.white), Converted()
    names = named_images(options.images, passed_over)
    if figure and figure.exists():
        names = refuse_among(names, figure)
    pictures: list[tuple[np.ndarray, Prediction]] = []
    top, shown = min(options.top, len(loaded.class_names)), options.format or ("" if out else "table")
    writers = [STREAMS[shown](sys.stdout, top)] if shown else []
    counts = dict.fromkeys(("done", "failed", "labelled", "right"), 0)
    how = {"top": options.top, "batch": options.batch_size, "devices": options.devices}
    if cascade:
        how["make"] = make_predictor(cascade)
    with contextlib.ExitStack() as stack:
        writers += [stack.enter_context(writing(out, top))] if out else []
        advance = stack.enter_context(Progress())
        for image, said in predict_files(loaded, names, **how, depth=depth, converted=converted):
            for write in writers:
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

        captions = [caption(*said.top[0], said.right, said.truth, said.file) for _, said in pictures]
        draw_predictions([image for image, _ in pictures], captions, figure)
    sys.stdout.flush()
    say_how_images_were_read(passed_over, converted, depth)
    print(terminal(_sum_up(counts, [file for file in (out, figure if pictures else None) if file])), file=sys.stderr)
    return errors.SOME_INPUTS_FAILED if counts["failed"] else errors.DONE


def _sum_up(counts: dict[str, int], files: list[Path]) -> str:
    parts = [f"{counts['done']:,} image{'s' * (counts['done'] != 1)}"]
    if counts["labelled"]:
        share = 100 * counts["right"] / counts["labelled"]
        parts.append(f"{counts['right']:,} of {counts['labelled']:,} right ({share:.2f}%)")
    if counts["failed"]:
        parts.append(f"{counts['failed']:,} could not be read")
    return "; ".join([*parts, *map(str, files)])
