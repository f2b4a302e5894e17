"""The loop around the step: epochs, evaluation, best weights, hooks, early stopping, saving, being stopped or held.

The loop never waits for the step that it has just started: sums of step k-1 are read while step k runs.
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
    """What to train, as functions; lengths in steps.

    Attributes:
      train_step: compiled ``(state, call's input, count) -> (state, sums)``, for `count` steps; it may consume its
        state. Sums are scalars, or one number for each step of the call.
      eval_step: compiled ``(variables, batch) -> sums``.
      part: (state, i) -> the state of the i-th run, where several are trained together: then sums and variables have
        one more axis, the runs'. One run's state is itself.
      train_batch: (step, count) -> the input, on the devices, of a call of `count` steps from `step` on.
      validation, test: fresh iterator over the batches of the split; None = there is none.
      place: puts a host batch of either on the devices.
      learning_rate: of a step, as a number on the host.
      profiler: writes a profile of some steps; whoever made it closes it.
      explain: for a step that is not finite, names the module at fault, from the state before it and its batch.
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
    hooks_due: dict[str, object] = field(default_factory=dict)  # metrics of this epoch's end, until all hooks had them
    last_step: int = 0  # of the run as it was planned when this was saved
    patience_epochs: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"compile": 0.0, "train": 0.0, "eval": 0.0, "save": 0.0})

    def to_json(self) -> dict[str, object]:
        values: dict[str, object] = asdict(self)
        values["best_value"] = None if math.isnan(self.best_value) else self.best_value
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> Position:
        make: Callable[..., Position] = cls
        best = values["best_value"]
        return make(**{**values, "best_value": math.nan if best is None else best})


class RunTracker:
    """The books of one run while it trains: totals, metrics, the best so far, what is saved.

    Args:
      program: what is trained.
      position: where the run is; kept up to date.
      checkpoints, journal, progress: where it saves, writes and shows itself.
      hooks: what is called at the end of each epoch; None = nothing.
      label: what its lines on the screen begin with, where several runs are trained together.
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
        return self.position.stopped_early or self.position.step >= self._program.steps

    def book(
        self, step: int, values: Mapping[str, float], seconds: float, before: TrainState | None, batch: Batch
    ) -> None:
        """Takes a step's sums, and the seconds that it took.

        Raises:
          RunFailedError: they are not finite.
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
        """Writes the epoch's metrics and keeps track of the best; returns whether this state must be saved.

        `evaluated` holds the validation of the weights and, where one is kept, of their average, which then decides.
        """
        program, position = self._program, self.position
        step, epoch = position.step, position.step / program.steps_per_epoch
        train = self._epoch.means()
        self._journal.write(step, epoch, "train", train)
        if step % program.steps_per_epoch == 0:  # a run that ends inside an epoch may be taken further
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
        """Calls the hooks that an end of an epoch has to call, one before this start too; one may end the training.

        Raises:
          RunFailedError: one failed. They are all due again.
        """
        position = self.position
        if self._hooks and position.hooks_due:
            reason = self._hooks(state(), position.hooks_due)
            if reason:
                position.stopped_early = True
                self._progress.say(f"{self._label}stopped early: {reason}")
        position.hooks_due = {}

    def save(self, state: TrainState) -> None:
        """Starts to save; what has been written so far is on disk first."""
        position = self.position
        position.last_step, position.patience_epochs = self._program.steps, self._program.patience_epochs
        position.epoch_totals, position.log_totals = dict(self._epoch.values), dict(self._log.values)
        self._journal.flush()
        self.checkpoints.save(state, position.to_json(), position.step, position.best_step)

    def close(self) -> None:
        """At the end: waits for what is being saved."""
        if self._log.values:
            # Not in the checkpoint that was saved: a run that is taken further goes on with these totals.
            self._write_steps(self.position.step)
        self.checkpoints.wait()


def fit(
    program: Program, state: TrainState, trackers: Sequence[RunTracker], *, stop: StopRequest, until: int | None = None
) -> TrainState:
    """Trains to the end, to an early stop, or until it is asked to stop.

    Args:
      program: what to train.
      state: of one run, or of several that are trained together.
      trackers: the books of each, kept up to date; those that are not done are at the same step. On return the newest
        checkpoint of each is its part of the returned state; but of one that stopped early, while others went on, it
        is of the step where it stopped, and its part of the state has gone on.
      stop: asks to stop.
      until: a step before the last one where it ends too, saved as if it had been asked to stop there.

    Raises:
      StoppedError: asked to stop; everything is saved.
      RunFailedError: not finite, or it cannot be saved, or a hook failed; in that case everything is saved.
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
        """Reads the sums of a call that started at a step (waiting for it) and books them step by step."""
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
        with jax.transfer_guard("disallow"):  # a step that moves data on the sly would wait for it
            state, sums = program.train_step(state, batch, count)
        pending.append((step, count, sums, before, batch))
        step += count
        if program.profiler:
            program.profiler.after(step, sums)
        epoch_end = step % program.steps_per_epoch == 0 or step == program.steps
        save = step % program.checkpoint_every == 0 or step == last or stop.save_is_due()
        # Read once: a signal between two looks would save a state without the metrics of its last step.
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
            stopping = stop.check()  # all steps are booked, so this look may differ from the one before
        if epoch_end:
            lap("train")
            evaluated = _validate(program, state, len(trackers), stop)
            lap("eval")
            for i, tracker in active:
                save |= tracker.end_epoch(evaluated[i])
            failure = _call_hooks(program, state, active)
            lap("eval")
        # All of them, even if it is the best of one only: then a resumed start finds them at the same step.
        if save or stopping or failure or any(tracker.position.stopped_early for _, tracker in active):
            lap("train")
            for _, tracker in active:
                tracker.checkpoints.wait()  # one whose last save failed must not fall further behind the others
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
                f"stopped at step {step} of {program.steps}; saved. The same command goes on from here", stopping
            )
        active = [(i, tracker) for i, tracker in active if not tracker.done]
    for tracker in trackers:
        tracker.close()
        clock.lap("save", [tracker])
    return state


def _call_hooks(program: Program, state: TrainState, active: Sequence[tuple[int, RunTracker]]) -> RunFailedError | None:
    """Calls the hooks of all runs; returns the first error, for the state to be saved before it is raised."""
    failure = None
    for i, tracker in active:
        try:
            tracker.call_hooks(lambda i=i: program.part(state, i))
        except RunFailedError as error:
            failure = failure or error
    return failure


def _validate(program: Program, state: TrainState, runs: int, stop: StopRequest) -> list[list[Mapping[str, float]]]:
    """For each run the validation of its weights and, where one is kept, of their average; [] without a split."""
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
    """Metrics over all batches, of each run. One batch is always in flight while the next is gathered."""
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
    """Books the time since the last lap, in equal shares, under a name of the runs that it was spent on.

    The time for which the work was held counts nowhere.
    """

    def __init__(self, stop: StopRequest) -> None:
        self._stop = stop
        self._mark = self._now()

    def _now(self) -> float:
        return time.monotonic() - self._stop.held_seconds

    def lap(self, name: str, trackers: Sequence[RunTracker]) -> float:
        """Returns the share of each."""
        now = self._now()
        share, self._mark = (now - self._mark) / len(trackers), now
        for tracker in trackers:
            tracker.position.seconds[name] += share
        return share
