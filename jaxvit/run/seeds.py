"""Several seeds of one experiment: one run per seed, each in its own folder; their mean and standard deviation.

The folder ``seed_K`` equals the folder of a single run with ``seed=K``. The runs are trained one after another, or
together in one vmapped program. Together, they take each step at the same time, each with its own parameters, order of
images, random numbers, metrics, best weights and early stopping. Runs that were trained together can be resumed one
after another,
and the reverse: runs that are behind first catch up with the others.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import statistics
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxvit.config.plan_types import Plan
from jaxvit.data.dataset import Dataset
from jaxvit.devices import hardware, processes
from jaxvit.devices.sharding import make_mesh, platform_of, shard_state, shard_together
from jaxvit.errors import RunFailedError, UsageError
from jaxvit.run.assembly import Assembly
from jaxvit.run.execution import Sources, begin, describe, execute, read_sources, refuse_fewer_steps, start
from jaxvit.run.folder import RunDirectory, checkpoint_folder, finished_result
from jaxvit.run.messages import print_result
from jaxvit.run.program import StartOptions, make_program
from jaxvit.run.result_types import Result
from jaxvit.training.checkpoint import Checkpoints, saved_steps
from jaxvit.training.hooks import Hooks
from jaxvit.training.loop import Position, RunTracker, fit
from jaxvit.training.progress import Progress
from jaxvit.training.state import TrainState
from jaxvit.training.stopping import StopRequest


def config_of_seed(config: ConfigDict, seed: int) -> ConfigDict:
    """Returns the config of the single run with one of the seeds."""
    config = copy.deepcopy(config)
    config.seed, config.seeds = seed, ()
    return config


def train_seeds(
    run: RunDirectory, plan: Plan, assembly: Assembly, dataset: Dataset, options: StartOptions, stop: StopRequest
) -> Result:
    """Trains one run per seed, writes their combined result and returns it.

    Args:
      run: open folder of the run of all seeds, which contains the folders of the seeds.
      plan: plan of the config with all seeds.
      assembly: parts of that plan.
      dataset: data set of the runs.
      options: options of this start.
      stop: request to stop or pause.
    """
    together = _shall_be_together(plan, options)
    sources = read_sources(plan, dataset)
    run.note_extension(processes.on_all(lambda: _check(run, plan, sources)))
    if together:
        try:
            while _train_hindmost(run, plan, assembly, sources, options, stop):
                pass
        except jax.errors.JaxRuntimeError as error:
            if plan.seeds_run == "together" or not hardware.is_out_of_memory(error):
                raise
            print("the device has no room for all seeds together; they are trained one after another", flush=True)
    results = {}
    for i, seed in enumerate(plan.seeds):
        print(f"seed {seed} ({i + 1} of {len(plan.seeds)})", flush=True)
        config = config_of_seed(run.config, seed)
        folder = run.path / f"seed_{seed}"
        finished = processes.broadcast_from_first(lambda config=config, folder=folder: finished_result(folder, config))
        if finished is None:
            with open_run(folder, config) as single:
                own = _plan_of_seed(plan, seed)
                parts = dataclasses.replace(assembly, plan=own)
                try:
                    finished = execute(single, own, parts, dataset, options, stop, whole=run)
                except RunFailedError as error:
                    raise RunFailedError(f"seed {seed}: {error}") from error
        results[seed] = finished
    result = combine(results, run)
    processes.on_first(lambda: run.write_result(result))
    print_result(result, run.path)
    return result


def _shall_be_together(plan: Plan, options: StartOptions) -> bool:
    """Whether to train all seeds in one program.

    On a CPU, one after another is faster: XLA's CPU backend runs batched matrix products on one core.
    """
    if plan.seeds_run == "in_turn" or len(plan.seeds) == 1:
        return False
    against = {
        "config.data.feed='stream'": plan.train.feed != "resident",
        "several processes": processes.count() > 1,
        "--debug_nans": options.debug_nans,
        "--profile": bool(options.profile),
        "the writers wandb and mlflow, which know one run a process": bool({"wandb", "mlflow"} & {*plan.train.writers}),
    }
    hindrance = next((what for what, there in against.items() if there), "")
    if plan.seeds_run == "together" and hindrance:
        raise UsageError(f"config.train.seeds='together' does not go with {hindrance}; set it to 'in_turn'")
    platform = platform_of(make_mesh(plan.train.devices, plan.train.fsdp))
    return plan.seeds_run == "together" or (not hindrance and platform != "cpu")


def open_run(folder: Path, config: ConfigDict) -> contextlib.AbstractContextManager[RunDirectory]:
    """Opens the folder of one seed or fold for the `with` block; only process 0 writes."""
    opened = processes.on_first(lambda: RunDirectory(folder, config))
    return contextlib.closing(processes.on_all(lambda: opened or RunDirectory(folder, config, writes=False)))


def _plan_of_seed(plan: Plan, seed: int) -> Plan:
    return dataclasses.replace(plan, seed=seed, seeds=(), seeds_run="")


def _check(run: RunDirectory, plan: Plan, sources: Sources) -> int:
    """Runs the checks of all seeds before any run changes; returns the newest step of all."""
    newest = 0
    for seed in plan.seeds:
        folder = run.path / f"seed_{seed}"
        if not (folder / ".lock").exists():
            continue
        with contextlib.closing(RunDirectory(folder, config_of_seed(run.config, seed), writes=False)) as single:
            single.check_data(describe(sources), plan.data.class_names)
        newest = max(newest, *saved_steps(checkpoint_folder(folder)), 0)
    refuse_fewer_steps(plan, newest)
    return newest


@dataclasses.dataclass
class Lane:
    """The run of one seed while it is trained together with others.

    Attributes:
      seed: its seed.
      run: its open folder.
      plan: its plan.
      checkpoints: its checkpoints.
      state: its state to start from; None once it is stacked with the others.
      position: its progress.
    """

    seed: int
    run: RunDirectory
    plan: Plan
    checkpoints: Checkpoints
    state: TrainState | None
    position: Position


def _train_hindmost(
    run: RunDirectory, plan: Plan, assembly: Assembly, sources: Sources, options: StartOptions, stop: StopRequest
) -> bool:
    """Trains the runs that are furthest behind, together, to the step of the next ones, or all runs to the last step.

    So no saved step is lost, however far apart a kill, or training one after another, has left the runs.

    Returns:
      Whether runs remain to be trained together. Tests and results are not part of this.
    """
    mesh = make_mesh(plan.train.devices, plan.train.fsdp)
    with contextlib.ExitStack() as stack:
        lanes = [
            lane
            for seed in plan.seeds
            if (lane := _open_lane(stack, run, plan, seed, assembly, sources, mesh, options))
            and not lane.position.stopped_early
            and lane.position.step < plan.train.steps
        ]
        if len(lanes) < 2:
            return False
        step = min(lane.position.step for lane in lanes)
        until = min((lane.position.step for lane in lanes if lane.position.step > step), default=plan.train.steps)
        lanes = [lane for lane in lanes if lane.position.step == step]
        state = _stack(
            [lane.state for lane in lanes if lane.state is not None],
            shard_together(shard_state(mesh, assembly.abstract_state)),
        )
        for lane in lanes:
            lane.state = None
        seeds = [lane.seed for lane in lanes]
        names = ", ".join(map(str, seeds))
        print(
            (f"{len(seeds)} seeds together: {names}" if len(seeds) > 1 else f"seed {names}")
            + (f"; resuming from step {step:,}" if step else "")
            + (f"; first to step {until:,}, where others are" if until < plan.train.steps else "")
            + "\ncompiling, or fetching what an earlier start has compiled",
            flush=True,
        )
        compiling = Position(step=step)
        program = make_program(plan, assembly, sources, state, mesh, compiling, options, run.path, seeds)
        progress = stack.enter_context(Progress(plan.train.steps, plan.train.steps_per_epoch, step))
        trackers = []
        for lane in lanes:
            lane.position.seconds["compile"] += compiling.seconds["compile"] / len(lanes)
            journal = begin(lane.run, lane.plan, lane.position, sources, whole=run)
            trackers.append(
                RunTracker(
                    program,
                    lane.position,
                    checkpoints=lane.checkpoints,
                    journal=stack.enter_context(contextlib.closing(journal)),
                    progress=progress,
                    hooks=Hooks(plan.train.hooks, seed=lane.seed, workdir=lane.run.path),
                    label=f"seed {lane.seed}: ",
                )
            )
        fit(program, state, trackers, stop=stop, until=until)
        return until < plan.train.steps


def _open_lane(
    stack: contextlib.ExitStack,
    run: RunDirectory,
    plan: Plan,
    seed: int,
    assembly: Assembly,
    sources: Sources,
    mesh: Mesh,
    options: StartOptions,
) -> Lane | None:
    """Opens and restores the run of a seed until `stack` closes; None if it is finished."""
    folder, config = run.path / f"seed_{seed}", config_of_seed(run.config, seed)
    if finished_result(folder, config) is not None:
        return None
    own = _plan_of_seed(plan, seed)
    single = stack.enter_context(contextlib.closing(RunDirectory(folder, config)))
    checkpoints = Checkpoints(checkpoint_folder(folder), fall_back=options.fall_back)
    stack.enter_context(checkpoints)
    parts = dataclasses.replace(assembly, plan=own)
    state, position = start(single, own, parts, sources, checkpoints, mesh, options)
    return Lane(seed, single, own, checkpoints, state, position)


def _stack(states: list[TrainState], layout: TrainState) -> TrainState:
    return jax.jit(lambda *s: jax.tree.map(lambda *x: jnp.stack(x), *s), out_shardings=layout)(*states)


def combine(results: dict[int, Result], run: RunDirectory, of: str = "seed") -> Result:
    """Combines the results of several seeds or folds: means, standard deviations under `std`, and each single result.

    Args:
      results: {seed or fold: result}.
      run: folder of the run of all.
      of: 'seed' or 'fold'. The result of folds counts the test images of all folds; each fold has its own data.

    Returns:
      The content of result.json. Standard deviations divide by n - 1. `weights_of` is 'mixed' if the best weights of
      some runs are damaged.
    """
    folds = of == "fold"
    each = list(results.values())
    tests = [cast(dict[str, float], result["test"]) for result in each]
    test: dict[str, object] = {}
    if all(tests):
        names = [name for name in tests[0] if name != "count"]
        test = {name: statistics.fmean(t[name] for t in tests) for name in names}
        spread = {name: statistics.stdev(t[name] for t in tests) if len(tests) > 1 else 0.0 for name in names}
        count = sum(t["count"] for t in tests) if folds else tests[0]["count"]
        test |= {"count": count, "std": spread, "n": len(tests)}
    validations = [result["validation"] for result in each]
    weights_of = {result["weights_of"] for result in each}
    runs = [
        {of: number, **{key: value for key, value in result.items() if folds or key != "data"}}
        for number, result in results.items()
    ]
    combined = {
        "test": test,
        "validation": {name: statistics.fmean(v[name] for v in validations) for name in validations[0]},
        f"{of}s": runs,
        "weights": each[0]["weights"],
        "weights_of": weights_of.pop() if len(weights_of) == 1 else "mixed",
        "params": each[0]["params"],
        "steps": max(result["steps"] for result in each),
        "best_epoch": math.floor(statistics.median(result["best_epoch"] for result in each)),
        "stopped_early": any(result["stopped_early"] for result in each),
        "seconds": {name: round(sum(r["seconds"][name] for r in each), 3) for name in each[0]["seconds"]},
        "config_hash": run.config_hash,
        **({} if folds else {"data": each[0].get("data")}),
        **({"extensions": run.extensions} if run.extensions else {}),
    }
    return cast(Result, combined)
