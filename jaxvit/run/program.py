"""Connects a run's parts to its data and devices: the feed, the compiled steps, and the `Program` for the loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.stages import Lowered, Wrapped

from jaxvit.config.plan_types import Plan
from jaxvit.data.batches import TrainOrder
from jaxvit.data.feed import ResidentFeed, StreamFeed, evaluation_stream
from jaxvit.data.parts import Source, StreamedSource
from jaxvit.devices import hardware, runtime
from jaxvit.devices.sharding import (
    abstract,
    own_rows,
    place_batch,
    place_call,
    platform_of,
    replicate,
    replicated,
    split_batch,
    split_call,
)
from jaxvit.run.assembly import Assembly
from jaxvit.training import nans
from jaxvit.training.loop import Batch as LoopBatch
from jaxvit.training.loop import CallSums, Position, Program
from jaxvit.training.metrics import Sums
from jaxvit.training.state import TrainState
from jaxvit.training.step import Batch, loss, train_steps


@dataclass(frozen=True)
class StartOptions:
    """Options of one start that do not change the result.

    Attributes:
      debug_nans: check every step and name the module of a NaN.
      fall_back: set damaged checkpoints aside.
      profile: first and last step to profile; None = no profile.
    """

    debug_nans: bool
    fall_back: bool
    profile: tuple[int, int] | None


def make_program(
    plan: Plan,
    assembly: Assembly,
    sources: dict[str, Source | StreamedSource],
    state: TrainState,
    mesh: Mesh,
    position: Position,
    options: StartOptions,
    workdir: Path,
    seeds: Sequence[int] = (),
    feed: ResidentFeed | StreamFeed | None = None,
) -> Program:
    """Compiles the training and evaluation steps and connects them to the data.

    Args:
      plan: plan of the run.
      assembly: parts of the run.
      sources: the splits: 'train', and 'validation' and 'test' if used.
      state: state to start from; with `seeds`, the stacked states of the runs.
      mesh: mesh of the run.
      position: progress of the run; the compile time is added to it.
      options: options of this start.
      workdir: folder of the run, for profiles.
      seeds: seeds of the runs that are trained together; () = one run with the plan's seed.
      feed: feed of the training split; None = a new one.
    """
    started = time.monotonic()
    t = plan.train
    steps_per_call = 1 if options.debug_nans else t.steps_per_call
    feed = feed or make_feed(plan, assembly, sources["train"], mesh, steps_per_call, seeds)
    call = feed(position.step, 1) if position.step < t.steps else feed(0, 1)
    # To explain a NaN, the state before the step must survive it: no donation.
    jitted = jit_train_step(assembly, feed, state, mesh, steps_per_call, seeds, donate=not options.debug_nans)
    run, numbers, root = jitted.run, jitted.numbers, jitted.root
    if position.step < t.steps and not position.stopped_early:  # else only the test is left
        run = jitted.lower(state, feed, call).compile()
    eval_step = partial(assembly.eval_step, mesh=mesh)
    eval_step = jax.vmap(eval_step, in_axes=(0, None)) if seeds else eval_step
    eval_step = jax.jit(eval_step, compiler_options=runtime.forward_options(platform_of(mesh)))
    if "validation" in sources or "test" in sources:
        eval_batch = _abstract_batch(sources["train"], t.eval_batch_size, mesh)
        eval_step = eval_step.lower(state.variables, eval_batch).compile()
    # All at once: computed per step, the rate would wait behind the running step.
    rates = jax.device_get(jax.jit(jax.vmap(assembly.schedule))(np.arange(t.steps))).tolist()
    position.seconds["compile"] += time.monotonic() - started

    def train_step(state: TrainState, call: LoopBatch, count: int) -> tuple[TrainState, CallSums]:
        if jitted.whole_call:
            return run(state, feed.data, call, numbers[count], root)
        each = []
        for i in range(count):
            state, sums = run(state, feed.data, call, numbers[i], root)
            each.append(sums)
        return state, {name: [sums[name] for sums in each] for name in each[0]}

    def batches_of(part: str) -> Callable[[], Iterator[LoopBatch]] | None:
        if part not in sources:
            return None
        own = own_rows(mesh, t.eval_batch_size)
        return lambda: evaluation_stream(sources[part], t.eval_batch_size, own, t.workers)

    indices = replicate(mesh, [np.int32(i) for i in range(len(seeds))])
    cut = jax.jit(lambda state, i: jax.tree.map(lambda x: x[i], state))

    def part(state: TrainState, i: int) -> TrainState:
        return cut(state, indices[i]) if seeds else state

    def explain(before: TrainState, failed: LoopBatch) -> str:
        batch = feed.pick(feed.data, cast(Batch, failed), 0)
        prepare = partial(assembly.prepare, mesh=mesh)
        return nans.explain(
            prepare, partial(loss, apply=partial(assembly.apply, plain=True)), before, batch, t.accumulate
        )

    return Program(
        train_step=train_step,
        eval_step=eval_step,
        train_batch=feed,
        validation=batches_of("validation"),
        test=batches_of("test"),
        place=lambda host: place_batch(mesh, host),
        learning_rate=rates.__getitem__,
        steps=t.steps,
        steps_per_epoch=t.steps_per_epoch,
        checkpoint_every=t.checkpoint_every,
        part=part,
        log_every=t.log_every,
        patience_epochs=t.patience_epochs,
        monitor=t.monitor,
        explain=explain if options.debug_nans else None,
        profiler=hardware.Profiler(options.profile, workdir / "profile") if options.profile else None,
        steps_per_call=steps_per_call,
    )


class JittedStep(NamedTuple):
    """A run's jitted training step, and its inputs besides state and data.

    Attributes:
      run: (state, data, call, i or count, root key's data) -> (state, sums).
      whole_call: whether one execution runs all steps of a call, not one of them.
      numbers: 0, 1, … to the number of steps of a call, on the devices.
      root: data of the root key, on the devices.
    """

    run: Wrapped
    whole_call: bool
    numbers: list[jax.Array]
    root: jax.Array

    def lower(self, state: TrainState, feed: ResidentFeed | StreamFeed, call: LoopBatch) -> Lowered:
        """Traces the step for such a state and such a call of the feed; the result can be compiled."""
        return self.run.lower(state, feed.data, call, self.numbers[0], self.root)


def jit_train_step(
    assembly: Assembly,
    feed: ResidentFeed | StreamFeed,
    state: TrainState,
    mesh: Mesh,
    steps_per_call: int,
    seeds: Sequence[int] = (),
    *,
    donate: bool = True,
) -> JittedStep:
    """Jits a run's training step; on an accelerator, all steps of a call as one program.

    Args:
      assembly: parts of the run.
      feed: feed of the training split.
      state: state before the step; the next one gets its sharding. To compile ahead for devices that are not here: the
        shapes of a state, with shardings.
      mesh: mesh of the run.
      steps_per_call: steps in one call of the feed.
      seeds: seeds of several runs that are trained together.
      donate: lets the next state reuse the buffers of the one before.
    """
    whole_call = steps_per_call > 1 and platform_of(mesh) != "cpu"
    layout = jax.tree.map(lambda x: x.sharding, state)
    ahead = isinstance(state.step, jax.ShapeDtypeStruct)
    place = partial(abstract, replicated(mesh)) if ahead else partial(replicate, mesh)
    program = partial(
        train_program,
        assembly=assembly,
        pick=feed.pick,
        mesh=mesh,
        steps_per_call=steps_per_call if whole_call else 1,
        together=bool(seeds),
    )
    return JittedStep(
        jax.jit(program, donate_argnums=(0,) if donate else (), out_shardings=(layout, None)),
        whole_call,
        place([np.int32(number) for number in range(steps_per_call + 1)]),
        # An argument, not a constant: one compiled program serves all seeds.
        place(_key_data([assembly.step_key(seed) for seed in seeds] or assembly.step_key())),
    )


def _key_data(keys: jax.Array | list[jax.Array]) -> np.ndarray:
    return np.asarray(jax.random.key_data(jnp.stack(keys) if isinstance(keys, list) else keys))


def train_program(
    state: TrainState,
    data: Batch,
    call: Batch,
    i: jax.Array,
    root: jax.Array,
    *,
    assembly: Assembly,
    pick: Callable[[Batch, Batch, jax.Array], dict[str, jax.Array]],
    mesh: Mesh,
    steps_per_call: int,
    together: bool,
) -> tuple[TrainState, Sums]:
    """Picks the batch of a step and trains on it: the function that is compiled.

    Args:
      state: state before the step; of several runs `together`, their states stacked.
      data: the resident split, or nothing; `feed.data`.
      call: input of the call, from the feed.
      i: position of the step in the call; if `steps_per_call` > 1, the number of steps to run.
      root: data of the root key; [R, …] of R runs together.
      assembly: parts of the run.
      pick: (data, call, i) -> batch of the call's i-th step; `feed.pick`.
      mesh: mesh of the run.
      steps_per_call: steps that one execution runs.
      together: whether several runs are trained together, each with its own parameters, images and random numbers.
    """
    keys = jax.random.wrap_key_data(root)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        if together:
            return jax.vmap(lambda s, b, key: assembly.train_step(s, b, key=key, mesh=mesh))(state, batch, keys)
        return assembly.train_step(state, batch, key=keys, mesh=mesh)

    if steps_per_call == 1:
        return step(state, pick(data, call, i))
    batches = jax.vmap(lambda k: pick(data, call, k))(jnp.arange(steps_per_call))
    return train_steps(state, batches, i, step=step)


def make_feed(
    plan: Plan,
    assembly: Assembly,
    source: Source | StreamedSource,
    mesh: Mesh,
    steps_per_call: int,
    seeds: Sequence[int] = (),
    *,
    ahead: bool = False,
) -> ResidentFeed | StreamFeed:
    """Makes the feed of the training split, which moves batches to the devices: 'resident' or 'stream' by the plan.

    With `ahead`, the feed returns shapes and not arrays, for a mesh of devices that are not here.
    """
    t = plan.train
    sampling = plan.data.sampling(source.labels) if plan.data.balance == "sampling" else None
    order, *others = [
        TrainOrder(len(source), t.batch_size, seed, t.last_batch, plan.augment.repeats, sampling)
        for seed in (seeds or (plan.seed,))
    ]

    own = slice(0, t.batch_size) if ahead else own_rows(mesh, t.batch_size)
    axis = 2 if seeds else 1

    def put_call(call: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        return abstract(split_call(mesh, axis), dict(call)) if ahead else place_call(mesh, call, axis)

    def put_split(split: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        return abstract(replicated(mesh), dict(split)) if ahead else replicate(mesh, dict(split))

    if t.feed == "resident":
        assert isinstance(source, Source)  # the plan has checked it
        return ResidentFeed(
            source,
            [order, *others] if seeds else order,
            t.batch_size,
            steps_per_call,
            put_split=put_split,
            put_call=put_call,
            own=own,
            numbered=plan.augment.alternates,
        )
    return StreamFeed(
        source,
        order,
        t.batch_size,
        steps_per_call,
        t.steps,
        put_call=put_call,
        host_transform=assembly.host_transform(own.start),
        own=own,
        numbered=plan.augment.alternates,
        workers=t.workers,
    )


def _abstract_batch(source: Source | StreamedSource, size: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    shapes = {
        "image": ((size, *source.image_shape), np.uint8),
        "label": ((size,), np.int32),
        "mask": ((size,), np.float32),
    }
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=split_batch(mesh)) for name, (shape, dtype) in shapes.items()
    }
