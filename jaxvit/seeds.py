"""Several seeds of one experiment: a run for each, in a folder of its own, and their mean and spread.

Each folder, ``seed_K``, is what the single run with ``seed=K`` would leave. The runs are trained one after another, or
together in one vmapped program: then they take the same steps at the same time, each with its own parameters, order of
images and random numbers, and each keeps its own books, best weights and early stopping. What was trained together can
go on one after another, and the other way round.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import statistics
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxvit.assembly import Assembly
from jaxvit.data.sources import Dataset
from jaxvit.errors import RunFailedError, UsageError
from jaxvit.execution import begin, execute, read_sources, report, start
from jaxvit.job import StartOptions, make_job
from jaxvit.plan import Plan
from jaxvit.run_directory import RunDirectory, finished_result
from jaxvit.training import hardware, processes
from jaxvit.training.checkpoint import Checkpoints
from jaxvit.training.loop import Course, Position, fit
from jaxvit.training.progress import Progress
from jaxvit.training.sharding import make_mesh, shard_state, shard_together
from jaxvit.training.stopping import StopRequest


def config_of_seed(config: ConfigDict, seed: int) -> ConfigDict:
    """The config of the single run with one of the seeds."""
    config = copy.deepcopy(config)
    config.seed, config.seeds = seed, ()
    return config


def train_seeds(
    run: RunDirectory, plan: Plan, assembly: Assembly, dataset: Dataset, options: StartOptions, stop: StopRequest
) -> dict[str, Any]:
    """Trains a run for each seed and returns their result, which it also writes.

    Args:
      run: the folder that holds the seeds' folders.
      plan, assembly: of the config with all seeds.
      dataset, options, stop: as for `jaxvit.execution.execute`.
    """
    before = processes.told(lambda: run.result)
    processes.everywhere(lambda: run.set_result_aside(before["steps"] if before else 0))
    processes.first(run.write_config)
    if _shall_be_together(plan, options):
        try:
            _train_together(run, plan, assembly, dataset, options, stop)
        except jax.errors.JaxRuntimeError as error:
            if plan.seeds_run == "together" or not hardware.is_out_of_memory(error):
                raise
            print("the device has no room for all seeds together; they are trained one after another", flush=True)
    results = {}
    for i, seed in enumerate(plan.seeds):
        print(f"seed {seed} ({i + 1} of {len(plan.seeds)})", flush=True)
        config = config_of_seed(run.config, seed)
        folder = run.path / f"seed_{seed}"
        finished = processes.told(lambda config=config, folder=folder: finished_result(folder, config))
        if finished is None:
            with _opened(folder, config) as single:
                own = dataclasses.replace(plan, seed=seed, seeds=(), seeds_run="")
                try:
                    finished = execute(single, own, dataclasses.replace(assembly, plan=own), dataset, options, stop)
                except RunFailedError as error:
                    raise RunFailedError(f"seed {seed}: {error}") from error
        results[seed] = finished
    result = combine(results, run)
    processes.first(lambda: run.write_result(result))
    report(result, run.path)
    return result


def _shall_be_together(plan: Plan, options: StartOptions) -> bool:
    """Whether to train all seeds in one program.

    On a CPU one after another is faster: XLA's CPU backend runs batched matrix products on one core.
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
    return plan.seeds_run == "together" or (not hindrance and jax.default_backend() != "cpu")


def _opened(folder: Path, config: ConfigDict) -> contextlib.AbstractContextManager[RunDirectory]:
    opened = processes.first(lambda: RunDirectory(folder, config))
    return contextlib.closing(processes.everywhere(lambda: opened or RunDirectory(folder, config, writes=False)))


def _train_together(
    run: RunDirectory, plan: Plan, assembly: Assembly, dataset: Dataset, options: StartOptions, stop: StopRequest
) -> None:
    """Trains all seeds' runs to their last steps; their tests and results are left to be done."""
    mesh = make_mesh(plan.train.devices, plan.train.fsdp)
    sources = read_sources(plan, dataset)
    with contextlib.ExitStack() as stack:
        lanes = []
        for seed in plan.seeds:
            folder, config = run.path / f"seed_{seed}", config_of_seed(run.config, seed)
            if finished_result(folder, config) is not None:
                continue
            own = dataclasses.replace(plan, seed=seed, seeds=(), seeds_run="")
            single = stack.enter_context(contextlib.closing(RunDirectory(folder, config)))
            checkpoints = stack.enter_context(
                contextlib.closing(Checkpoints(folder / "checkpoints", fall_back=options.fall_back))
            )
            parts = dataclasses.replace(assembly, plan=own)
            state, position = start(single, own, parts, checkpoints, mesh, options)
            if not position.stopped_early and position.step < plan.train.steps:
                lanes.append([seed, single, own, parts, checkpoints, state, position])
        if len(lanes) < 2:
            return
        _bring_to_one_step(lanes, mesh, options)
        seeds = [lane[0] for lane in lanes]
        layout = shard_together(shard_state(mesh, assembly.abstract_state))
        states = [lane.pop(5) for lane in lanes]
        state = jax.jit(lambda *s: jax.tree.map(lambda *x: jnp.stack(x), *s), out_shardings=layout)(*states)
        del states
        step = lanes[0][5].step
        print(
            f"{len(seeds)} seeds together: {', '.join(map(str, seeds))}"
            + (f"; going on from step {step:,}" if step else "")
            + "\ncompiling, or fetching what an earlier start has compiled",
            flush=True,
        )
        compiling = Position(step=step)
        job = make_job(plan, assembly, sources, state, mesh, compiling, options, run.path, seeds)
        progress = stack.enter_context(Progress(plan.train.steps, plan.train.steps_per_epoch, step))
        courses = []
        for seed, single, own, _, checkpoints, position in lanes:
            position.seconds["compile"] += compiling.seconds["compile"] / len(lanes)
            journal = stack.enter_context(contextlib.closing(begin(single, own, position, sources)))
            courses.append(
                Course(
                    job,
                    position,
                    checkpoints=checkpoints,
                    journal=journal,
                    progress=progress,
                    label=f"seed {seed}: ",
                    share=1 / len(lanes),
                )
            )
        fit(job, state, courses, stop=stop)


def _bring_to_one_step(lanes: list[list[Any]], mesh: Any, options: StartOptions) -> None:
    """Takes runs that a kill left at different steps back to the newest one that all have saved.

    They save together and keep two checkpoints each, so there is one, unless they were trained one after another.
    """
    steps = {lane[6].step for lane in lanes}
    if len(steps) == 1:
        return
    common = set.intersection(*({0, *lane[4].steps()} for lane in lanes))
    for lane in lanes:
        _, single, own, parts, checkpoints, _, position = lane
        if position.step != max(common):
            checkpoints.drop_after(max(common))
            lane[5:] = start(single, own, parts, checkpoints, mesh, options)


def combine(results: dict[int, dict[str, Any]], run: RunDirectory) -> dict[str, Any]:
    """The result of several seeds: means, sample standard deviations (of n - 1) under `std`, and each seed's own."""
    each = list(results.values())
    tests = [result["test"] for result in each]
    test: dict[str, Any] = {}
    if all(tests):
        names = [name for name in tests[0] if name != "count"]
        test = {name: statistics.fmean(t[name] for t in tests) for name in names}
        spread = {name: statistics.stdev(t[name] for t in tests) if len(tests) > 1 else 0.0 for name in names}
        test |= {"count": tests[0]["count"], "std": spread, "n": len(tests)}
    validations = [result["validation"] for result in each]
    return {
        "test": test,
        "validation": {name: statistics.fmean(v[name] for v in validations) for name in validations[0]},
        "seeds": [{"seed": seed, **result} for seed, result in results.items()],
        "weights": each[0]["weights"],
        "params": each[0]["params"],
        "steps": max(result["steps"] for result in each),
        "best_epoch": math.floor(statistics.median(result["best_epoch"] for result in each)),
        "stopped_early": any(result["stopped_early"] for result in each),
        "seconds": {name: round(sum(r["seconds"][name] for r in each), 3) for name in each[0]["seconds"]},
        "config_hash": run.config_hash,
        "data": each[0]["data"],
        **({"extensions": run.extensions} if run.extensions else {}),
    }
