"""`jaxvit.train`: from a config to a finished run folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ml_collections import ConfigDict

from jaxvit.config.distillation import with_teacher
from jaxvit.config.initial_weights import fill_in
from jaxvit.config.keys import complete, flatten, set_value
from jaxvit.config.plan import dataset_of, resolve
from jaxvit.config.plan_types import Plan
from jaxvit.config.reader import ConfigReader
from jaxvit.data.dataset import Dataset
from jaxvit.data.image_folder import refuse_among_images
from jaxvit.data.sources import located
from jaxvit.devices import hardware, processes, runtime
from jaxvit.errors import RunFailedError, UsageError, describe_system_error, find_system_error
from jaxvit.files import local_path, no_empty_folders, refuse_backslash
from jaxvit.run.assembly import Assembly, assemble, refuse_beyond_memory
from jaxvit.run.execution import execute
from jaxvit.run.folder import RunDirectory, finished_result
from jaxvit.run.folds import train_folds
from jaxvit.run.messages import print_finished
from jaxvit.run.program import StartOptions
from jaxvit.run.result_types import Result
from jaxvit.run.seeds import train_seeds
from jaxvit.training.progress import nobody_need_listen
from jaxvit.training.stopping import StopRequest
from jaxvit.training.trackers import reach_trackers


def train(
    config: ConfigDict,
    workdir: str | Path,
    *,
    overrides: Iterable[str] = (),
    debug_nans: bool = False,
    fall_back: bool = False,
    profile: tuple[int, int] | None = None,
    stop: StopRequest | None = None,
) -> Result:
    """Trains by a config, or resumes the run in `workdir`, and returns its result.

    Args:
      config: config of the run, from `jaxvit.config.base_config` or the ``get_config`` of a config file.
      workdir: folder of the run; created if missing.
      overrides: keys set on the command line; each must have an effect in this run.
      debug_nans: check every step and name the module that makes the first NaN or infinity; slower.
      fall_back: if the newest checkpoint is damaged, set it aside and resume from the one before.
      profile: first and last step to profile, into ``workdir/profile``; None = no profile.
      stop: request to stop or pause, a `StopRequest` that the caller has entered; None = signals to this process.

    Returns:
      The content of result.json.

    Raises:
      UsageError, RunFailedError, StoppedError: see `jaxvit.errors`.

    Example:
      >>> from jaxvit.config import load_config_file
      >>> jaxvit.train(load_config_file("digits"), "runs/digits")["test"]["top1"]  # doctest: +SKIP
      0.9889
    """
    if not isinstance(config, ConfigDict):
        remedy = f"load_config_file('{config}')" if isinstance(config, str | Path) else "base_config()"
        raise UsageError(f"config is a {type(config).__name__}, not a config; make one by jaxvit.config.{remedy}")
    config = _with_located_data(complete(config))  # adds keys that are newer than the config
    path = Path(local_path(workdir))
    refuse_backslash(path, "--workdir=")
    with _device_and_disk_errors(config):
        config = processes.on_all(lambda: with_teacher(config))
        config, begun = processes.on_all(lambda: fill_in(config, path, tuple(overrides)))
    runtime.keep_compiled_programs()
    runtime.choose_cpu_libraries()
    get = ConfigReader(config)
    if get("train.deterministic", bool):
        runtime.be_deterministic()
    with _device_and_disk_errors(config):
        finished = processes.broadcast_from_first(lambda: finished_result(path, config))
    if finished is not None:
        return print_finished(finished, path)
    refuse_among_images(path, get("data.name", str))
    options = StartOptions(debug_nans, fall_back, profile)

    def prepare(config: ConfigDict = config) -> tuple[Dataset, Plan, Assembly]:
        dataset = dataset_of(config)
        plan = resolve(
            config, devices=hardware.device_count(), platform=hardware.platform(), overrides=overrides, dataset=dataset
        )
        if profile and profile[0] > plan.train.steps:
            raise UsageError(f"--profile={profile[0]}:{profile[1]}: the run has only {plan.train.steps} steps")
        assembly = assemble(plan, overrides, begun=begun)
        refuse_beyond_memory(plan, assembly)
        if processes.is_first():  # it alone writes to them
            reach_trackers(plan.train.writers, path / f"seed_{plan.seeds[0]}" if plan.seeds else path)
        return dataset, plan, assembly

    asked = contextlib.nullcontext(stop) if stop else StopRequest()
    with no_empty_folders(), asked as stop, nobody_need_listen(), _device_and_disk_errors(config):
        dataset, plan, assembly = processes.on_all(prepare)
        opened = processes.on_first(lambda: RunDirectory(path, config))
        run = processes.on_all(lambda: opened or RunDirectory(path, config, writes=False))
        with contextlib.closing(run):
            if get("data.folds", int) and get("data.fold", int) < 0:
                return train_folds(run, prepare, options, stop)
            if plan.seeds:
                return train_seeds(run, plan, assembly, dataset, options, stop)
            result = processes.broadcast_from_first(lambda: run.result)
            if result is not None and result["steps"] == plan.train.steps and not result["stopped_early"]:
                return print_finished(result, path)
            return execute(run, plan, assembly, dataset, options, stop)


def _with_located_data(config: ConfigDict) -> ConfigDict:
    """Returns the config with absolute data paths, so that the run folder works from any working folder."""
    get = ConfigReader(config)
    name, folder = get("data.name", str), get("data.dir", str)
    absolute = located(name), os.path.abspath(local_path(folder)) if folder else ""
    if absolute == (name, folder):
        return config
    config = config.copy_and_resolve_references()
    for key, value in zip(("data.name", "data.dir"), absolute, strict=True):
        set_value(config, key, value)
    return config


@contextlib.contextmanager
def _device_and_disk_errors(config: ConfigDict) -> Iterator[None]:
    """Turns errors of devices, disks and lost processes into one line and exit code 70."""
    now = dict(flatten(complete(config)))
    settings = {
        "a smaller config.train.batch_size, now": now["train.batch_size"],
        "a smaller config.eval.batch_size, now": now["eval.batch_size"] or now["train.batch_size"],
        "a larger config.train.accumulate, now": now["train.accumulate"],
        "config.model.remat=full, now": now.get("model.remat", "not there"),
        "config.model.dtype=bfloat16, now": now.get("model.dtype", "not there"),
        "a larger config.train.fsdp, now": now["train.fsdp"],
        "config.data.feed=stream, now": now["data.feed"],
    }
    with hardware.device_errors(settings), _lost_process_and_failed_disk():
        yield


@contextlib.contextmanager
def _lost_process_and_failed_disk() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        if processes.has_lost_another(error):  # raised here as an error of a device or collective
            raise RunFailedError(processes.LOST) from error
        if failed := find_system_error(error):
            raise RunFailedError(describe_system_error(failed, "; what was saved is kept")) from error
        raise
