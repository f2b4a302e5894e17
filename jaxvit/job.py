"""Ties a run's parts to its data and devices: feeds, compiled programs, and the Job that the loop works off."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxvit.assembly import Assembly
from jaxvit.data.batches import TrainOrder
from jaxvit.data.feed import ResidentFeed, StreamFeed, evaluation_stream
from jaxvit.data.sources import Source, StreamedSource
from jaxvit.errors import UsageError
from jaxvit.plan import Plan
from jaxvit.training import nans
from jaxvit.training.loop import Job, Position
from jaxvit.training.sharding import place_batch, place_call, replicated, split_batch
from jaxvit.training.state import TrainState
from jaxvit.training.step import make_train_call


@dataclass(frozen=True)
class StartOptions:
    """What a start can be asked for that changes no result."""

    debug_nans: bool
    fall_back: bool
    profile: tuple[int, int] | None


def make_job(
    plan: Plan,
    assembly: Assembly,
    sources: dict[str, Source | StreamedSource],
    state: TrainState,
    mesh: Any,
    position: Position,
    options: StartOptions,
    workdir: Path,
) -> Job:
    """Compiles the two steps and ties them to the data."""
    started = time.monotonic()
    t = plan.train
    steps_per_call = 1 if options.debug_nans else t.steps_per_call
    feed = make_feed(plan, assembly, sources["train"], mesh, steps_per_call)
    # The state before a step must outlive it when a step may have to be looked into.
    donated = () if options.debug_nans else (0,)
    layout = jax.tree.map(lambda x: x.sharding, state)
    call = feed(position.step, 1) if position.step < t.steps else feed(0, 1)
    in_one_go = steps_per_call > 1 and jax.default_backend() != "cpu"
    program = _train_program(assembly.train_step(), feed.pick, steps_per_call if in_one_go else 1)
    program = jax.jit(program, donate_argnums=donated, out_shardings=(layout, None))
    numbers = jax.device_put([np.int32(number) for number in range(steps_per_call + 1)], replicated(mesh))
    program = program.lower(state, feed.data, call, numbers[0]).compile()
    eval_step = jax.jit(assembly.eval_step())
    if "validation" in sources or "test" in sources:
        eval_batch = _abstract_batch(sources["train"], t.eval_batch_size, mesh)
        eval_step = eval_step.lower(state.variables, eval_batch).compile()
    # All of them at once: a schedule asked step by step would queue behind the step that runs.
    rates = jax.device_get(jax.jit(jax.vmap(assembly.schedule))(np.arange(t.steps))).tolist()
    position.seconds["compile"] += time.monotonic() - started

    def train_step(state: TrainState, call: Any, count: int) -> Any:
        if in_one_go:
            return program(state, feed.data, call, numbers[count])
        each = []
        for i in range(count):
            state, sums = program(state, feed.data, call, numbers[i])
            each.append(sums)
        return state, {name: [sums[name] for sums in each] for name in each[0]}

    def validation() -> Any:
        return evaluation_stream(sources["validation"], t.eval_batch_size)

    def explain(before: TrainState, failed: Any) -> str:
        return nans.explain(*assembly.loss(plainly=True), before, feed.pick(feed.data, failed, 0))

    return Job(
        train_step=train_step,
        eval_step=eval_step,
        train_batch=feed,
        validation=validation if "validation" in sources else None,
        place=lambda host: place_batch(mesh, host),
        learning_rate=rates.__getitem__,
        steps=t.steps,
        steps_per_epoch=t.steps_per_epoch,
        checkpoint_every=t.checkpoint_every,
        log_every=t.log_every,
        patience_epochs=t.patience_epochs,
        monitor=t.monitor,
        explain=explain if options.debug_nans else None,
        profile=options.profile,
        profile_directory=workdir / "profile",
        steps_per_call=steps_per_call,
    )


def _train_program(step: Any, pick: Any, steps_per_call: int) -> Any:
    """What is compiled: several steps, or the one of a given place in the call."""
    if steps_per_call > 1:
        return make_train_call(step, pick, steps_per_call)
    return lambda state, data, call, i: step(state, pick(data, call, i))


def make_feed(
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


def _abstract_batch(source: Source | StreamedSource, size: int, mesh: Any) -> Any:
    shapes = {
        "image": ((size, *source.image_shape), np.uint8),
        "label": ((size,), np.int32),
        "mask": ((size,), np.float32),
    }
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=split_batch(mesh)) for name, (shape, dtype) in shapes.items()
    }
