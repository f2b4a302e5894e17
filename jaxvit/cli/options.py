"""Flags shared by several verbs."""

from __future__ import annotations

from typing import Any

import jax

from jaxvit.cli import command_line
from jaxvit.errors import UsageError
from jaxvit.trained.load import CHECKPOINTS, WEIGHTS, Loaded, load


def add_run_options(parser: command_line.Parser) -> None:
    """Adds the flags of all verbs that load a trained model."""
    parser.add_argument("--workdir", default="", metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--checkpoint", choices=CHECKPOINTS, default="best", help="checkpoint to load (default: best on validation)"
    )
    parser.add_argument(
        "--weights", choices=WEIGHTS, default="chosen", help="chosen = EMA weights if the run has them (default)"
    )
    parser.add_argument("--batch_size", type=int, default=0, help="batch size (default: as in the run)")
    parser.add_argument("--devices", type=int, default=0, help="number of devices (default: all)")
    parser.add_argument(
        "--data_dir", default="", metavar="DIR", help="TFDS directory (default: the run's, else TFDS_DATA_DIR)"
    )
    parser.add_argument(
        "--own_code",
        action="store_true",
        help="import the user's code that the run names as 'module:Class', a model or data set outside jaxvit",
    )


def load_run(options: Any) -> Loaded:
    """Loads the model given by `--workdir`, `--checkpoint` and `--weights`."""
    if not options.workdir:
        raise UsageError("--workdir is missing: name the folder of a run, such as --workdir=runs/digits")
    if options.batch_size < 0:
        raise UsageError(f"--batch_size={options.batch_size}: must be 1 or more, or 0 for the run's batch size")
    if not 0 <= options.devices <= jax.local_device_count():
        raise UsageError(f"--devices={options.devices}: this machine has {jax.local_device_count()}; 0 = all")
    return load(options.workdir, checkpoint=options.checkpoint, weights=options.weights, own_code=options.own_code)
