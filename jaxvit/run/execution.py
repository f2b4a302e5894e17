"""Executes one run: from the state of its folder to its result.

`execute` restores the newest checkpoint, if any, trains, evaluates the best weights on the test split and writes the
result. The steps before the training are separate functions, which `jaxvit.run.seeds` uses for several runs.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import cast

import jax
from jax.sharding import Mesh

from jaxvit.config.plan_types import Plan
from jaxvit.data.ahead import ending_processes
from jaxvit.data.dataset import Dataset
from jaxvit.data.parts import Source, StreamedSource
from jaxvit.devices import processes
from jaxvit.devices.sharding import make_mesh, shard_state
from jaxvit.errors import (
    DamagedCheckpointError,
    StoppedError,
    UsageError,
    describe_system_error,
    find_system_error,
    first_line,
)
from jaxvit.models.count import count_params
from jaxvit.run.assembly import Assembly
from jaxvit.run.folder import RunDirectory, checkpoint_folder
from jaxvit.run.messages import print_result, print_start
from jaxvit.run.program import StartOptions, make_program
from jaxvit.run.result_types import Metrics, Result, Split
from jaxvit.training.checkpoint import Checkpoints
from jaxvit.training.hooks import Hooks
from jaxvit.training.journal import Journal, open_writers, read_jsonl
from jaxvit.training.loop import Batch, Position, Program, RunTracker, evaluate, fit
from jaxvit.training.progress import Progress
from jaxvit.training.state import TrainState
from jaxvit.training.stopping import SAVES_THE_STEP, StopRequest

Sources = dict[str, Source | StreamedSource]


def execute(
    run: RunDirectory,
    plan: Plan,
    assembly: Assembly,
    dataset: Dataset,
    options: StartOptions,
    stop: StopRequest,
    whole: RunDirectory | None = None,
) -> Result:
    """Trains to the end, writes the result and returns it.

    Args:
      run: open folder of the run.
      plan: plan of the run.
      assembly: parts of the run.
      dataset: data set of the run.
      options: options of this start.
      stop: request to stop or pause.
      whole: folder of the run of several seeds or folds that this run belongs to; None = a single run.

    Raises:
      UsageError, RunFailedError, StoppedError: see `jaxvit.errors`.
    """
    stop.answer = SAVES_THE_STEP
    mesh = make_mesh(plan.train.devices, plan.train.fsdp)
    sources = read_sources(plan, dataset)
    processes.on_all(lambda: run.check_data(describe(sources), plan.data.class_names))
    folder = checkpoint_folder(run.path)
    with Checkpoints(folder, fall_back=options.fall_back) as checkpoints, ending_processes():
        state, position = processes.on_all(lambda: start(run, plan, assembly, sources, checkpoints, mesh, options))
        print_start(plan, assembly, position)
        program = make_program(plan, assembly, sources, state, mesh, position, options, run.path)
        with contextlib.closing(processes.on_all(lambda: begin(run, plan, position, sources, whole))) as journal:
            progress = Progress(plan.train.steps, plan.train.steps_per_epoch, position.step)
            with progress, contextlib.closing(program.profiler) if program.profiler else contextlib.nullcontext():
                hooks = Hooks(plan.train.hooks, seed=plan.seed, workdir=run.path)
                books = {"checkpoints": checkpoints, "journal": journal, "progress": progress, "hooks": hooks}
                tracker = RunTracker(program, position, **books)
                state = fit(program, state, [tracker], stop=stop)
            return _finish(run, plan, program, state, position, sources, checkpoints, journal, stop, options)


def read_sources(plan: Plan, dataset: Dataset) -> Sources:
    """Opens the splits of a plan: {'train': …, 'validation': …, 'test': …}, without those that it does not use."""
    splits = {part: split for part in ("train", "validation", "test") if (split := getattr(plan.data, part))}
    return processes.on_all(lambda: {part: dataset.read(split) for part, split in splits.items()})


def begin(
    run: RunDirectory, plan: Plan, position: Position, sources: Sources, whole: RunDirectory | None = None
) -> Journal:
    """Writes config, model and environment of this start, and opens the journal, truncated to the current step.

    Call it after all checks: it changes files of earlier starts. `whole` is as for `execute`.
    """
    run.note_extension(position.step)
    for directory in (whole, run) if whole else (run,):
        directory.set_result_aside()
        directory.write_config()
    run.write_model(plan)
    run.write_environment(describe(sources))
    writers = open_writers(
        plan.train.writers if run.writes else (),
        run.path,
        resume_step=position.step,
        name=f"{whole.path.name}/{run.path.name}" if whole else run.path.name,
        config=run.config.to_dict(),
        # Written after the last checkpoint: the test, and a last record of fewer steps.
        again=("test", "steps") if position.log_totals else ("test",),
    )
    return Journal(writers)


def start(
    run: RunDirectory,
    plan: Plan,
    assembly: Assembly,
    sources: Sources,
    checkpoints: Checkpoints,
    mesh: Mesh,
    options: StartOptions,
) -> tuple[TrainState, Position]:
    """Returns the state and position to continue from: new, or from the newest checkpoint."""
    steps = processes.broadcast_from_first(checkpoints.steps)
    shardings = shard_state(mesh, assembly.abstract_state)
    if not steps:
        if run.result is not None:
            raise UsageError(
                f"{run.path}: this run is finished, and its checkpoints are missing; put them back into "
                f"{checkpoint_folder(run.path)}, or use a new --workdir"
            )
        # Created with its sharding: no device holds a full copy at any time.
        make, measured = jax.jit(assembly.create_state, out_shardings=shardings), assembly.measure(sources["train"])
        return make(assembly.init_key(), measured, assembly.load()), Position()
    refuse_fewer_steps(plan, steps[-1])
    shapes = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        assembly.abstract_state,
        shardings,
    )
    state, values = _restore_newest(checkpoints, steps, shapes, options.fall_back)
    position = Position.from_json(values)
    if options.profile and options.profile[1] <= position.step:
        first, last = options.profile
        raise UsageError(f"--profile={first}:{last}: the run resumes from step {position.step}; name later steps")
    for key, (old, new) in run.extended.items():
        print(f"{key}: {old or 'none'} before, {new or 'none'} from here on")
        if key == "train.duration":
            length = "longer" if plan.train.steps > position.last_step else "shorter"
            print(f"the learning rate follows the {length} schedule from step {position.step}")
    lengths = (position.last_step, position.patience_epochs) != (plan.train.steps, plan.train.patience_epochs)
    if lengths or "train.hooks" in run.extended:
        # The run was extended, now or by a start that was killed before its first save: patience restarts.
        position.stopped_early, position.epochs_waited = False, 0
    return state, position


def refuse_fewer_steps(plan: Plan, done: int) -> None:
    """Raises UsageError if a run has already done more steps than the plan has."""
    if done > plan.train.steps:
        raise UsageError(
            f"config.train.duration: {plan.train.steps} steps are fewer than the {done} that this run has done; "
            "it can only be made longer"
        )


def _restore_newest(
    checkpoints: Checkpoints, steps: list[int], shapes: TrainState, fall_back: bool
) -> tuple[TrainState, dict[str, object]]:
    """Restores the newest checkpoint, or with `fall_back` the newest readable one.

    Damaged checkpoints are set aside after another one was read: if all seem damaged, the cause is something else.
    """
    damaged = []
    for step in reversed(steps):
        try:
            restored = checkpoints.restore(step, shapes)
        except DamagedCheckpointError as damage:
            if not fall_back:
                raise
            damaged.append(damage)
            continue
        for damage in damaged:
            print(f"{damage}; set aside")
        if damaged:
            checkpoints.set_aside_after(step)
        return restored
    raise UsageError(f"{damaged[0]}; no other checkpoint can be read either: use a new --workdir")


def _finish(
    run: RunDirectory,
    plan: Plan,
    program: Program,
    state: TrainState,
    position: Position,
    sources: dict[str, Source | StreamedSource],
    checkpoints: Checkpoints,
    journal: Journal,
    stop: StopRequest,
    options: StartOptions,
) -> Result:
    """Evaluates the chosen weights on the test split, once, and writes the figure and the result."""
    stop.answer = "stopping; the training is saved, and the same command resumes with the test"
    weights_of = "best" if plan.data.validation else "last"
    if position.best_step != position.step:
        state, weights_of = _restore_best(state, position, checkpoints, options.fall_back)

    def unless_stopped(batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            _stop_if_asked(stop)
            if stop.must_hold():
                stop.hold()
            yield batch

    test: dict[str, float] = {}
    if program.test:
        started = time.monotonic() - stop.held_seconds
        (totals,) = evaluate(program.eval_step, state.chosen_variables, unless_stopped(program.test()), program.place)
        test = totals.means()
        position.seconds["eval"] += time.monotonic() - stop.held_seconds - started
        journal.write(position.step, position.step / program.steps_per_epoch, "test", test)
    journal.flush()
    result: Result = {
        "test": cast(Metrics, test),
        "validation": {plan.train.monitor: position.best_value} if plan.data.validation else {},
        "weights": "ema" if state.ema else "model",
        "weights_of": weights_of,
        "params": count_params(state.variables),
        "steps": position.step,
        "best_epoch": position.best_epoch,
        "stopped_early": position.stopped_early,
        "seconds": {name: round(value, 3) for name, value in position.seconds.items()},
        "config_hash": run.config_hash,
        "data": describe(sources),
    }
    if run.extensions:
        result["extensions"] = run.extensions
    # All processes wait for the first, which draws and writes: a process that has left would count as lost.
    not_drawn = processes.on_first(lambda: _draw(run, plan, position))
    _stop_if_asked(stop)
    processes.on_first(lambda: run.write_result(result))
    if not_drawn:  # after the result: on a full disk, the error about the result comes first
        print(not_drawn, file=sys.stderr, flush=True)
    print_result(result, run.path)
    return result


def _draw(run: RunDirectory, plan: Plan, position: Position) -> str:
    """Draws the metrics. A failure must not lose the result, so it is returned as a warning; '' = no failure."""
    try:
        records = read_jsonl(run.path / "metrics.jsonl")
        if not records:
            return ""
        from jaxvit.figures.history import draw_history  # matplotlib would delay the first step

        best = position.best_epoch if plan.data.validation else 0
        title = f"{plan.model.name} on {plan.data.name}"
        draw_history(records, run.path / "figures" / "history.png", best, title, plan.train.label_smoothing)
        return ""
    except Exception as error:
        failed = find_system_error(error)
        reason = describe_system_error(failed) if failed else f"{type(error).__name__}: {first_line(error)[:200]}"
        return f"warning: figures/history.png is not drawn ({reason})"


def _restore_best(
    state: TrainState, position: Position, checkpoints: Checkpoints, fall_back: bool
) -> tuple[TrainState, str]:
    """Restores the best state, and returns it with 'best'; with `fall_back` and damage, the last state with 'last'.

    Deletes the arrays of `state` first: the memory may not suffice for two states.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    jax.tree.map(lambda x: x.delete(), state)
    remedy = f"it has the best weights; --fall_back uses those of step {position.step} instead"
    try:
        return checkpoints.restore(position.best_step, shapes, remedy)[0], "best"
    except DamagedCheckpointError as damage:
        if not fall_back:
            raise
        print(damage)
        return checkpoints.restore(position.step, shapes)[0], "last"


def _stop_if_asked(stop: StopRequest) -> None:
    code = stop.check()
    if code:
        raise StoppedError("stopped before the test was done; the training is saved. The same command tests it", code)


def describe(sources: Sources) -> dict[str, Split]:
    """Describes the splits: name, notes (after a run, on all damaged images that it met) and fingerprint of each."""
    return {part: {"split": s.name, **s.notes, **s.fingerprint} for part, s in sources.items()}
