"""Measures start-up time with and without the compilation cache, and the overhead of the training loop.

    python benchmarks/start_and_loop.py [--model=NAME|FILE …] [--steps=60]

A model is trained on random images of its input size, a config file on its own data. A start is the time from the start
of the process to the end of its first step. The loop is `jaxvit.training.loop.fit`, with metrics written every 50
steps, compared with a bare loop over the same compiled step; both run in turns, and medians are compared.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from jaxvit.config.files import load_config_file
from jaxvit.config.keys import base_config
from jaxvit.config.plan import dataset_of, resolve
from jaxvit.devices.sharding import make_mesh
from jaxvit.models.registry import input_shape
from jaxvit.run.assembly import assemble
from jaxvit.run.program import StartOptions, make_program
from jaxvit.speed.workloads import DOCUMENTS
from jaxvit.training.checkpoint import Checkpoints
from jaxvit.training.journal import Journal, JsonLines
from jaxvit.training.loop import Position, RunTracker, fit
from jaxvit.training.progress import Progress
from jaxvit.training.stopping import StopRequest

BATCHES = {name: workload.batch for name, workload in DOCUMENTS.items()}


def random_images() -> dict:
    """The data set of the runs below; its image size is the model's input size."""
    rng = np.random.default_rng(0)
    shape = input_shape(os.environ["BENCHMARK_MODEL"])
    count = 2 * int(os.environ["BENCHMARK_BATCH"])
    return {"train": (rng.integers(0, 256, (count, *shape), dtype=np.uint8), rng.integers(0, 10, count))}


def config_of(model: str, duration: str):
    if ":" in model or model.endswith(".py"):
        config = load_config_file(model)
        config.train.duration, config.log.writers = duration, ("jsonl",)
        return config
    os.environ |= {"BENCHMARK_MODEL": model, "BENCHMARK_BATCH": str(BATCHES[model])}
    config = base_config(model)
    config.data.name = "start_and_loop:random_images"
    config.data.test = ""
    config.train.batch_size = BATCHES[model]
    config.train.duration = duration
    config.checkpoint.every = "100 epochs"
    config.optim.warmup = "0 steps"
    config.log.writers = ("jsonl",)
    return config


# Exits the process after it has read the first step's metrics.
FIRST_STEP = """
import os, sys, time
import jaxvit, start_and_loop
from jaxvit.training.progress import Progress
Progress.step = lambda *_: (os.write(1, str(time.time()).encode()), os._exit(0))
sys.stdout = sys.stderr
jaxvit.train(start_and_loop.config_of(sys.argv[1], '2 steps'), sys.argv[2])
"""


def start_seconds(model: str) -> tuple[float, float]:
    """Seconds from the start of a process to its first step: (first start, median of three later starts)."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": f"{folder}/cache",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        }
        for i in range(4):
            began = time.time()
            command = [sys.executable, "-c", FIRST_STEP, model, f"{folder}/run{i}"]
            done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            seconds.append(float(done.stdout) - began)
    return seconds[0], statistics.median(seconds[1:])


def loop_seconds(model: str, steps: int, rounds: int = 3) -> tuple[float, float]:
    """Median seconds per step of (the bare loop, the training loop)."""
    config = config_of(model, f"{2 * rounds * steps} steps")
    dataset = dataset_of(config)
    plan = resolve(config, dataset=dataset)
    assembly, mesh = assemble(plan), make_mesh(1)
    sources = {"train": dataset.read(plan.data.train)}
    state = jax.jit(assembly.create_state)()
    bare, whole = [], []
    with tempfile.TemporaryDirectory() as folder:
        options, position = StartOptions(False, False, None), Position()
        program = make_program(plan, assembly, sources, state, mesh, position, options, Path(folder))
        for i in range(2 * rounds):
            if i % 2:
                began = time.perf_counter()
                for step in range(steps):
                    state, sums = program.train_step(state, program.train_batch(step, 1), 1)
                jax.block_until_ready(sums)
                bare.append((time.perf_counter() - began) / steps)
                continue
            part = dataclasses.replace(program, steps=steps, steps_per_epoch=steps, checkpoint_every=steps)
            checkpoints = Checkpoints(Path(folder) / f"checkpoints{i}")
            journal = Journal([JsonLines(Path(folder) / "metrics.jsonl", 0)])
            with Progress(steps, steps, console=Console(file=io.StringIO())) as progress:
                tracker = RunTracker(part, Position(), checkpoints=checkpoints, journal=journal, progress=progress)
                state = fit(part, state, [tracker], stop=StopRequest())
            # Saving is counted separately, and happens only at the last step.
            whole.append(tracker.position.seconds["train"] / steps)
            journal.close()
            checkpoints.close()
    return statistics.median(bare), statistics.median(whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", default=[], metavar="NAME|FILE", help=", ".join(BATCHES))
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    print("| model | first start | later start | sooner | bare step | in the loop | loop's share |")
    print("|---|---|---|---|---|---|---|")
    for model in options.model or BATCHES:
        first, later = start_seconds(model)
        bare, whole = loop_seconds(model, options.steps)
        print(
            f"| `{model}` | {first:.1f} s | {later:.1f} s | {first / later:.1f}× | {1e3 * bare:.1f} ms | "
            f"{1e3 * whole:.1f} ms | {100 * (whole / bare - 1):.1f} % |",
            flush=True,
        )


if __name__ == "__main__":
    main()
