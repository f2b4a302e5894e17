"""The training loop: steps, epochs, evaluation, best weights, hooks, early stopping, saving, stopping and pausing.

The loop never waits for the step that it has just dispatched: it reads the sums of step k-1 while step k runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TypeAlias

import jax
import numpy as np

from jaxvit.devices.hardware import Profiler
from jaxvit.errors import RunFailedError, StoppedError
from jaxvit.ops.trees import Variables
from jaxvit.training.checkpoint import Checkpoints
from jaxvit.training.hooks import Hooks
from jaxvit.training.journal import Journal
from jaxvit.training.metrics import COUNTS, MONITORS, Totals
from jaxvit.training.progress import Progress
from jaxvit.training.state import TrainState
from jaxvit.training.stopping import StopRequest

Batch: TypeAlias = "Mapping[str, jax.Array | np.ndarray]"
# Sums of the steps of a call: scalars of one step, arrays or lists of several.
CallSums: TypeAlias = "Mapping[str, jax.Array | list[jax.Array]]"


@dataclass(frozen=True)
class Program:
    """The compiled functions of a run, and its lengths in steps: everything that the loop needs.

    Attributes:
      train_step: compiled ``(state, input of a call, count) -> (state, sums)``, which runs `count` steps and may donate
        its state. Sums are scalars, or one number per step of the call.
      eval_step: compiled ``(variables, batch) -> sums``.
      train_batch: (step, count) -> the input, on the devices, of a call that runs `count` steps from `step` on.
      validation: returns a new iterator over the batches of the split; None = no such split.
      test: the same for the test split.
      place: moves a host batch of either to the devices.
      learning_rate: learning rate of a step, as a number on the host.
      steps: steps of the run.
      steps_per_epoch: steps of an epoch.
      checkpoint_every: steps between checkpoints.
      log_every: steps between records of training metrics.
      part: (state, i) -> state of the i-th run, if several are trained together. Then states, variables and sums have
        a leading axis of runs.
      patience_epochs: epochs without improvement before early stopping; 0 = off.
      monitor: validation metric that chooses the best weights.
      explain: (state before a step, its batch) -> which module made the step non-finite; None = off.
      profiler: writes a profile of some steps; its creator closes it.
      steps_per_call: most steps of one call.
    """

    train_step: Callable[[TrainState, Batch, int], tuple[TrainState, CallSums]]
    eval_step: Callable[[Variables, Batch], Mapping[str, jax.Array]]
    train_batch: Callable[[int, int], Batch]
    validation: Callable[[], Iterator[Batch]] | None
    test: Callable[[], Iterator[Batch]] | None
    place: Callable[[Batch], Batch]
    learning_rate: Callable[[int], float]
    steps: int
    steps_per_epoch: int
    checkpoint_every: int
    log_every: int
    part: Callable[[TrainState, int], TrainState] = lambda state, i: state
    patience_epochs: int = 0
    monitor: str = "top1"
    explain: Callable[[TrainState, Batch], str] | None = None
    profiler: Profiler | None = None
    steps_per_call: int = 1

    def call_length(self, step: int) -> int:
        """Returns the number of steps of the call at a step: calls end with epochs, saves and the run."""
        left = self.steps_per_epoch - step % self.steps_per_epoch
        unsaved = self.checkpoint_every - step % self.checkpoint_every
        return min(self.steps_per_call, left, unsaved, self.steps - step)


@dataclass
class Position:
    """The progress of a run besides its TrainState; saved in each checkpoint, so that a resumed run continues exactly.

    Attributes:
      step: number of steps done.
      epoch_totals: sums of the epoch so far.
      log_totals: sums since the last record of training metrics.
      best_step: step with the best weights; -1 = no epoch has ended yet.
      best_epoch: its epoch.
      best_value: its value of the monitored metric; NaN = none.
      epochs_waited: epochs since the best one.
      stopped_early: whether early stopping or a hook has ended the training.
      hooks_due: metrics for hooks that have not all been called for this epoch.
      last_step: last step of the run as planned when this was saved.
      patience_epochs: patience of the run as planned when this was saved.
      seconds: time spent, by activity.
    """

    step: int = 0
    epoch_totals: dict[str, float] = field(default_factory=dict)
    log_totals: dict[str, float] = field(default_factory=dict)
    best_step: int = -1
    best_epoch: int = 0
    best_value: float = math.nan
    epochs_waited: int = 0
    stopped_early: bool = False
    hooks_due: dict[str, object] = field(default_factory=dict)
    last_step: int = 0
    patience_epochs: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"compile": 0.0, "train": 0.0, "eval": 0.0, "save": 0.0})

    def to_json(self) -> dict[str, object]:
        """Returns the fields as JSON values; NaN becomes None."""
        values: dict[str, object] = asdict(self)
        values["best_value"] = None if math.isnan(self.best_value) else self.best_value
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> Position:
        make: Callable[..., Position] = cls
        """Inverse of `to_json`."""
        best = values["best_value"]
        return make(**{**values, "best_value": math.nan if best is None else best})


class RunTracker:
    """Tracks one run while it trains: sums, metrics, best weights, hooks, checkpoints.

    Args:
      program: program of the run.
      position: progress of the run; the tracker updates it.
      checkpoints: where it saves.
      journal: where it writes metrics.
      progress: where it shows progress.
      hooks: functions called at the end of each epoch; None = none.
      label: start of its lines on the screen, if several runs are trained together.
    """

    def __init__(
        self,
        program: Program,
        position: Position,
        *,
        checkpoints: Checkpoints,
        journal: Journal,
        progress: Progress,
        hooks: Hooks | None = None,
        label: str = "",
    ):
        self._program, self.position, self.checkpoints = program, position, checkpoints
        self._journal, self._progress, self._label = journal, progress, label
        self._hooks = hooks
        self._epoch, self._log = Totals(position.epoch_totals), Totals(position.log_totals)

    @property
    def done(self) -> bool:
        """Whether the run has stopped early or done all steps."""
        return self.position.stopped_early or self.position.step >= self._program.steps

    def book(
        self, step: int, values: Mapping[str, float], seconds: float, before: TrainState | None, batch: Batch
    ) -> None:
        """Adds the sums of a step, and writes and shows metrics when they are due.

        Args:
          step: number of steps done, including this one.
          values: sums of the step.
          seconds: duration of the step.
          before: state before the step, to explain a failure; None = not kept.
          batch: input of the step, to explain a failure.

        Raises:
          RunFailedError: a sum is not finite.
        """
        if not all(math.isfinite(value) for value in values.values()):
            raise _not_finite(self._program, step, values, before, batch, self.checkpoints, self._label)
        self._epoch.add(values)
        self._log.add(values)
        if step % self._program.log_every == 0:
            self._write_steps(step)
            self._log.values.clear()
        self._progress.step(step, values, self._epoch.means(), seconds)

    def _write_steps(self, step: int) -> None:
        rate = {"learning_rate": float(self._program.learning_rate(step - 1))}
        self._journal.write(step, step / self._program.steps_per_epoch, "steps", self._log.means() | rate)

    def end_epoch(self, evaluated: list[Mapping[str, float]]) -> bool:
        """Writes the metrics of an epoch and updates the best; returns whether this state must be saved.

        Args:
          evaluated: validation metrics of the raw weights and, if kept, of the EMA weights; the last one decides. Empty
            without validation.
        """
        program, position = self._program, self.position
        step, epoch = position.step, position.step / program.steps_per_epoch
        train = self._epoch.means()
        self._journal.write(step, epoch, "train", train)
        if step % program.steps_per_epoch == 0:  # a run that ends inside an epoch may be extended
            self._epoch.values.clear()
        if not evaluated:
            position.best_step, position.best_epoch = step, math.ceil(epoch)
            self._progress.epoch(step, train, {}, label=self._label)
            self._note_for_hooks(train, [])
            return False
        for split, means in zip(("validation", "validation_ema"), evaluated, strict=False):
            self._journal.write(step, epoch, split, means)
        value = evaluated[-1][program.monitor]
        is_best = math.isnan(position.best_value) or (
            value != position.best_value and MONITORS[program.monitor](value, position.best_value) == value
        )
        if is_best:
            position.best_step, position.best_epoch, position.best_value = step, math.ceil(epoch), value
            position.epochs_waited = 0
        else:
            position.epochs_waited += 1
        self._progress.epoch(step, train, evaluated[-1], "best" if is_best else "", label=self._label)
        if program.patience_epochs and position.epochs_waited >= program.patience_epochs:
            position.stopped_early = True
            self._progress.say(
                f"{self._label}stopped early: no better validation {program.monitor} for {position.epochs_waited} "
                f"epochs; the best is {position.best_value:.4f} of epoch {position.best_epoch}"
            )
        self._note_for_hooks(train, evaluated)
        return is_best

    def _note_for_hooks(self, train: Mapping[str, float], evaluated: Sequence[Mapping[str, float]]) -> None:
        position = self.position
        if not self._hooks:
            return
        position.hooks_due = {
            "step": position.step,
            "epoch": round(position.step / self._program.steps_per_epoch, 4),
            "train": dict(train),
            **{name: {} for name in ("validation", "validation_ema")},
            **{name: dict(means) for name, means in zip(("validation", "validation_ema"), evaluated, strict=False)},
            "learning_rate": float(self._program.learning_rate(position.step - 1)),
            "is_best": position.best_step == position.step,
            "best_epoch": position.best_epoch,
        }

    def call_hooks(self, state: Callable[[], TrainState]) -> None:
        """Calls the hooks that are due, also from before a restart; a hook may end the training.

        Args:
          state: returns the state of the run.

        Raises:
          RunFailedError: a hook failed. All hooks of this epoch are due again.
        """
        position = self.position
        if self._hooks and position.hooks_due:
            reason = self._hooks(state(), position.hooks_due)
            if reason:
                position.stopped_early = True
                self._progress.say(f"{self._label}stopped early: {reason}")
        position.hooks_due = {}

    def save(self, state: TrainState) -> None:
        """Starts to save; writes all metrics so far to disk first."""
        position = self.position
        position.last_step, position.patience_epochs = self._program.steps, self._program.patience_epochs
        position.epoch_totals, position.log_totals = dict(self._epoch.values), dict(self._log.values)
        self._journal.flush()
        self.checkpoints.save(state, position.to_json(), position.step, position.best_step)

    def close(self) -> None:
        """Writes the remaining metrics and waits for the last save."""
        if self._log.values:
            # After the last checkpoint: a run that is extended continues with these totals.
            self._write_steps(self.position.step)
        self.checkpoints.wait()


def fit(
    program: Program, state: TrainState, trackers: Sequence[RunTracker], *, stop: StopRequest, until: int | None = None
) -> TrainState:
    """Trains to the end, to an early stop, or until a request to stop.

    Args:
      program: program of the runs.
      state: state of one run, or the stacked states of several runs.
      trackers: tracker of each run. All runs that are not done are at the same step.
      stop: request to stop or pause.
      until: step before the last one where the training ends too, with a save; None = the last step.

    Returns:
      The state after the last step. The newest checkpoint of each run is its part of this state. The exception is a run
      that stopped early while others continued: its checkpoint is of the step where it stopped.

    Raises:
      StoppedError: a request to stop; everything is saved.
      RunFailedError: a sum is not finite, or saving fails; or a hook failed, after everything was saved.
    """
    for i, tracker in enumerate(trackers):
        tracker.call_hooks(lambda i=i: program.part(state, i))
    active = [(i, tracker) for i, tracker in enumerate(trackers) if not tracker.done]
    (step,) = {tracker.position.step for _, tracker in active} or {program.steps}
    last = program.steps if until is None else min(until, program.steps)
    clock = _Clock(stop)
    pending: list[tuple[int, int, CallSums, TrainState | None, Batch]] = []

    def lap(name: str) -> float:
        return clock.lap(name, [tracker for _, tracker in active])

    def settle(start: int, count: int, sums: CallSums, before: TrainState | None, batch: Batch) -> None:
        """Waits for the sums of a call that started at a step, and books them step by step."""
        host = {name: np.reshape(value, (-1, len(trackers))) for name, value in jax.device_get(sums).items()}
        for k in range(count):
            seconds = lap("train")
            for i, tracker in active:
                tracker.book(start + k + 1, {name: value[k, i] for name, value in host.items()}, seconds, before, batch)

    while active and step < last:
        count = min(program.call_length(step), last - step)
        batch = program.train_batch(step, count)
        before = state if program.explain else None
        if program.profiler:
            program.profiler.before(step, count)
        with jax.transfer_guard("disallow"):  # an implicit transfer would wait for the device
            state, sums = program.train_step(state, batch, count)
        pending.append((step, count, sums, before, batch))
        step += count
        if program.profiler:
            program.profiler.after(step, sums)
        epoch_end = step % program.steps_per_epoch == 0 or step == program.steps
        save = step % program.checkpoint_every == 0 or step == last or stop.save_is_due()
        # Checked once: a signal between two checks would save a state without the metrics of its last step.
        stopping = stop.check()
        holding = not stopping and stop.must_hold()
        pause = epoch_end or save or stopping or holding or program.explain
        for entry in pending if pause else pending[:-1]:
            settle(*entry)
        pending = [] if pause else pending[-1:]
        failure = None
        for _, tracker in active:
            tracker.position.step = step
        if holding:
            lap("train")
            stop.hold()
            stopping = stop.check()  # the sums of all steps have been added
        if epoch_end:
            lap("train")
            evaluated = _validate(program, state, len(trackers), stop)
            lap("eval")
            for i, tracker in active:
                save |= tracker.end_epoch(evaluated[i])
            failure = _call_hooks(program, state, active)
            lap("eval")
        # All runs, even if only one has a new best: so all resume from the same step.
        if save or stopping or failure or any(tracker.position.stopped_early for _, tracker in active):
            lap("train")
            for _, tracker in active:
                tracker.checkpoints.wait()  # if a save failed, none of the runs may save a later step
            for i, tracker in active:
                tracker.save(program.part(state, i))
            stop.note_save()
            lap("save")
        if stopping or failure:
            for _, tracker in active:
                tracker.checkpoints.wait()
            if failure:
                raise failure
            raise StoppedError(
                f"stopped at step {step} of {program.steps}; saved. The same command resumes from here", stopping
            )
        active = [(i, tracker) for i, tracker in active if not tracker.done]
    for tracker in trackers:
        tracker.close()
        clock.lap("save", [tracker])
    return state


def _call_hooks(program: Program, state: TrainState, active: Sequence[tuple[int, RunTracker]]) -> RunFailedError | None:
    """Calls the hooks of all runs; returns the first error, so that the state is saved before it is raised."""
    failure = None
    for i, tracker in active:
        try:
            tracker.call_hooks(lambda i=i: program.part(state, i))
        except RunFailedError as error:
            failure = failure or error
    return failure


def _validate(program: Program, state: TrainState, runs: int, stop: StopRequest) -> list[list[Mapping[str, float]]]:
    """Returns, per run, the validation metrics of the raw weights and, if kept, the EMA weights; [] without a split."""
    validation = program.validation
    if validation is None:
        return [[] for _ in range(runs)]

    def batches() -> Iterator[Batch]:
        for batch in validation():
            if stop.must_hold():
                stop.hold()
            yield batch

    variables = [state.variables, state.ema_variables] if state.ema else [state.variables]
    totals = [evaluate(program.eval_step, v, batches(), program.place, runs) for v in variables]
    return [[each[i].means() for each in totals] for i in range(runs)]


def evaluate(
    eval_step: Callable[[Variables, Batch], Mapping[str, jax.Array]],
    variables: Variables,
    batches: Iterable[Batch],
    place: Callable[[Batch], Batch],
    runs: int = 1,
) -> list[Totals]:
    """Evaluates on all batches. One batch is on the device while the next is gathered.

    Args:
      eval_step: compiled ``(variables, batch) -> sums``.
      variables: variables of the model, stacked for several runs.
      batches: batches on the host.
      place: moves a batch to the devices.
      runs: number of runs that are trained together.

    Returns:
      The totals of each run.
    """
    totals = [Totals() for _ in range(runs)]

    def add(sums: Mapping[str, jax.Array]) -> None:
        for name, value in jax.device_get(sums).items():
            for total, row in zip(totals, np.reshape(value, (runs, -1)), strict=True):
                total.add({name: row if name in COUNTS else row[0]})

    previous = None
    for batch in batches:
        sums = eval_step(variables, place(batch))
        if previous is not None:
            add(previous)
        previous = sums
    if previous is not None:
        add(previous)
    return totals


def _not_finite(
    program: Program,
    step: int,
    values: Mapping[str, float],
    before: TrainState | None,
    batch: Batch,
    checkpoints: Checkpoints,
    label: str,
) -> RunFailedError:
    what = next(name for name, value in values.items() if not math.isfinite(value))
    saved = checkpoints.latest_step()
    kept = f"the checkpoint of step {saved} is kept" if saved is not None else "nothing was saved yet"
    if program.explain and before is not None:
        hint = program.explain(before, batch)
    else:
        hint = "try a lower optim.peak_lr or optim.clip_norm=1.0; --debug_nans names the module"
    return RunFailedError(f"{label}{what} is not finite at step {step}; {kept}; {hint}")


class _Clock:
    """Adds the time since the last lap to the runs that it was spent on, in equal shares; pauses do not count."""

    def __init__(self, stop: StopRequest) -> None:
        self._stop = stop
        self._mark = self._now()

    def _now(self) -> float:
        return time.monotonic() - self._stop.held_seconds

    def lap(self, name: str, trackers: Sequence[RunTracker]) -> float:
        """Adds the time to `seconds[name]` of each run and returns the share."""
        now = self._now()
        share, self._mark = (now - self._mark) / len(trackers), now
        for tracker in trackers:
            tracker.position.seconds[name] += share
        return share
