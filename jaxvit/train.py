"""`jaxvit train`: from a config to a run directory.

As a function: ``jaxvit.train(config, workdir)``.
"""

from __future__ import annotations

import contextlib
import errno
import sys
import time
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxvit import command_line
from jaxvit.assembly import Assembly, assemble
from jaxvit.config import KEYS
from jaxvit.data.feed import evaluation_stream
from jaxvit.data.sources import Dataset, Source, StreamedSource
from jaxvit.dry_run import print_plan
from jaxvit.errors import RunFailedError, UsageError
from jaxvit.figures.history import draw_history
from jaxvit.job import StartOptions, make_job
from jaxvit.models.count import count_params
from jaxvit.plan import Plan, dataset_of, resolve
from jaxvit.run_directory import RunDirectory, finished_result
from jaxvit.training import hardware
from jaxvit.training.checkpoint import Checkpoints
from jaxvit.training.journal import Journal, open_writers, read_jsonl
from jaxvit.training.loop import Job, Position, evaluate, fit
from jaxvit.training.progress import Progress
from jaxvit.training.sharding import make_mesh, shard_state
from jaxvit.training.state import TrainState
from jaxvit.training.stopping import StopRequest

_EXAMPLES = """examples:
  jaxvit train --config=configs/digits.py --workdir=runs/digits
  jaxvit train --config=configs/digits.py --workdir=runs/digits            again: resumes, or shows the finished result
  jaxvit train --config=configs/digits.py --workdir=runs/wide --config.model.dim=192 --config.optim.peak_lr=5e-4
  jaxvit train --config=configs/digits.py --workdir=runs/digits --config.train.duration='120 epochs'    takes it on
  jaxvit train --config=configs/digits.py --workdir=runs/digits --dry_run

exit codes: 0 done, 2 a mistake in the command, 70 cannot go on, 75 stopped by SIGTERM, 130 by Ctrl-C (both saved)

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
    path = Path(workdir)
    finished = finished_result(path, config)
    if finished is not None:
        return _show_finished(finished, path)
    if config.train.deterministic:
        hardware.be_deterministic()
    options = StartOptions(debug_nans, fall_back, profile)
    with StopRequest() as stop, _device_and_disk_errors(config):
        dataset = dataset_of(config)
        plan = resolve(config, devices=hardware.device_count(), overrides=overrides, dataset=dataset)
        assembly = assemble(plan, overrides)
        with contextlib.closing(RunDirectory(path, config)) as run:
            result = run.result
            if result is not None and result["steps"] == plan.train.steps and not result["stopped_early"]:
                return _show_finished(result, path)
            return _run(run, plan, assembly, dataset, options, stop)


@contextlib.contextmanager
def _device_and_disk_errors(config: ConfigDict) -> Iterator[None]:
    """Turns an exhausted device and a full disk into one line and exit code 70."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not hardware.is_out_of_memory(error):
            raise RunFailedError(f"the device failed: {str(error).splitlines()[0][:200]}") from error
        model = config.model
        settings = {
            "a smaller config.train.batch_size, now": config.train.batch_size,
            "a larger config.train.accumulate, now": config.train.accumulate,
            "config.model.remat, now": model.get("remat", "not there"),
            "config.model.dtype=bfloat16, now": model.get("dtype", "not there"),
            "a larger config.train.fsdp, now": config.train.fsdp,
        }
        raise RunFailedError(hardware.explain_out_of_memory(error, settings)) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" while writing {error.filename}" if error.filename else ""
        what = f"the disk is full{where}; what was saved is kept"
        raise RunFailedError(f"{what}. Make room and start the run again") from None


def _run(
    run: RunDirectory, plan: Plan, assembly: Assembly, dataset: Dataset, options: StartOptions, stop: StopRequest
) -> dict[str, Any]:
    mesh = make_mesh(plan.train.devices, plan.train.fsdp)
    sources = {
        part: dataset.read(split) for part in ("train", "validation", "test") if (split := getattr(plan.data, part))
    }
    with contextlib.closing(Checkpoints(run.path / "checkpoints")) as checkpoints:
        state, position = _start(run, plan, assembly, checkpoints, mesh, options.fall_back)
        run.set_result_aside(position.step)
        run.write_config()
        run.write_environment({part: {"split": s.name, **s.notes, **s.fingerprint} for part, s in sources.items()})
        writers = open_writers(
            plan.train.writers,
            run.path,
            resume_step=position.step,
            name=run.path.name,
            config=run.config.to_dict(),
        )
        _announce(plan, assembly, position)
        job = make_job(plan, assembly, sources, state, mesh, position, options, run.path)
        with contextlib.closing(Journal(writers)) as journal:
            with Progress(plan.train.steps, plan.train.steps_per_epoch, position.step) as progress:
                state = fit(
                    job, state, position, checkpoints=checkpoints, journal=journal, progress=progress, stop=stop
                )
            return _finish(run, plan, job, state, position, sources, checkpoints, journal)


def _start(
    run: RunDirectory, plan: Plan, assembly: Assembly, checkpoints: Checkpoints, mesh: Any, fall_back: bool
) -> tuple[TrainState, Position]:
    """The state and position to go on from: fresh, or the newest checkpoint's."""
    saved = checkpoints.latest_step()
    shardings = shard_state(mesh, assembly.abstract_state)
    if saved is None:
        # Born where it will live: no device ever holds a full copy.
        return jax.jit(assembly.create_state, out_shardings=shardings)(), Position()
    if saved > plan.train.steps:
        raise UsageError(
            f"config.train.duration: {plan.train.steps} steps are fewer than the {saved} that this run has done; "
            "it can only be made longer"
        )
    shapes = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        assembly.abstract_state,
        shardings,
    )
    try:
        state, values = checkpoints.restore(saved, shapes)
    except UsageError as damage:
        if not fall_back:
            raise
        print(f"{damage}; set aside")
        if checkpoints.discard_newest() is None:
            raise UsageError("there is no earlier checkpoint to fall back to; use a new --workdir") from None
        return _start(run, plan, assembly, checkpoints, mesh, fall_back)
    position = Position.from_json(values)
    for key, (old, new) in run.extended.items():
        print(f"{key}: {old or 'none'} before, {new or 'none'} from here on")
        if key == "train.duration":
            print(f"the learning rate follows the longer schedule from step {saved}")
    if (position.last_step, position.patience_epochs) != (plan.train.steps, plan.train.patience_epochs):
        # Taken further, now or by a start that was killed before it saved: patience begins anew.
        position.stopped_early, position.epochs_waited = False, 0
    return state, position


def _finish(
    run: RunDirectory,
    plan: Plan,
    job: Job,
    state: TrainState,
    position: Position,
    sources: dict[str, Source | StreamedSource],
    checkpoints: Checkpoints,
    journal: Journal,
) -> dict[str, Any]:
    """Measures the chosen weights on the test split, once, and writes the figure and the result."""
    if position.best_step != position.step:
        state, _ = checkpoints.restore(position.best_step, state)
    test = {}
    if "test" in sources:
        started = time.monotonic()
        batches = evaluation_stream(sources["test"], plan.train.eval_batch_size)
        test = evaluate(job.eval_step, state.chosen_variables, batches, job.place).means()
        position.seconds["eval"] += time.monotonic() - started
        journal.write(position.step, position.step / job.steps_per_epoch, "test", test)
    journal.flush()
    result = {
        "test": test,
        "validation": {plan.train.monitor: position.best_value} if plan.data.validation else {},
        "weights": "ema" if state.ema else "model",
        "params": count_params(state.variables),
        "steps": position.step,
        "best_epoch": position.best_epoch,
        "stopped_early": position.stopped_early,
        "seconds": {name: round(value, 3) for name, value in position.seconds.items()},
        "config_hash": run.config_hash,
        "data": {part: {"split": s.name, "sha256": s.fingerprint["sha256"]} for part, s in sources.items()},
        **({"extensions": run.extensions} if run.extensions else {}),
    }
    records = read_jsonl(run.path / "metrics.jsonl")
    if records:
        best = position.best_epoch if plan.data.validation else 0
        title = f"{plan.model.name} on {plan.data.name}"
        draw_history(records, run.path / "figures" / "history.png", best, title, plan.train.label_smoothing)
    run.write_result(result)
    _report(result, run.path)
    return result


def _announce(plan: Plan, assembly: Assembly, position: Position) -> None:
    t = plan.train
    devices = f"{t.devices} {jax.devices()[0].device_kind} device{'s' if t.devices > 1 else ''}"
    print(
        f"{plan.model.name} with {count_params(assembly.abstract_state.variables):,} parameters on {plan.data.name}: "
        f"{plan.data.train_count:,} images to train, {plan.data.validation_count:,} to validate, "
        f"{plan.data.test_count:,} to test; {t.steps:,} steps of {t.batch_size} on {devices}"
    )
    if position.step:
        print(f"going on from step {position.step:,}")
    print("compiling (the next start finds it done)", flush=True)


def _show_finished(result: dict[str, Any], path: Path) -> dict[str, Any]:
    _report(result, path, "this run is finished; nothing was trained")
    print("to take it further: the same command with a longer --config.train.duration")
    return result


def _report(result: dict[str, Any], path: Path, remark: str = "") -> None:
    if remark:
        print(remark)
    test = result["test"]
    if test:
        right = round(test["top1"] * test["count"])
        print(
            f"test accuracy {test['top1']:.2%} ({right:,} of {test['count']:,} images), "
            f"top-5 {test['top5']:.2%}, loss {test['loss']:.4f}"
        )
    seconds = result["seconds"]
    early = ", stopped early" if result["stopped_early"] else ""
    chosen = (
        f"weights of epoch {result['best_epoch']}, the best on validation" if result["validation"] else "last weights"
    )
    print(f"{chosen}; {result['steps']:,} steps{early}; {seconds['train']:.1f} s of training")
    print(f"run: {path}", flush=True)


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
    parser.add_argument("--profile", metavar="FIRST:LAST", help="write a profile of these steps into the run's folder")
    return parser


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
    if options.dry_run:
        plan = resolve(config, devices=hardware.device_count(), overrides=overrides)
        assembly = assemble(plan, overrides)
        print_plan(plan, assembly.abstract_state.params, assembly.schedule)
        return 0
    if not options.workdir:
        raise UsageError("--workdir is missing; name the run's folder, such as --workdir=runs/digits")
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
