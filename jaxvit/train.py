"""`jaxvit train`: from a config to a run directory.

As a function: ``jaxvit.train(config, workdir)``.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxvit import command_line
from jaxvit.assembly import Assembly, assemble
from jaxvit.config import KEYS
from jaxvit.data.sources import Dataset
from jaxvit.dry_run import print_plan
from jaxvit.errors import (
    RunFailedError,
    UsageError,
    disk_full,
    first_line,
    is_disk_full,
)
from jaxvit.execution import execute, show_finished
from jaxvit.job import StartOptions
from jaxvit.plan import Plan, dataset_of, resolve
from jaxvit.run_directory import RunDirectory, finished_result
from jaxvit.seeds import train_seeds
from jaxvit.training import hardware, processes, runtime
from jaxvit.training.progress import nobody_need_listen
from jaxvit.training.stopping import StopRequest

_EXAMPLES = """examples:
  jaxvit train --config=configs/digits.py --workdir=runs/digits
  jaxvit train --config=configs/digits.py --workdir=runs/digits            again: resumes, or shows the finished result
  jaxvit train --config=configs/digits.py --workdir=runs/wide --config.model.dim=192 --config.optim.peak_lr=5e-4
  jaxvit train --config=configs/digits.py --workdir=runs/digits --config.train.duration='120 epochs'    takes it on
  jaxvit train --config=configs/digits.py --workdir=runs/digits --dry_run

exit codes: 0 done, 2 a mistake in the command, 70 cannot go on, 75 stopped by SIGTERM or a closed terminal, 130 by
Ctrl-C (both saved)

config keys (with --config.key=value; besides, every attribute of the model as --config.model.ATTRIBUTE):
"""


def train(
    config: ConfigDict,
    workdir: str | Path,
    *,
    overrides: Iterable[str] = (),
    debug_nans: bool = False,
    fall_back: bool = False,
    profile: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Trains as the config says, or goes on where the run in `workdir` stopped, and returns its result.

    Args:
      config: made by `jaxvit.config.base_config` or by a config file's ``get_config``.
      workdir: the run's folder, made when missing.
      overrides: keys set by hand; each must matter in this run.
      debug_nans: check every step at once and name the module where a number stops being finite. Slower.
      fall_back: when the newest checkpoint is damaged, set it aside and go on from the one before.
      profile: first and last step of which a profile is written into ``workdir/profile``.

    Returns:
      What result.json holds.

    Raises:
      UsageError, RunFailedError, StoppedError: see `jaxvit.errors`.
    """
    if not isinstance(config, ConfigDict):
        remedy = f"load_config_file('{config}')" if isinstance(config, str | Path) else "base_config()"
        raise UsageError(f"config is a {type(config).__name__}, not a config; make one by jaxvit.config.{remedy}")
    path = Path(workdir)
    runtime.keep_compiled_programs()
    runtime.choose_cpu_libraries()
    if config.train.deterministic:
        runtime.be_deterministic()
    with _device_and_disk_errors(config):
        finished = processes.told(lambda: finished_result(path, config))
    if finished is not None:
        return show_finished(finished, path)
    options = StartOptions(debug_nans, fall_back, profile)

    def prepare() -> tuple[Dataset, Plan, Assembly]:
        dataset = dataset_of(config)
        plan = resolve(config, devices=hardware.device_count(), overrides=overrides, dataset=dataset)
        if profile and profile[0] > plan.train.steps:
            raise UsageError(f"--profile={profile[0]}:{profile[1]}: the run has only {plan.train.steps} steps")
        return dataset, plan, assemble(plan, overrides)

    with StopRequest() as stop, nobody_need_listen(), _device_and_disk_errors(config):
        dataset, plan, assembly = processes.everywhere(prepare)
        opened = processes.first(lambda: RunDirectory(path, config))
        run = processes.everywhere(lambda: opened or RunDirectory(path, config, writes=False))
        with contextlib.closing(run):
            if plan.seeds:
                return train_seeds(run, plan, assembly, dataset, options, stop)
            result = processes.told(lambda: run.result)
            if result is not None and result["steps"] == plan.train.steps and not result["stopped_early"]:
                return show_finished(result, path)
            return execute(run, plan, assembly, dataset, options, stop)


@contextlib.contextmanager
def _device_and_disk_errors(config: ConfigDict) -> Iterator[None]:
    """Turns an exhausted device and a full disk into one line and exit code 70."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if processes.has_lost_another(error):
            raise RunFailedError(processes.LOST) from error
        if not isinstance(error, jax.errors.JaxRuntimeError):
            raise
        if not hardware.is_out_of_memory(error):
            raise RunFailedError(f"the device failed: {first_line(error)[:200]}") from error
        model = config.model
        settings = {
            "a smaller config.train.batch_size, now": config.train.batch_size,
            "a smaller config.eval.batch_size, now": config.eval.batch_size or config.train.batch_size,
            "a larger config.train.accumulate, now": config.train.accumulate,
            "config.model.remat=full, now": model.get("remat", "not there"),
            "config.model.dtype=bfloat16, now": model.get("dtype", "not there"),
            "a larger config.train.fsdp, now": config.train.fsdp,
            "config.data.feed=stream, now": config.data.feed,
        }
        raise RunFailedError(hardware.explain_out_of_memory(error, settings)) from error
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise RunFailedError(disk_full(error, "; what was saved is kept")) from None


def _parser() -> command_line.Parser:
    keys = "\n".join(f"  {path:<22} {key.default!r:<26} {key.meaning}" for path, key in KEYS.items())
    parser = command_line.Parser("train", "Trains a model as a config says, into a run directory.", _EXAMPLES + keys)
    parser.add_argument("--config", metavar="FILE[:VARIANT]", help="config file, such as configs/digits.py:vit")
    parser.add_argument("--workdir", metavar="DIR", help="the run's folder; made when missing")
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
        raise UsageError("--config is missing; such as --config=configs/digits.py")
    config, overrides, unknown = command_line.parse_config_arguments(options.config, rest)
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


class _Verb(types.ModuleType):
    """Lets `jaxvit.train` be both this module and the function: ``jaxvit.train(config, workdir)``."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return train(*args, **kwargs)


sys.modules[__name__].__class__ = _Verb

if __name__ == "__main__":
    command_line.run(main)
