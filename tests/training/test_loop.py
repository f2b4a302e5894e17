"""The loop with plain numbers instead of a model, so that every decision is predictable."""

import dataclasses
import io
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from jaxvit.errors import RunFailedError
from jaxvit.training.checkpoint import Checkpoints
from jaxvit.training.journal import Journal, JsonLines, read_jsonl
from jaxvit.training.loop import Position, Program, RunTracker, evaluate, fit
from jaxvit.training.progress import Progress
from jaxvit.training.state import create_state
from jaxvit.training.stopping import StopRequest

ZEROS = dict.fromkeys(("loss", "top1", "top5", "confident", "confident_right"), 0.0)


def make_program(validation_losses, *, steps_per_epoch=2, monitor="loss", patience=0, bad_step=None, epochs=None):
    """Training adds 1 to the one parameter; validation reads its loss from a list, by that parameter."""
    losses = jnp.asarray([9.0, *validation_losses], jnp.float32)

    def train_step(state, batch, count):
        params = {"w": state.params["w"] + 1}
        loss = jnp.where(state.step + 1 == (bad_step or -1), jnp.nan, batch["value"])
        sums = {**jax.tree.map(jnp.float32, ZEROS), "loss": loss, "count": jnp.float32(1), "steps": jnp.float32(1)}
        norms = dict.fromkeys(("gradient_norm", "parameter_norm", "update_norm"), jnp.float32(0))
        return state.replace(step=state.step + 1, params=params), sums | norms

    def eval_step(variables, batch):
        epoch = (variables["params"]["w"] / steps_per_epoch).astype(jnp.int32)
        sums = jax.tree.map(jnp.float32, ZEROS)
        return sums | {"loss": losses[epoch] * 4, "top1": 4 - losses[epoch], "count": jnp.float32(4)}

    return Program(
        train_step=jax.jit(train_step),
        eval_step=jax.jit(eval_step),
        train_batch=lambda step, count: jax.device_put({"value": np.float32(step)}),
        validation=lambda: iter([{}]),
        test=None,
        place=jax.device_put,
        learning_rate=lambda step: 0.1,
        steps=steps_per_epoch * (epochs or len(validation_losses)),
        steps_per_epoch=steps_per_epoch,
        checkpoint_every=10**6,
        log_every=1,
        patience_epochs=patience,
        monitor=monitor,
    )


def run(program, directory, position=None, stop=None):
    state = create_state(lambda key: {"params": {"w": jnp.float32(0)}}, optax.sgd(1.0), jax.random.key(0))
    position = position or Position()
    checkpoints = Checkpoints(directory / "checkpoints")
    journal = Journal([JsonLines(directory / "metrics.jsonl", position.step)])
    screen = io.StringIO()
    try:
        with Progress(program.steps, program.steps_per_epoch, console=Console(file=screen, width=200)) as progress:
            tracker = RunTracker(program, position, checkpoints=checkpoints, journal=journal, progress=progress)
            fit(program, state, [tracker], stop=stop or StopRequest())
    finally:
        journal.close()
        checkpoints.close()
    kept = sorted(int(p.name) for p in (directory / "checkpoints").iterdir() if p.name.isdigit())
    return position, kept, read_jsonl(directory / "metrics.jsonl"), screen.getvalue()


def test_the_best_of_loss_is_the_lowest_and_the_first_of_equals(tmp_path):
    position, kept, _, _ = run(make_program([3.0, 1.0, 2.0, 1.0]), tmp_path)
    assert (position.best_epoch, position.best_step, position.best_value) == (2, 4, 1.0)
    assert kept == [4, 8]


def test_the_best_of_accuracy_is_the_highest(tmp_path):
    position, _, _, _ = run(make_program([3.0, 1.0, 2.0], monitor="top1"), tmp_path)
    assert (position.best_epoch, position.best_value) == (2, 0.75)


def test_patience_counts_from_the_best(tmp_path):
    position, kept, records, screen = run(make_program([3.0, 1.0, 2.0, 2.0, 2.0, 0.5], patience=3), tmp_path)
    assert position.stopped_early and position.step == 10 and position.best_epoch == 2
    assert kept == [4, 10] and records[-1]["step"] == 10
    assert "stopped early" in screen and "of epoch 2" in screen


def test_a_last_epoch_that_is_cut_short_is_evaluated_too(tmp_path):
    program = make_program([3.0, 2.0, 1.0], steps_per_epoch=2)
    program = Program(**{**program.__dict__, "steps": 5})
    _, kept, records, _ = run(program, tmp_path)
    assert [r["step"] for r in records if r["split"] == "validation"] == [2, 4, 5]
    assert kept[-1] == 5


def test_training_means_are_of_the_epochs_own_steps(tmp_path):
    _, _, records, _ = run(make_program([3.0, 2.0]), tmp_path)
    assert [r["loss"] for r in records if r["split"] == "train"] == [0.5, 2.5]
    assert [r["loss"] for r in records if r["split"] == "steps"] == [0.0, 1.0, 2.0, 3.0]


def test_not_finite_names_the_very_step_and_saves_nothing_of_it(tmp_path):
    with pytest.raises(RunFailedError, match=r"loss is not finite at step 5; the checkpoint of step 4 is kept"):
        run(make_program([3.0, 2.0, 1.0], bad_step=5), tmp_path)
    assert read_jsonl(tmp_path / "metrics.jsonl")[-1]["step"] == 4


def test_not_finite_wins_over_a_stop_at_the_same_step(tmp_path):
    class AlreadyAsked(StopRequest):
        @staticmethod
        def check():
            return 75

    with pytest.raises(RunFailedError, match="loss is not finite at step 1; nothing was saved yet"):
        run(make_program([3.0, 2.0], bad_step=1), tmp_path, stop=AlreadyAsked())
    assert not [p for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]


def test_a_call_is_dispatched_before_the_sums_of_the_one_before_are_read(tmp_path):
    events = []

    class Sum:
        """A number on a device, which says when it is read."""

        def __init__(self, step, value):
            self.step, self.value = step, value

        def __array__(self, *arguments, **options):
            if self.step not in events:
                events.append(self.step)
            return np.float32(self.value)

    def train_step(state, batch, count):
        step = len([event for event in events if isinstance(event, str)]) + 1
        events.append(f"call {step}")
        values = {**ZEROS, "count": 1.0, "steps": 1.0, "gradient_norm": 0.0, "parameter_norm": 0.0, "update_norm": 0.0}
        return state, {name: Sum(step, value) for name, value in values.items()}

    program = make_program([3.0, 2.0], steps_per_epoch=4)
    run(Program(**{**program.__dict__, "train_step": train_step}), tmp_path)
    epoch = ["call 1", "call 2", 1, "call 3", 2, "call 4", 3, 4]  # the last is read before the evaluation
    assert events == epoch + [f"call {int(e[-1]) + 4}" if isinstance(e, str) else e + 4 for e in epoch]


def test_a_step_that_copies_to_the_device_is_an_error(tmp_path):
    program = make_program([1.0])
    step = program.train_step
    program = dataclasses.replace(
        program, train_step=lambda state, batch, count: step(state, {"value": np.float32(1)}, count)
    )
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        run(program, tmp_path)


def test_the_last_steps_are_in_a_line_of_their_own(tmp_path):
    program = make_program([3.0, 2.0, 1.0])
    _, _, records, _ = run(Program(**{**program.__dict__, "log_every": 4}), tmp_path)
    lines = [(r["step"], r["loss"], r["count"]) for r in records if r["split"] == "steps"]
    assert lines == [(4, 1.5, 4), (6, 4.5, 2)]


class Saved:
    """Checkpoints of a lane that hold steps only; waiting for the first one may fail."""

    def __init__(self, fails=False):
        self.steps, self.fails = [], fails

    def save(self, state, progress, step, best_step):
        self.steps.append(step)

    def wait(self):
        if self.fails and self.steps:
            raise RunFailedError("cannot save")


def run_together(program, *, until=None, checkpoints=None):
    """Two lanes of the toy; the second starts with a parameter that is 2 more, an epoch ahead in its losses."""

    def train_step(state, batch, count):
        return jax.vmap(lambda s: program.train_step(s, batch, count))(state)

    both = Program(
        **program.__dict__
        | {
            "train_step": jax.jit(train_step),
            "eval_step": jax.jit(jax.vmap(program.eval_step, in_axes=(0, None))),
            "part": lambda state, i: jax.tree.map(lambda x: x[i], state),
        }
    )
    states = [
        create_state(lambda key, w=w: {"params": {"w": jnp.float32(w)}}, optax.sgd(1.0), jax.random.key(0))
        for w in (0, 2)
    ]
    state = jax.tree.map(lambda *x: jnp.stack(x), *states)
    checkpoints = checkpoints or [Saved(), Saved()]
    with Progress(program.steps, program.steps_per_epoch, console=Console(file=io.StringIO())) as progress:
        trackers = [
            RunTracker(both, Position(), checkpoints=saved, journal=Journal([]), progress=progress)
            for saved in checkpoints
        ]
        fit(both, state, trackers, stop=StopRequest(), until=until)
    return [tracker.position for tracker in trackers], [saved.steps for saved in checkpoints]


def test_lanes_end_at_a_step_before_the_last_and_have_saved_it():
    positions, saved = run_together(make_program([5.0, 4.0, 3.0, 2.0]), until=3)
    assert [p.step for p in positions] == [3, 3] and [steps[-1] for steps in saved] == [3, 3]


def test_no_lane_saves_again_before_the_last_save_of_all_is_whole():
    checkpoints = [Saved(), Saved(fails=True)]
    with pytest.raises(RunFailedError, match="cannot save"):
        run_together(make_program([5.0, 4.0, 3.0, 2.0]), checkpoints=checkpoints)
    assert [saved.steps for saved in checkpoints] == [[2], [2]]


def test_it_stands_still_with_all_steps_booked_and_saves_when_that_is_due():
    booked, saved = [], Saved()

    class Held(StopRequest):
        """Pauses after step 3 and before the second batch of the first validation; saves at step 5."""

        looks, steps, at_hold, noted = 0, 0, [], []

        def must_hold(self):
            self.looks += 1
            return self.looks in (3, 5)

        def hold(self):
            self.at_hold.append(len(booked))
            time.sleep(0.3)
            self.held_seconds += 0.3

        def save_is_due(self):
            self.steps += 1
            return self.steps == 5

        def note_save(self):
            self.noted.append(list(saved.steps))

    plain = make_program([3.0, 2.0], steps_per_epoch=3)
    more = {"learning_rate": lambda step: booked.append(step) or 0.1, "validation": lambda: iter([{}, {}])}
    program = Program(**plain.__dict__ | more)
    state = create_state(lambda key: {"params": {"w": jnp.float32(0)}}, optax.sgd(1.0), jax.random.key(0))
    stop, position = Held(), Position()
    with Progress(program.steps, program.steps_per_epoch, console=Console(file=io.StringIO())) as progress:
        tracker = RunTracker(program, position, checkpoints=saved, journal=Journal([]), progress=progress)
        started = time.monotonic()
        fit(program, state, [tracker], stop=stop)
    assert stop.at_hold == [3, 3] and booked == [0, 1, 2, 3, 4, 5]
    assert saved.steps == [3, 5, 6] and stop.noted == [[3], [3, 5], [3, 5, 6]]
    assert sum(position.seconds.values()) < time.monotonic() - started - 0.6


def test_the_seconds_of_all_lanes_are_those_that_passed(monkeypatch):
    """Also of the steps that one lane takes after another has stopped early."""
    readings = []

    def monotonic():
        readings.append(float(len(readings) ** 2))
        return readings[-1]

    monkeypatch.setattr("jaxvit.training.loop.time", SimpleNamespace(monotonic=monotonic))
    # The second lane, an epoch ahead in these losses, is past the best one at its first epoch.
    positions, _ = run_together(make_program([5.0, 3.0, 4.0, 6.0, 7.0], patience=2, epochs=4))
    assert positions[1].stopped_early and positions[1].step < positions[0].step
    assert sum(sum(p.seconds.values()) for p in positions) == pytest.approx(readings[-1] - readings[0])
    assert positions[0].seconds["train"] > positions[1].seconds["train"] > 0


def test_evaluate_adds_all_batches_up():
    batches = [{"n": np.float32(n)} for n in (1, 2, 3)]
    (totals,) = evaluate(
        lambda _, batch: {"count": batch["n"], "loss": batch["n"] * 2}, {}, batches, lambda batch: batch
    )
    assert totals.values == {"count": 6.0, "loss": 12.0}


def test_a_position_survives_json():
    import json

    for value in (float("nan"), 0.25):
        position = Position(step=3, best_value=value, epoch_totals={"loss": 0.1})
        again = Position.from_json(json.loads(json.dumps(position.to_json())))
        assert again.to_json() == position.to_json()
