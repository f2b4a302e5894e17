"""Flags shared by several verbs, and what verbs that read image files share."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxvit.cli import command_line
from jaxvit.config.for_images import Chosen
from jaxvit.data.depth import Depth, hint
from jaxvit.data.image_files import PassedOver
from jaxvit.errors import UsageError
from jaxvit.files import local_path, make_writable
from jaxvit.models.count import count_macs
from jaxvit.shown import terminal
from jaxvit.trained.image_files import Converted, find_images
from jaxvit.trained.inference import refuse_batch
from jaxvit.trained.load import CHECKPOINTS, WEIGHTS, Loaded, load


def add_run_options(parser: command_line.Parser) -> None:
    """Adds the flags of all verbs that load a trained model."""
    parser.add_argument("--workdir", default="", type=local_path, metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--checkpoint", choices=CHECKPOINTS, default="best", help="checkpoint to load (default: best on validation)"
    )
    parser.add_argument(
        "--weights", choices=WEIGHTS, default="chosen", help="chosen = EMA weights if the run has them (default)"
    )
    parser.add_argument("--batch_size", type=int, default=0, help="batch size (default: as in the run)")
    parser.add_argument("--devices", type=int, default=0, help="number of devices (default: all)")
    parser.add_argument(
        "--data_dir",
        default="",
        type=local_path,
        metavar="DIR",
        help="TFDS directory (default: the run's, else TFDS_DATA_DIR)",
    )
    for name, of in (("pixels", "pixels of a stored image"), ("bytes", "bytes of an image file")):
        help_text = f"maximum {of} (default: the run's data.max_{name})"
        parser.add_argument(f"--max_{name}", type=int, metavar="N", help=help_text)
    parser.add_argument(
        "--reduce",
        default="",
        metavar="HOW",
        help="merge or remove tokens of a ViT or CCT: merge:r=8, merge:macs=.7, prune:keep=.7; at=2-5 names blocks",
    )
    parser.add_argument(
        "--tokens", type=int, default=0, metavar="N", help="learned tokens of a model trained with train.elastic"
    )
    parser.add_argument(
        "--own_code",
        action="store_true",
        help="import the user's code that the run names as 'module:Class', a model or data set outside jaxvit",
    )


def said_choice(found: Chosen) -> ConfigDict:
    """Prints the description and the warnings of a config chosen from images; returns the config."""
    for line in found.lines:
        print(terminal(line), flush=True)
    for phrase in found.warnings:
        print(terminal(f"warning: {phrase}"), file=sys.stderr, flush=True)
    return found.config


def load_run(options: Any) -> Loaded:
    """Loads the model given by `--workdir`, `--checkpoint` and `--weights`, with fewer tokens if `--reduce` says so."""
    if not options.workdir:
        raise UsageError("--workdir is missing: name the folder of a run, such as --workdir=runs/digits")
    if not 0 <= options.batch_size < 2**31:
        raise UsageError(
            f"--batch_size={options.batch_size}: must be from 1 to {2**31 - 1:,}; 0 = the run's batch size"
        )
    limits = {name: getattr(options, name) for name in ("max_pixels", "max_bytes")}
    for name, value in limits.items():
        if value is not None and not 1 <= value <= 2**53:
            raise UsageError(f"--{name}={value}: must be from 1 to {2**53:,}")
    if not 0 <= options.devices <= jax.local_device_count():
        raise UsageError(f"--devices={options.devices}: this machine has {jax.local_device_count()}; 0 = all")
    loaded = load(options.workdir, checkpoint=options.checkpoint, weights=options.weights, own_code=options.own_code)
    refuse_batch(loaded, options.batch_size or loaded.evaluation_batch, options.devices)
    if options.tokens < 0:
        raise UsageError(f"--tokens={options.tokens}: must be 1 or more")
    whole, loaded = loaded, loaded.with_tokens(options.tokens).reduced(options.reduce)
    if options.tokens or options.reduce:
        words = [f"{options.tokens} learned tokens"] if options.tokens else []
        words += [loaded.model.reduce] if options.reduce else []
        print(terminal(f"note: {', '.join(words)}: {saving(whole, loaded)}"), file=sys.stderr)
    return loaded.with_limits(**{name: value or 0 for name, value in limits.items()})


def saving(whole: Loaded, fewer: Loaded) -> str:
    """The multiply-adds of a model with fewer tokens beside those of the whole model, in words."""
    before, after = (count_macs(each.model, each.input_shape)["all"] for each in (whole, fewer))
    return f"{after:,} multiply-adds per image instead of {before:,} ({after / before:.1%})"


def add_image_options(parser: command_line.Parser) -> None:
    """Adds the images of the verbs that read files, folders and patterns."""
    parser.add_argument(
        "images",
        nargs="*",
        type=local_path,
        metavar="IMAGES",
        help="files, folders, patterns; - reads names from stdin",
    )


def named_images(words: list[str], passed_over: PassedOver) -> Iterator[str]:
    """Returns the image files that command-line words name; see `jaxvit.trained.image_files.find_images`.

    Raises:
      UsageError: there are no words, or no images.
    """
    names = find_images(words, sys.stdin, passed_over)
    some = list(itertools.islice(names, 2))
    if all(map(os.path.isdir, some)) and len(some) < 2:
        besides = f"; skipped: {passed_over}" if passed_over else ""
        raise UsageError(f"{' '.join(words)}: no images found{besides}")
    return itertools.chain(some, names)


def say_how_images_were_read(passed_over: PassedOver, converted: Converted, depth: Depth) -> None:
    """Prints on stderr which files were skipped, which images were converted, and whether 16-bit images are dark."""
    if passed_over:
        print(terminal(f"skipped: {passed_over}"), file=sys.stderr)
    if str(converted):
        print(f"note: {converted}", file=sys.stderr)
    if said := hint(depth.notes, depth.white):
        print(terminal(f"warning: {said}; the run was trained with 0"), file=sys.stderr)


def figure_file(name: str) -> Path | None:
    """Checks the value of `--figure` before anything is computed; None = no figure.

    Raises:
      UsageError: another ending, no such folder, or one that cannot be written.
    """
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


def add_cascade_options(parser: command_line.Parser) -> None:
    """Adds the flags of the verbs that can ask twice."""
    parser.add_argument(
        "--cascade", default="", metavar="A,B", help="A learned tokens for all images, B where the answer is unsure"
    )
    parser.add_argument(
        "--threshold", type=float, metavar="P", help="with --cascade: unsure = the class's probability is below P"
    )


class Progress:
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
