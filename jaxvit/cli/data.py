"""`jaxvit data`: prepares data sets, draws augmented batches, exports images, measures input speed.

jaxvit data prepare cifar10                       download, check, and write the TFDS directory
jaxvit data prepare cifar10 --from=FILE           the same from a local file; --force: replace existing data
jaxvit data show --config=NAME DIR                draw batch.png and patches.png
jaxvit data show photos DIR                       the same for a folder of photos or a table of labels
jaxvit data export cifar10 --split=test --n=6 DIR write image files, for `jaxvit predict`
jaxvit data benchmark --config=NAME               images per second of each stage
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxvit.cli import command_line
from jaxvit.cli.options import said_choice
from jaxvit.config.for_images import CONFIG, choose, data_name
from jaxvit.config.keys import base_config
from jaxvit.config.overrides import parse_config_arguments, parse_overrides, split_overrides
from jaxvit.config.plan import dataset_of
from jaxvit.data.builders import prepare
from jaxvit.data.image_folder import is_among_images, save_images
from jaxvit.data.preparable import PREPARABLE
from jaxvit.data.prepared import data_dir
from jaxvit.data.sources import FILE_PREFIXES, open_dataset
from jaxvit.errors import UsageError, nearest
from jaxvit.files import local_path, make_writable
from jaxvit.pages.terminal import print_lines
from jaxvit.pages.training import draw_training
from jaxvit.shown import terminal
from jaxvit.speed.input import measure_input

LIMITS = ("data.max_pixels", "data.max_bytes", "data.white")
ACTIONS = ("prepare", "show", "export", "benchmark")


_EXAMPLES = """examples:
  jaxvit data prepare cifar10                            downloads, checks, writes to TFDS_DATA_DIR
  jaxvit data prepare cifar10 --from=cifar-10-binary.tar.gz
  jaxvit data show --config=digits pictures              batch.png: augmented images with targets; patches.png
  jaxvit data show cifar10 pictures --config.augment.policy=trivial
  jaxvit data show photos pictures                       your images, with the settings of jaxvit train --data=photos
  jaxvit data export cifar10 --split=test --n=6 images   images/CLASS/test_00000.png, …
  jaxvit data export pets images --split=train --config.data.side=64
  jaxvit data benchmark --config=digits                  images per second of each input stage
"""


def _parser() -> command_line.Parser:
    parser = command_line.Parser("data", "Prepares, draws, exports and measures data sets.", _EXAMPLES)
    parser.add_argument("action", metavar="ACTION", help=", ".join(ACTIONS))
    parser.add_argument("names", nargs="*", metavar="NAME|DIR", help="data set, then the folder to write to")
    parser.add_argument(
        "--config", metavar="NAME[:VARIANT]", help="for show, export, benchmark: a config of jaxvit, or a file"
    )
    parser.add_argument(
        "--data_dir", default="", type=local_path, metavar="DIR", help="TFDS directory (default: TFDS_DATA_DIR)"
    )
    parser.add_argument(
        "--from", dest="given", type=local_path, metavar="FILE", help="prepare: local archive, or folder with the files"
    )
    parser.add_argument("--force", action="store_true", help="prepare: replace an existing data set")
    parser.add_argument("--split", default="test", help="export: split in TFDS notation (default: test)")
    parser.add_argument("--n", type=int, default=16, help="export, show: number of images (default: 16)")
    parser.add_argument("--json", action="store_true", help="benchmark: print one JSON object")
    return parser


def main(argv: list[str]) -> int:
    """Runs the verb; returns the exit code."""
    parser = _parser()
    overrides, words = split_overrides(argv)
    options, rest = parser.parse_known_intermixed_args(words)
    rest += [word for _, _, word in overrides]
    if options.action not in ACTIONS:
        raise UsageError(
            f"there is no `jaxvit data {options.action}`{nearest(options.action, ACTIONS)}; actions: "
            f"{', '.join(ACTIONS)}"
        )
    if options.n < 1:
        raise UsageError(f"--n={options.n}: must be 1 or more")
    return {"prepare": _prepare, "show": _show, "export": _export, "benchmark": _benchmark}[options.action](
        parser, options, rest
    )


def _prepare(parser: command_line.Parser, options: Any, rest: list[str]) -> int:
    parser.refuse_unknown(rest)
    if not options.names:
        raise UsageError(f"jaxvit data prepare: name a data set: {', '.join(PREPARABLE)}")
    directory = data_dir(options.data_dir)
    for name in options.names:
        if name == "digits":
            if options.force:
                shutil.rmtree(directory / name, ignore_errors=True)
            open_dataset(name, directory)
            print(f"digits: prepared in {directory}")
            continue
        if name not in PREPARABLE:
            raise UsageError(
                f"'{name}' cannot be prepared{nearest(name, [*PREPARABLE, 'digits'])}; available: "
                f"{', '.join(PREPARABLE)}; for other sets: tfds build {name} --file_format=array_record"
            )
        try:
            given = Path(options.given) if options.given else None
            prepare(name, directory, given, force=options.force)
        except PermissionError as error:
            raise UsageError(
                f"{directory} cannot be written: {error.strerror}; set --data_dir or TFDS_DATA_DIR"
            ) from None
    return 0


def _export(parser: command_line.Parser, options: Any, rest: list[str]) -> int:
    if len(options.names) != (1 if options.config else 2):
        raise UsageError(
            "jaxvit data export: name a data set and a folder, such as `jaxvit data export cifar10 images`"
        )
    config, overrides = _configured(options, rest)
    for key in overrides:
        if key not in ("data.name", "data.dir", "data.classes", "data.on_error", "data.side", *LIMITS):
            raise UsageError(f"--config.{key}: this key has no effect on an export; --split and --n choose the images")
    target = Path(local_path(options.names[0]))
    if is_among_images(target, config.data.name):
        raise UsageError(f"{target}: the images are read from there, and would be there twice; name another folder")
    source = dataset_of(config).read(options.split)
    images, labels, good = source.batch(np.arange(min(options.n, len(source))))
    make_writable(target, "name another folder")
    stem = "_".join(re.findall(r"\w+", options.split))
    rows = np.flatnonzero(good)
    save_images(target, [(images[i], source.class_names[labels[i]], f"{stem}_{i:05d}") for i in rows])
    more = f" of {len(source):,} (use --n for more)" if len(good) < len(source) else ""
    print(terminal(f"{len(rows)} images{more} of {source.name} in {target}"))
    return 0


def _configured(options: Any, rest: list[str]) -> tuple[ConfigDict, dict[str, Any]]:
    """Returns (config, overrides), from --config or from the name of a data set."""
    if options.config:
        config, overrides, unknown = parse_config_arguments(options.config, rest)
    else:
        if not options.names:
            raise UsageError("name a data set, a folder of photos or a table of labels, or give --config=NAME")
        name = data_name(options.names.pop(0), "")
        if options.action != "export" and name.startswith(FILE_PREFIXES):
            rest = [*rest, *(["--config.data.dir", options.data_dir] if options.data_dir else [])]
            config, overrides, unknown = parse_config_arguments(CONFIG, rest)
            _parser().refuse_unknown(unknown)
            return said_choice(choose(config, name, given=overrides)), overrides
        config, overrides, unknown = parse_overrides(base_config(), ["--config.data.name", name, *rest])
    _parser().refuse_unknown(unknown)
    if options.data_dir:
        config.data.dir = options.data_dir
    return config, overrides


def _show(parser: command_line.Parser, options: Any, rest: list[str]) -> int:
    config, overrides = _configured(options, rest)
    folder = Path(local_path(options.names[0]) if options.names else "pictures")
    print(", ".join(map(str, draw_training(config, folder, overrides=overrides, images=options.n))))
    return 0


def _benchmark(parser: command_line.Parser, options: Any, rest: list[str]) -> int:
    config, overrides = _configured(options, rest)
    found = measure_input(config, overrides)
    if options.json:
        print(json.dumps(found))
    else:
        print_lines({k: f"{v:,}" if isinstance(v, int | float) else v for k, v in found.items()})
    return 0
