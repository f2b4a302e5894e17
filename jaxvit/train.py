"""`jaxvit train`: from a config to a run directory.

As a function: ``jaxvit.train(config, workdir)``.
"""

from __future__ import annotations

import contextlib
import sys
import time
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxvit import command_line
from jaxvit.assembly import Assembly, assemble
from jaxvit.config import KEYS
from jaxvit.data.batches import TrainOrder
from jaxvit.data.feed import ResidentFeed, StreamFeed, evaluation_stream
from jaxvit.data.sources import Dataset, Source, StreamedSource
from jaxvit.dry_run import print_plan
from jaxvit.errors import RunFailedError, UsageError
from jaxvit.figures.history import draw_history
from jaxvit.models.count import count_params
from jaxvit.plan import Plan, dataset_of, resolve
from jaxvit.run_directory import RunDirectory
from jaxvit.training import nans
from jaxvit.training.checkpoint import Checkpoints
from jaxvit.training.journal import Journal, open_writers, read_jsonl
from jaxvit.training.loop import Job, Position, evaluate, fit
from jaxvit.training.progress import Progress
from jaxvit.training.sharding import make_mesh, place_batch, place_call, replicated, split_batch
from jaxvit.training.state import TrainState
from jaxvit.training.step import make_train_call
from jaxvit.training.stopping import StopRequest

_EXAMPLES = """examples:
  jaxvit train --config=configs/digits.py --workdir=runs/digits
  jaxvit train --config=configs/digits.py --workdir=runs/digits            again: resumes, or shows the finished result
  jaxvit train --config=configs/digits.py --workdir=runs/wide --config.model.dim=128 --config.optim.peak_lr=5e-4
  jaxvit train --config=configs/digits.py --workdir=runs/digits --config.train.duration='80 epochs'    takes it on
  jaxvit train --config=configs/digits.py --workdir=runs/digits --dry_run

exit codes: 0 done, 2 a mistake in the command, 70 cannot go on, 75 stopped by SIGTERM, 130 by Ctrl-C (both saved)

config keys (with --config.key=value; besides, every attribute of the model as --config.model.ATTRIBUTE):
"""


def train(
    config: ConfigDict, workdir: str | Path, *, overrides: Iterable[str] = (), debug_nans: bool = False
) -> dict[str, Any]:
    """Trains as the config says, or goes on where the run in `workdir` stopped, and returns its result.

    Args:
      config: made by `jaxvit.config.base_config` or by a config file's ``get_config``.
      workdir: the run's folder, made when missing.
      overrides: keys set by hand; each must matter in this run.
      debug_nans: check every step at once and name the module where a number stops being finite. Slower.

    Returns:
      What result.json holds.

    Raises:
      UsageError, RunFailedError, StoppedError: see `jaxvit.errors`.
    """
    dataset = dataset_of(config)
    plan = resolve(config, devices=jax.device_count(), overrides=overrides, dataset=dataset)
    assembly = assemble(plan)
    run = RunDirectory(Path(workdir), config)
    try:
        if run.result is not None and not run.extended:
            _report(run.result, run.path, "this run is finished; nothing was trained")
            print("to take it further: the same command with a longer --config.train.duration")
            return run.result
        return _run(run, plan, assembly, dataset, debug_nans)
    except jax.errors.JaxRuntimeError as error:
        raise _explain_runtime_error(error, plan) from error
    finally:
        run.close()


def _run(run: RunDirectory, plan: Plan, assembly: Assembly, dataset: Dataset, debug_nans: bool) -> dict[str, Any]:
    mesh = make_mesh(plan.train.devices)
    sources = {
        part: dataset.read(split) for part in ("train", "validation", "test") if (split := getattr(plan.data, part))
    }
    with StopRequest() as stop, contextlib.closing(Checkpoints(run.path / "checkpoints")) as checkpoints:
        state, position = _start(run, plan, assembly, checkpoints, mesh)
        run.set_result_aside()
        run.write_config()
        run.write_environment({part: {"split": s.name, **s.notes, **s.fingerprint} for part, s in sources.items()})
        writers = open_writers(
            plan.train.writers,
            run.path,
            resume_step=position.step,
            run_id=f"{run.path.name}-{plan.config_hash}",
            config=run.config.to_dict(),
        )
        job = _make_job(plan, assembly, sources, state, mesh, position, debug_nans)
        with contextlib.closing(Journal(writers)) as journal:
            _announce(plan, assembly, position, stop)
            with Progress(plan.train.steps, plan.train.steps_per_epoch, position.step) as progress:
                state = fit(
                    job, state, position, checkpoints=checkpoints, journal=journal, progress=progress, stop=stop
                )
            return _finish(run, plan, job, state, position, sources, checkpoints, journal)


def _start(
    run: RunDirectory, plan: Plan, assembly: Assembly, checkpoints: Checkpoints, mesh: Any
) -> tuple[TrainState, Position]:
    """The state and position to go on from: fresh, or the newest checkpoint's."""
    saved = checkpoints.latest_step()
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), assembly.abstract_state
    )
    if saved is None:
        return jax.jit(assembly.create_state, out_shardings=replicated(mesh))(), Position()
    if saved > plan.train.steps:
        raise UsageError(
            f"config.train.duration: {plan.train.steps} steps are fewer than the {saved} that this run has done; "
            "it can only be made longer"
        )
    state, values = checkpoints.restore(saved, shapes)
    position = Position.from_json(values)
    if run.extended:
        for key, (old, new) in run.extended.items():
            print(
                f"{key}: {old} before, {new} from here on; the learning rate follows the new schedule from step {saved}"
            )
        position.stopped_early, position.epochs_waited = False, 0
    return state, position


def _make_job(
    plan: Plan,
    assembly: Assembly,
    sources: dict[str, Source | StreamedSource],
    state: TrainState,
    mesh: Any,
    position: Position,
    debug_nans: bool,
) -> Job:
    """Compiles the two steps and ties them to the data."""
    started = time.monotonic()
    t = plan.train
    steps_per_call = 1 if debug_nans else t.steps_per_call
    feed = _make_feed(plan, assembly, sources["train"], mesh, steps_per_call)
    # The state before a step must outlive it when a step may have to be looked into.
    donated = () if debug_nans else (0,)
    call = feed(position.step, 1) if position.step < t.steps else feed(0, 1)
    in_one_go = steps_per_call > 1 and jax.default_backend() != "cpu"
    program = _train_program(assembly.train_step(), feed.pick, steps_per_call if in_one_go else 1)
    program = jax.jit(program, donate_argnums=donated).lower(state, feed.data, call, np.int32(0)).compile()
    eval_step = jax.jit(assembly.eval_step())
    if "validation" in sources or "test" in sources:
        eval_batch = _abstract_batch(sources["train"], t.eval_batch_size, mesh)
        eval_step = eval_step.lower(state.variables, eval_batch).compile()
    position.seconds["compile"] += time.monotonic() - started

    def train_step(state: TrainState, call: Any, count: int) -> Any:
        if in_one_go:
            return program(state, feed.data, call, np.int32(count))
        each = []
        for i in range(count):
            state, sums = program(state, feed.data, call, np.int32(i))
            each.append(sums)
        return state, {name: [sums[name] for sums in each] for name in each[0]}

    def validation() -> Any:
        return evaluation_stream(sources["validation"], t.eval_batch_size)

    def explain(before: TrainState, failed: Any) -> str:
        return nans.explain(assembly.loss(), before, feed.pick(feed.data, failed, 0))

    return Job(
        train_step=train_step,
        eval_step=eval_step,
        train_batch=feed,
        validation=validation if "validation" in sources else None,
        place=lambda host: place_batch(mesh, host),
        learning_rate=assembly.schedule,
        steps=t.steps,
        steps_per_epoch=t.steps_per_epoch,
        checkpoint_every=t.checkpoint_every,
        log_every=t.log_every,
        patience_epochs=t.patience_epochs,
        monitor=t.monitor,
        explain=explain if debug_nans else None,
        steps_per_call=steps_per_call,
    )


def _train_program(step: Any, pick: Any, steps_per_call: int) -> Any:
    """What is compiled: several steps, or the one of a given place in the call."""
    if steps_per_call > 1:
        return make_train_call(step, pick, steps_per_call)
    return lambda state, data, call, i: step(state, pick(data, call, i))


def _make_feed(
    plan: Plan, assembly: Assembly, source: Source | StreamedSource, mesh: Any, steps_per_call: int
) -> ResidentFeed | StreamFeed:
    t = plan.train
    order = TrainOrder(len(source), t.batch_size, plan.seed, t.last_batch, plan.augment.repeats)

    def put_call(call: Any) -> Any:
        return place_call(mesh, call)

    if t.feed == "resident":
        if not isinstance(source, Source):
            raise UsageError(
                f"config.data.feed='resident': {source.name} is too large to be kept decoded; set it to 'stream'"
            )
        return ResidentFeed(
            source,
            order,
            t.batch_size,
            steps_per_call,
            put_split=lambda arrays: jax.device_put(dict(arrays), replicated(mesh)),
            put_call=put_call,
        )
    return StreamFeed(
        source,
        order,
        t.batch_size,
        steps_per_call,
        t.steps,
        put_call=put_call,
        host_transform=assembly.host_transform(),
        shard=(jax.process_index(), jax.process_count()),
    )


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
        test = evaluate(job.eval_step, state.variables, batches, job.place).means()
        position.seconds["eval"] += time.monotonic() - started
        journal.write(position.step, position.step / job.steps_per_epoch, "test", test)
    journal.flush()
    result = {
        "test": test,
        "validation": {plan.train.monitor: position.best_value} if plan.data.validation else {},
        "params": count_params(state.variables),
        "steps": position.step,
        "best_epoch": position.best_epoch,
        "stopped_early": position.stopped_early,
        "seconds": {name: round(value, 3) for name, value in position.seconds.items()},
        "config_hash": plan.config_hash,
    }
    records = read_jsonl(run.path / "metrics.jsonl")
    if records:
        best = position.best_epoch if plan.data.validation else 0
        title = f"{plan.model.name} on {plan.data.name}"
        draw_history(records, run.path / "figures" / "history.png", best, title)
    run.write_result(result)
    _report(result, run.path)
    return result


def _abstract_batch(source: Source | StreamedSource, size: int, mesh: Any) -> Any:
    shapes = {
        "image": ((size, *source.image_shape), np.uint8),
        "label": ((size,), np.int32),
        "mask": ((size,), np.float32),
    }
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=split_batch(mesh)) for name, (shape, dtype) in shapes.items()
    }


def _announce(plan: Plan, assembly: Assembly, position: Position, stop: StopRequest) -> None:
    t = plan.train
    if stop.exit_code:
        return
    devices = f"{t.devices} {jax.devices()[0].device_kind} device{'s' if t.devices > 1 else ''}"
    print(
        f"{plan.model.name} with {count_params(assembly.abstract_state.variables):,} parameters on {plan.data.name}: "
        f"{plan.data.train_count:,} images to train, {plan.data.validation_count:,} to validate, "
        f"{plan.data.test_count:,} to test; {t.steps:,} steps of {t.batch_size} on {devices}"
    )
    if position.step:
        print(f"going on from step {position.step:,}", flush=True)


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


def _explain_runtime_error(error: Exception, plan: Plan) -> RunFailedError:
    line = str(error).splitlines()[0][:200]
    if "RESOURCE_EXHAUSTED" in line or "out of memory" in line.lower():
        return RunFailedError(
            f"out of device memory ({line}); lower config.train.batch_size={plan.train.batch_size} or the model's size"
        )
    return RunFailedError(f"the device failed: {line}")


def _parser() -> command_line.Parser:
    keys = "\n".join(f"  {path:<22} {key.default!r:<26} {key.meaning}" for path, key in KEYS.items())
    parser = command_line.Parser("train", "Trains a model as a config says, into a run directory.", _EXAMPLES + keys)
    parser.add_argument("--config", metavar="FILE[:VARIANT]", help="config file, such as configs/digits.py:vit")
    parser.add_argument("--workdir", metavar="DIR", help="the run's folder; made when missing")
    parser.add_argument(
        "--dry_run", action="store_true", help="print the plan, the parameters and the learning rate; stop"
    )
    parser.add_argument("--debug_nans", action="store_true", help="name the module where a number stops being finite")
    return parser


def main(argv: list[str]) -> int:
    """The verb."""
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    if not options.config:
        raise UsageError("--config is missing; such as --config=configs/digits.py")
    config, overrides, unknown = command_line.parse_config_arguments(options.config, rest)
    parser.refuse_unknown(unknown)
    if options.dry_run:
        plan = resolve(config, devices=jax.device_count(), overrides=overrides)
        assembly = assemble(plan)
        print_plan(plan, assembly.abstract_state.params, assembly.schedule)
        return 0
    if not options.workdir:
        raise UsageError("--workdir is missing; name the run's folder, such as --workdir=runs/digits")
    train(config, options.workdir, overrides=overrides, debug_nans=options.debug_nans)
    return 0


class _Verb(types.ModuleType):
    """Lets `jaxvit.train` be both this module and the function: ``jaxvit.train(config, workdir)``."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return train(*args, **kwargs)


sys.modules[__name__].__class__ = _Verb

if __name__ == "__main__":
    command_line.run(main)
