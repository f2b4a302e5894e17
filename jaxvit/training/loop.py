"""The loop around the step: epochs, evaluation, best weights, early stopping, saving, being stopped.

The loop never waits for the step that it has just started: sums of step k-1 are read while step k runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxvit.errors import RunFailedError, StoppedError
from jaxvit.training.checkpoint import Checkpoints
from jaxvit.training.journal import Journal
from jaxvit.training.metrics import MONITORS, Totals
from jaxvit.training.progress import Progress
from jaxvit.training.state import TrainState
from jaxvit.training.stopping import StopRequest

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """What to train, as functions; lengths in steps.

    Attributes:
      train_step: compiled ``(state, call's input, count) -> (state, sums)``, for `count` steps; it may consume its
        state. Sums are scalars, or one number for each step of the call.
      eval_step: compiled ``(variables, batch) -> sums``.
      train_batch: (step, count) -> the input, on the devices, of a call of `count` steps from `step` on.
      validation: fresh iterator over the validation batches; None = no validation.
      place: puts a host batch of the validation on the devices.
      learning_rate: of a step, as a number on the host.
      profile: first and last step of which a profile goes into `profile_directory`.
      explain: for a step that is not finite, names the module at fault, from the state before it and its batch.
    """

    train_step: Callable[[TrainState, Batch, int], tuple[TrainState, Mapping[str, jax.Array]]]
    eval_step: Callable[[Any, Batch], Mapping[str, jax.Array]]
    train_batch: Callable[[int, int], Batch]
    validation: Callable[[], Iterator[Batch]] | None
    place: Callable[[Batch], Batch]
    learning_rate: Callable[[int], float]
    steps: int
    steps_per_epoch: int
    checkpoint_every: int
    log_every: int
    patience_epochs: int = 0
    monitor: str = "top1"
    explain: Callable[[TrainState, Batch], str] | None = None
    profile: tuple[int, int] | None = None
    profile_directory: Path | None = None
    steps_per_call: int = 1

    def call_length(self, step: int) -> int:
        """Steps of the call that starts at a step: calls end where epochs, saves and the run do."""
        left = self.steps_per_epoch - step % self.steps_per_epoch
        unsaved = self.checkpoint_every - step % self.checkpoint_every
        return min(self.steps_per_call, left, unsaved, self.steps - step)


@dataclass
class Position:
    """Where a run is, besides its TrainState: what a checkpoint holds so that a resumed run misses nothing."""

    step: int = 0
    epoch_totals: dict[str, float] = field(default_factory=dict)
    log_totals: dict[str, float] = field(default_factory=dict)
    best_step: int = -1
    best_epoch: int = 0
    best_value: float = math.nan
    epochs_waited: int = 0
    stopped_early: bool = False
    last_step: int = 0  # of the run as it was planned when this was saved
    patience_epochs: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"compile": 0.0, "train": 0.0, "eval": 0.0, "save": 0.0})

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        return values | {"best_value": None if math.isnan(self.best_value) else self.best_value}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Position:
        best = values["best_value"]
        return cls(**{**values, "best_value": math.nan if best is None else best})


def fit(
    job: Job,
    state: TrainState,
    position: Position,
    *,
    checkpoints: Checkpoints,
    journal: Journal,
    progress: Progress,
    stop: StopRequest,
) -> TrainState:
    """Trains from `position` to the end, to an early stop, or until it is asked to stop.

    `position` is kept up to date. On return the newest checkpoint is the returned state.

    Raises:
      StoppedError: asked to stop; everything is saved.
      RunFailedError: not finite, or it cannot be saved.
    """
    epoch_totals, log_totals = Totals(position.epoch_totals), Totals(position.log_totals)
    clock = _Clock(position.seconds)

    def settle(start: int, count: int, sums: Mapping[str, jax.Array], before: TrainState | None, batch: Batch) -> None:
        """Reads the sums of a call that started at a step (waiting for it) and books them step by step."""
        host = {name: np.ravel(value) for name, value in jax.device_get(sums).items()}
        for i in range(count):
            book(start + i + 1, {name: value[i] for name, value in host.items()}, before, batch)

    def book(step: int, values: Mapping[str, Any], before: TrainState | None, batch: Batch) -> None:
        if not all(math.isfinite(value) for value in values.values()):
            raise _not_finite(job, step, values, before, batch, checkpoints)
        epoch_totals.add(values)
        log_totals.add(values)
        if step % job.log_every == 0:
            means = log_totals.means()
            journal.write(
                step, step / job.steps_per_epoch, "steps", means | {"learning_rate": float(job.learning_rate(step - 1))}
            )
            log_totals.values.clear()
        progress.step(step, values, epoch_totals.means(), clock.lap("train"))

    pending: list[tuple[int, int, Mapping[str, jax.Array], TrainState | None, Batch]] = []
    tracing = False
    while position.step < job.steps and not position.stopped_early:
        count = job.call_length(position.step)
        batch = job.train_batch(position.step, count)
        before = state if job.explain else None
        profiled = job.profile and position.step < job.profile[1]
        if profiled and position.step + count >= job.profile[0] and not tracing:
            jax.profiler.start_trace(job.profile_directory)
            tracing = True
        with jax.transfer_guard("disallow"):  # a step that moves data on the sly would wait for it
            state, sums = job.train_step(state, batch, count)
        pending.append((position.step, count, sums, before, batch))
        position.step += count
        if tracing and position.step >= job.profile[1]:
            jax.block_until_ready(sums)
            jax.profiler.stop_trace()
            tracing = False
        epoch_end = position.step % job.steps_per_epoch == 0 or position.step == job.steps
        save = position.step % job.checkpoint_every == 0 or position.step == job.steps
        # Read once: a signal between two looks would save a state without the metrics of its last step.
        stopping = stop.exit_code
        pause = epoch_end or save or stopping or job.explain
        for entry in pending if pause else pending[:-1]:
            settle(*entry)
        pending = [] if pause else pending[-1:]
        if epoch_end:
            save |= _end_of_epoch(job, state, position, epoch_totals, journal, progress, clock)
            if position.step % job.steps_per_epoch == 0:  # a run that ends inside an epoch may be taken further
                epoch_totals.values.clear()
        if save or stopping or position.stopped_early:
            position.last_step, position.patience_epochs = job.steps, job.patience_epochs
            position.epoch_totals, position.log_totals = dict(epoch_totals.values), dict(log_totals.values)
            journal.flush()
            clock.lap("train")
            checkpoints.save(state, position.to_json(), position.step, position.best_step)
            clock.lap("save")
        if stopping:
            checkpoints.wait()
            raise StoppedError(
                f"stopped at step {position.step} of {job.steps}; saved. The same command goes on from here",
                stopping,
            )
    checkpoints.wait()
    clock.lap("save")
    return state


def _end_of_epoch(
    job: Job,
    state: TrainState,
    position: Position,
    totals: Totals,
    journal: Journal,
    progress: Progress,
    clock: _Clock,
) -> bool:
    """Writes the epoch's metrics, evaluates, keeps track of the best; returns whether this state must be saved.

    Where an average of the weights is kept, both are evaluated and the average decides.
    """
    step, epoch = position.step, position.step / job.steps_per_epoch
    train = totals.means()
    journal.write(step, epoch, "train", train)
    clock.lap("train")
    if job.validation is None:
        position.best_step, position.best_epoch = step, math.ceil(epoch)
        progress.epoch(step, train, {})
        return False
    validation = evaluate(job.eval_step, state.variables, job.validation(), job.place).means()
    journal.write(step, epoch, "validation", validation)
    if state.ema:
        validation = evaluate(job.eval_step, state.ema_variables, job.validation(), job.place).means()
        journal.write(step, epoch, "validation_ema", validation)
    clock.lap("eval")
    value = validation[job.monitor]
    is_best = math.isnan(position.best_value) or (
        value != position.best_value and MONITORS[job.monitor](value, position.best_value) == value
    )
    if is_best:
        position.best_step, position.best_epoch, position.best_value = step, math.ceil(epoch), value
        position.epochs_waited = 0
    else:
        position.epochs_waited += 1
    progress.epoch(step, train, validation, "best" if is_best else "")
    if job.patience_epochs and position.epochs_waited >= job.patience_epochs:
        position.stopped_early = True
        progress.say(
            f"stopped early: no better validation {job.monitor} for {position.epochs_waited} epochs; "
            f"the best is {position.best_value:.4f} of epoch {position.best_epoch}"
        )
    return is_best


def evaluate(
    eval_step: Callable[[Any, Batch], Mapping[str, jax.Array]],
    variables: Any,
    batches: Iterable[Batch],
    place: Callable[[Batch], Batch],
) -> Totals:
    """Metrics over all batches. One batch is always in flight while the next is gathered."""
    totals = Totals()
    previous = None
    for batch in batches:
        sums = eval_step(variables, place(batch))
        if previous is not None:
            totals.add(jax.device_get(previous))
        previous = sums
    if previous is not None:
        totals.add(jax.device_get(previous))
    return totals


def _not_finite(
    job: Job,
    step: int,
    values: Mapping[str, float],
    before: TrainState | None,
    batch: Batch,
    checkpoints: Checkpoints,
) -> RunFailedError:
    what = next(name for name, value in values.items() if not math.isfinite(value))
    saved = checkpoints.latest_step()
    kept = f"the checkpoint of step {saved} is kept" if saved is not None else "nothing was saved yet"
    if job.explain and before is not None:
        hint = job.explain(before, batch)
    else:
        hint = "try a lower optim.peak_lr or optim.clip_norm=1.0; --debug_nans names the module"
    return RunFailedError(f"{what} is not finite at step {step}; {kept}; {hint}")


class _Clock:
    """Books the time since the last lap under a name."""

    def __init__(self, seconds: dict[str, float]):
        self._seconds = seconds
        self._mark = time.monotonic()

    def lap(self, name: str) -> float:
        now = time.monotonic()
        spent, self._mark = now - self._mark, now
        self._seconds[name] += spent
        return spent
