"""`jaxvit train`: from a config to a run directory."""

from __future__ import annotations

import argparse

from jaxvit.cli import command_line
from jaxvit.config.files import packaged_configs
from jaxvit.config.keys import KEYS
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
  jaxvit train --config=digits --workdir=runs/digits
  jaxvit train --config=digits --workdir=runs/digits                     again: resumes, or shows the finished result
  jaxvit train --config=digits --workdir=runs/wide --config.model.dim=192 --config.optim.peak_lr=5e-4
  jaxvit train --config=digits --workdir=runs/digits --config.train.duration='120 epochs'   takes it on
  jaxvit train --config=digits:shiftvit --workdir=runs/shiftvit --dry_run
  jaxvit train --config=./mine.py --workdir=runs/mine                     a file of your own: a path, with / or .py

A bare name is always a config that comes with jaxvit:
  {configs}

exit codes: 0 done, 2 a mistake in the command, 70 cannot go on, 75 stopped by SIGTERM or a closed terminal, 130 by
Ctrl-C (both saved)

config keys (with --config.key=value; besides, every attribute of the model as --config.model.ATTRIBUTE):
"""


def _parser() -> command_line.Parser:
    keys = "\n".join(f"  {path:<22} {key.default!r:<26} {key.meaning}" for path, key in KEYS.items())
    examples = _EXAMPLES.format(configs=", ".join(packaged_configs()))
    parser = command_line.Parser("train", "Trains a model as a config says, into a run directory.", examples + keys)
    parser.add_argument(
        "--config",
        metavar="NAME[:VARIANT]",
        help="a config of jaxvit, such as digits:vit, or a file, such as ./mine.py:small",
    )
    parser.add_argument("--workdir", type=local_path, metavar="DIR", help="the run's folder; made when missing")
    parser.add_argument(
        "--dry_run", action="store_true", help="print the plan, the parameters and the learning rate; stop"
    )
    parser.add_argument("--debug_nans", action="store_true", help="name the module where a number stops being finite")
    parser.add_argument(
        "--fall_back", action="store_true", help="set a damaged newest checkpoint aside; use the one before"
    )
    parser.add_argument("--distributed", action="store_true", help="one of several processes; the cluster says which")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 is, if no cluster says it")
    parser.add_argument("--num_processes", type=int, default=0, metavar="N", help="how many processes there are")
    parser.add_argument("--process_id", type=int, default=-1, metavar="I", help="which this one is, from 0")
    parser.add_argument("--profile", metavar="FIRST:LAST", help="write a profile of these steps into the run's folder")
    return parser


def _join(options: argparse.Namespace) -> None:
    """Joins the other processes, if there are any."""
    alone = not (options.distributed or options.coordinator)
    if alone and (options.num_processes or options.process_id >= 0):
        raise UsageError("--num_processes and --process_id need --coordinator=HOST:PORT, where process 0 is")
    if not alone:
        processes.join(options.coordinator or "", options.num_processes, options.process_id)


def _profile_steps(text: str | None) -> tuple[int, int] | None:
    """(first, last) of 'first:last'."""
    if not text:
        return None
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise UsageError(f"--profile={text}: write the first and the last step, such as --profile=20:25")
    return int(first), int(last)


def main(argv: list[str]) -> int:
    """The verb."""
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    if not options.config:
        raise UsageError("--config is missing; such as --config=digits")
    config, overrides, unknown = parse_config_arguments(options.config, rest)
    parser.refuse_unknown(unknown)
    profile = _profile_steps(options.profile)
    if not (options.workdir or options.dry_run):
        raise UsageError("--workdir is missing; name the run's folder, such as --workdir=runs/digits")
    _join(options)  # after all that one process could find wrong alone: the others would wait for it
    if options.dry_run:

        def plan_it() -> tuple[Plan, Assembly]:
            plan = resolve(config, devices=hardware.device_count(), overrides=overrides)
            return plan, assemble(plan, overrides)

        plan, assembly = processes.everywhere(plan_it)
        print_plan(plan, assembly.abstract_state.params, assembly.schedule)
        return 0
    train(
        config,
        options.workdir,
        overrides=overrides,
        debug_nans=options.debug_nans,
        fall_back=options.fall_back,
        profile=profile,
    )
    return 0
