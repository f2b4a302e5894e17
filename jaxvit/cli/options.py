"""Flags that several verbs have in common."""

from __future__ import annotations

from typing import Any

import jax

from jaxvit.cli import command_line
from jaxvit.errors import UsageError
from jaxvit.files import local_path
from jaxvit.trained.inference import refuse_batch
from jaxvit.trained.load import CHECKPOINTS, WEIGHTS, Loaded, load


def add_run_options(parser: command_line.Parser) -> None:
    """The flags that every verb on a trained model has."""
    parser.add_argument("--workdir", default="", type=local_path, metavar="RUN", help="the run's folder")
    parser.add_argument("--checkpoint", choices=CHECKPOINTS, default="best", help="(default: best on validation)")
    parser.add_argument(
        "--weights", choices=WEIGHTS, default="chosen", help="chosen: averaged ones where the run keeps them (default)"
    )
    parser.add_argument("--batch_size", type=int, default=0, help="images at a time (default: the run's)")
    parser.add_argument("--devices", type=int, default=0, help="how many to use (default: all)")
    parser.add_argument(
        "--data_dir", default="", type=local_path, metavar="DIR", help="TFDS directory (else the run's, TFDS_DATA_DIR)"
    )
    for name, of in (("pixels", "a stored image"), ("bytes", "the file of an image")):
        help_text = f"that {of} may have (default: the run's data.max_{name})"
        parser.add_argument(f"--max_{name}", type=int, metavar="N", help=help_text)
    parser.add_argument(
        "--own_code",
        action="store_true",
        help="run the code that the run's files name, 'module:Class': a model or data set outside this package",
    )


def load_run(options: Any) -> Loaded:
    """The model of a verb's `--workdir`, `--checkpoint` and `--weights`."""
    if not options.workdir:
        raise UsageError("--workdir is missing: name the folder of a run, such as --workdir=runs/digits")
    if not 0 <= options.batch_size < 2**31:
        raise UsageError(f"--batch_size={options.batch_size}: must be from 1 to {2**31 - 1:,}; 0 = the run's")
    limits = {name: getattr(options, name) for name in ("max_pixels", "max_bytes")}
    for name, value in limits.items():
        if value is not None and not 1 <= value <= 2**53:
            raise UsageError(f"--{name}={value}: must be from 1 to {2**53:,}")
    if not 0 <= options.devices <= jax.local_device_count():
        raise UsageError(f"--devices={options.devices}: there are {jax.local_device_count()}; 0 = all")
    loaded = load(options.workdir, checkpoint=options.checkpoint, weights=options.weights, own_code=options.own_code)
    refuse_batch(loaded, options.batch_size or loaded.evaluation_batch, options.devices)
    return loaded.with_limits(**{name: value or 0 for name, value in limits.items()})
