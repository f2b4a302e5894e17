"""`jaxvit train`: trains a model from a config into a run folder."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from jaxvit.cli import command_line
from jaxvit.cli.options import said_choice
from jaxvit.config.files import packaged_configs, split_spec
from jaxvit.config.for_images import CONFIG, choose, data_name, default_workdir
from jaxvit.config.initial_weights import FINETUNE, chosen_side, fill_in
from jaxvit.config.key_table import KEYS
from jaxvit.config.overrides import parse_config_arguments
from jaxvit.config.plan import resolve
from jaxvit.config.plan_types import Plan
from jaxvit.devices import hardware, processes
from jaxvit.errors import UsageError
from jaxvit.files import local_path
from jaxvit.run.assembly import Assembly, assemble
from jaxvit.run.dry_run import print_plan
from jaxvit.run.train import train

_EXAMPLES = """examples:
  jaxvit train --data=photos                       your images, photos/CLASS/IMAGE.jpg; derives the settings
  jaxvit train --data=labels.csv --folds=5         a table with columns file,label; cross-validation
  jaxvit train --config=digits --workdir=runs/digits
  jaxvit train --config=digits --workdir=runs/digits                     resumes, or shows the finished result
  jaxvit train --config=digits --workdir=runs/wide --config.model.dim=192 --config.optim.peak_lr=5e-4
  jaxvit train --config=digits --workdir=runs/digits --config.train.duration='120 epochs'   trains longer
  jaxvit train --config=digits:shiftvit --workdir=runs/shiftvit --dry_run
  jaxvit train --config=./mine.py --workdir=runs/mine                     your own file: a path with / or .py

Configs that come with jaxvit (a name without / and .py):
  {configs}

exit codes: 0 done; 2 a mistake in the command; 70 the run cannot continue; 75 stopped by SIGTERM or a closed terminal,
130 by Ctrl-C (both saved)

config keys, set by --config.KEY=VALUE (and every model attribute, by --config.model.ATTRIBUTE=VALUE):
"""


def _parser() -> command_line.Parser:
    keys = "\n".join(f"  {path:<22} {key.default!r:<26} {key.meaning}" for path, key in KEYS.items())
    examples = _EXAMPLES.format(configs=", ".join(packaged_configs()))
    parser = command_line.Parser("train", "Trains a model from a config into a run folder.", examples + keys)
    parser.add_argument(
        "--config",
        metavar="NAME[:VARIANT]",
        help="a config of jaxvit, such as digits:vit, or a file, such as ./mine.py:small",
    )
    parser.add_argument(
        "--workdir", type=local_path, metavar="DIR", help="folder of the run (with --data, default: runs/NAME)"
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="a folder of photos, a table of files and labels (.csv, .jsonl) or a prepared data set; derives image "
        "size, batch size, duration and splits, and without --config also the model",
    )
    parser.add_argument("--folds", type=int, default=0, metavar="K", help="cross-validation with K runs, one per fold")
    parser.add_argument(
        "--dry_run", action="store_true", help="print plan, parameters and learning-rate curve; train nothing"
    )
    parser.add_argument("--debug_nans", action="store_true", help="on a non-finite value, name the module that made it")
    parser.add_argument(
        "--fall_back",
        action="store_true",
        help="if the newest checkpoint is damaged, move it aside and use the one before",
    )
    parser.add_argument("--distributed", action="store_true", help="join a multi-process run set up by the cluster")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0, without a cluster")
    parser.add_argument("--num_processes", type=int, default=0, metavar="N", help="number of processes")
    parser.add_argument("--process_id", type=int, default=-1, metavar="I", help="index of this process, from 0")
    parser.add_argument("--profile", metavar="FIRST:LAST", help="write a profile of these steps to the run folder")
    return parser


def _join(options: argparse.Namespace) -> None:
    """Joins the other processes of a multi-process run."""
    alone = not (options.distributed or options.coordinator)
    if alone and (options.num_processes or options.process_id >= 0):
        raise UsageError("--num_processes and --process_id need --coordinator=HOST:PORT, the address of process 0")
    if not alone:
        processes.join(options.coordinator or "", options.num_processes, options.process_id)


def _profile_steps(text: str | None) -> tuple[int, int] | None:
    """Parses 'first:last'."""
    if not text:
        return None
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise UsageError(f"--profile={text}: write the first and the last step, such as --profile=20:25")
    return int(first), int(last)


def _fill_in(options: argparse.Namespace, config: ConfigDict, overrides: Collection[str]) -> tuple[ConfigDict, str]:
    """Applies --data and --folds; returns (config, run folder)."""
    folds = options.folds
    if folds < 0 or folds == 1:
        raise UsageError(f"--folds={folds}: must be 2 or more, such as --folds=5")
    if folds and "data.folds" in overrides:
        raise UsageError("--folds and --config.data.folds set the same key; give only one of them")
    if not options.data:
        if folds:
            with config.unlocked():
                config.data.folds = folds
        return config, options.workdir
    if "data.name" in overrides:
        raise UsageError("--data and --config.data.name set the same key; give only one of them")
    name = data_name(options.data)
    named = split_spec(options.config or CONFIG)[0]
    side = None
    if named == FINETUNE:
        workdir = Path(options.workdir or default_workdir(name, folds))
        config = fill_in(config, workdir, overrides)[0]
        side = partial(chosen_side, config, workdir)
    found = choose(
        config, name, given=overrides, folds=folds, whole_recipe=named in (CONFIG, FINETUNE), weights_side=side
    )
    config = said_choice(found)
    return config, options.workdir or default_workdir(name, config.data.folds)


def main(argv: list[str]) -> int:
    """Runs the verb; returns the exit code."""
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    if not (options.config or options.data):
        raise UsageError("--config or --data is missing, such as --config=digits, or --data=photos for your own photos")
    config, overrides, unknown = parse_config_arguments(options.config or CONFIG, rest)
    parser.refuse_unknown(unknown)
    profile = _profile_steps(options.profile)
    if not (options.workdir or options.dry_run or options.data):
        raise UsageError("--workdir is missing; name the run's folder, such as --workdir=runs/digits")
    config, workdir = _fill_in(options, config, overrides)
    _join(options)  # after all that one process could find wrong alone: the others would wait for it
    if options.dry_run:

        def plan_it() -> tuple[Plan, Assembly, list[str]]:
            filled, begun = fill_in(config, Path(workdir) if workdir else None, overrides)
            platform = hardware.platform()
            plan = resolve(filled, devices=hardware.device_count(), platform=platform, overrides=overrides)
            assembly = assemble(plan, overrides, begun=begun)
            return plan, assembly, assembly.initial.describe() if assembly.initial and not begun else []

        plan, assembly, weights = processes.on_all(plan_it)
        print_plan(plan, assembly.abstract_state.params, assembly.schedule, weights=weights)
        return 0
    train(
        config,
        workdir,
        overrides=overrides,
        debug_nans=options.debug_nans,
        fall_back=options.fall_back,
        profile=profile,
    )
    return 0
