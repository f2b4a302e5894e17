"""Flags shared by several verbs."""

from __future__ import annotations

from typing import Any

import jax

from jaxvit.cli import command_line
from jaxvit.errors import UsageError
from jaxvit.files import local_path
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
        "--own_code",
        action="store_true",
        help="import the user's code that the run names as 'module:Class', a model or data set outside jaxvit",
    )


def load_run(options: Any) -> Loaded:
    """Loads the model given by `--workdir`, `--checkpoint` and `--weights`."""
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
    return loaded.with_limits(**{name: value or 0 for name, value in limits.items()})
