"""Measures one model for `jaxvit benchmark`: training step, inference, compile time, memory and overheads.

The training step is the compiled program of `jaxvit train`, with a donated state. `train` runs it on one batch that is
already on the devices, `fed` on batches from the run's feed, and `loop` inside the whole training loop. The
measurements take turns, and block only after several steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jaxvit.data.augment import preprocess
from jaxvit.devices import hardware, runtime
from jaxvit.devices.sharding import make_mesh, place_batch, replicated, shard_state, split_batch
from jaxvit.errors import UsageError
from jaxvit.layers.stack import plainly
from jaxvit.models.count import count_macs, count_params
from jaxvit.run.program import StartOptions, jit_train_step, make_feed, make_program
from jaxvit.speed.subject import STEPS, Subject
from jaxvit.speed.timing import Runner, spread, stopwatch, time_in_turns
from jaxvit.training.journal import Journal, JsonLines
from jaxvit.training.loop import Position, RunTracker, fit
from jaxvit.training.progress import Progress
from jaxvit.training.stopping import StopRequest

TRACED_STEPS = 10


@dataclass(frozen=True)
class Effort:
    """How long to measure: each measurement runs for `seconds` in each of the `rounds`.

    Raises:
      UsageError: `rounds` is below 1, or `seconds` is not positive.
    """

    rounds: int = 5
    seconds: float = 2.0

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UsageError(f"--rounds={self.rounds}: must be 1 or more")
        if not 0 < self.seconds < float("inf"):
            raise UsageError(f"--seconds={self.seconds:g}: must be above 0")


class _Unsaved:
    """Stands in for `Checkpoints` in a run that saves nothing."""

    def save(self, *_: Any) -> None: ...

    def wait(self) -> None: ...

    def latest_step(self) -> None: ...


class Bench:
    """A run that is ready to train, with methods that run its parts for timing.

    The constructor compiles the training step twice, with an empty and then with a filled compilation cache. Call it
    inside `runtime.fresh_program_cache`.

    Args:
      subject: the model to measure, with config and data.
      folder: temporary folder for metrics.

    Attributes:
      compile_cold, compile_cached: seconds to trace and compile the training step, without and with the cache.
      trace: seconds of tracing alone.
      program_bytes: memory of the compiled training step on a device: arguments, outputs, temporaries. 0 = unknown.
      steps_per_call: training steps in one call of the program; `train` and `fed` count calls.
    """

    def __init__(self, subject: Subject, folder: Path):
        self._subject, plan, assembly = subject, subject.plan, subject.assembly
        self._mesh = make_mesh(plan.train.devices, plan.train.fsdp)
        self._source = subject.dataset.read(plan.data.train)
        self.steps_per_call = plan.train.steps_per_call
        shardings = shard_state(self._mesh, assembly.abstract_state)
        self._state = jax.jit(assembly.create_state, out_shardings=shardings)(assembly.init_key())
        self._feed = make_feed(plan, assembly, self._source, self._mesh, self.steps_per_call)
        self._call = self._feed(0, self.steps_per_call)
        self._next = 0
        self.trace, self.compile_cold, program = self._compile()
        self.program_bytes = _program_bytes(program)
        _, self.compile_cached, _ = self._compile()
        self._program = make_program(
            plan,
            assembly,
            {"train": self._source},
            self._state,
            self._mesh,
            Position(),
            StartOptions(debug_nans=False, fall_back=False, profile=None),
            folder,
            feed=self._feed,
        )
        self._journal = Journal([JsonLines(folder / "metrics.jsonl", 0)])
        self._progress = Progress(STEPS, STEPS, console=Console(file=io.StringIO()))

    def _compile(self) -> tuple[float, float, Any]:
        """Compiles with cleared in-memory caches; returns (seconds to trace, seconds to trace and compile, program)."""
        jax.clear_caches()
        t = self._subject.plan.train
        made = jit_train_step(self._subject.assembly, self._feed, self._state, self._mesh, t.steps_per_call)
        began = time.perf_counter()
        lowered = made.lower(self._state, self._feed, self._call)
        traced = time.perf_counter()
        program = lowered.compile()
        return traced - began, time.perf_counter() - began, program

    def _take(self, steps: int) -> int:
        """Reserves the next `steps` steps of the feed; returns the first."""
        start = self._next if self._next + steps <= STEPS else 0
        self._next = start + steps
        return start

    def train(self, calls: int) -> None:
        """Calls the training step `calls` times on one batch."""
        for _ in range(calls):
            self._state, sums = self._program.train_step(self._state, self._call, self.steps_per_call)
        jax.block_until_ready((self._state, sums))

    def _drain(self) -> None:
        """Discards batches that were prefetched during other measurements: they would seem to cost nothing."""
        for _ in range(-(-self._feed.ahead // self.steps_per_call)):
            self._feed(self._take(self.steps_per_call), self.steps_per_call)

    def fed(self, calls: int) -> float:
        """Like `train`, with batches from the feed; returns seconds."""
        self._drain()
        began = time.perf_counter()
        for _ in range(calls):
            call = self._feed(self._take(self.steps_per_call), self.steps_per_call)
            self._state, sums = self._program.train_step(self._state, call, self.steps_per_call)
        jax.block_until_ready((self._state, sums))
        return time.perf_counter() - began

    def loop(self, calls: int) -> float:
        """Runs the training loop, with metrics but without evaluation and checkpoints; returns seconds."""
        self._drain()
        steps = calls * self.steps_per_call
        start = self._take(steps)
        program = dataclasses.replace(
            self._program, steps=start + steps, steps_per_epoch=2 * STEPS, checkpoint_every=2 * STEPS, validation=None
        )
        position, unsaved = Position(step=start), _Unsaved()
        tracker = RunTracker(program, position, checkpoints=unsaved, journal=self._journal, progress=self._progress)  # type: ignore[arg-type]
        self._state = fit(program, self._state, [tracker], stop=StopRequest())
        return position.seconds["train"]

    def input_on_device(self) -> Callable[[int], None]:
        """Runs only the input part of the step on the devices: gather, augmentation, targets."""
        assembly = self._subject.assembly

        @jax.jit
        def run(step: jax.Array, data: Any, call: Any) -> Any:
            examples = assembly.prepare(step, self._feed.pick(data, call, 0), mesh=self._mesh)
            return examples["image"], examples["target"]

        def repeated(count: int) -> None:
            for _ in range(count):
                found = run(self._state.step, self._feed.data, self._call)
            jax.block_until_ready(found)

        return repeated

    def inference(self, batch: int) -> Callable[[int], None]:
        """Computes the logits of `batch` images, on all devices if their number divides the batch, else on one."""
        plan, assembly = self._subject.plan, self._subject.assembly
        mesh = self._mesh if batch % plan.train.devices == 0 else make_mesh(1)
        # A separate copy of the variables: the next training step donates the state's.
        variables = jax.device_put(self._variables(), replicated(mesh))
        images, _, _ = self._source.batch(np.arange(batch) % len(self._source))
        placed = place_batch(mesh, {"image": images})["image"]
        run = jax.jit(
            lambda variables, x: assembly.apply(variables, preprocess(x, plan.augment), train=False),
            out_shardings=split_batch(mesh),
            compiler_options=runtime.forward_options(),
        )

        def repeated(count: int) -> None:
            for _ in range(count):
                logits = run(variables, placed)
            jax.block_until_ready(logits)

        return repeated

    def _variables(self) -> Any:
        assembly = self._subject.assembly
        make = jax.jit(lambda key: assembly.create_state(key).variables, out_shardings=replicated(self._mesh))
        return make(assembly.init_key())

    def products(self, seconds: float) -> tuple[Callable[[int], None], float]:
        """Large matrix products in the model's dtype, one on each device at once, and their number of operations.

        The size doubles until a product takes `seconds` (at most 0.05), or has 8,192 rows.
        """
        devices, size, rng = self._subject.plan.train.devices, 256, np.random.default_rng(0)
        multiply = jax.jit(jnp.matmul, out_shardings=split_batch(self._mesh))
        while True:
            size *= 2
            one = rng.standard_normal((1, size, size), np.float32).astype(self._subject.dtype)
            sharding = split_batch(self._mesh)
            matrices = jax.make_array_from_callback((devices, size, size), sharding, lambda _, one=one: one)

            def repeated(count: int, matrices: jax.Array = matrices) -> None:
                for _ in range(count):
                    product = multiply(matrices, matrices)
                jax.block_until_ready(product)

            repeated(1)
            if stopwatch(repeated)(1) >= min(seconds, 0.05) or size >= 8192:
                return repeated, 2.0 * devices * size**3

    def trace_to(self, folder: Path, calls: int = TRACED_STEPS) -> None:
        """Writes a profile of `calls` calls, with batches from the feed."""
        profiler = hardware.Profiler((1, calls), folder)
        with contextlib.closing(profiler):
            profiler.before(0, calls)
            self.fed(calls)
            profiler.after(calls, self._state)

    def close(self) -> None:
        self._journal.close()


def _program_bytes(program: Any) -> int:
    sizes = program.memory_analysis()
    if sizes is None:
        return 0
    parts = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    return parts - sizes.alias_size_in_bytes


def _device_peak_bytes() -> int:
    """Peak memory of a device as counted by its allocator; 0 if it does not count, as on CPUs."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return max(each.get("peak_bytes_in_use", 0) for each in stats)


def _process_peak_bytes() -> int:
    """Peak memory of this process; 0 if the system does not report it."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def facts_of(subject: Subject) -> dict[str, Any]:
    """Facts about a subject that need no run: model, sizes, data, device."""
    plan, assembly = subject.plan, subject.assembly
    t = plan.train
    return {
        "model": plan.model.name,
        "batch": t.batch_size,
        "dtype": subject.dtype,
        **({"reduce": reduce} if (reduce := getattr(assembly.model, "reduce", "none")) != "none" else {}),
        "device": hardware.device_name(),
        "devices": t.devices,
        "input_shape": list(plan.input_shape),
        "classes": assembly.classes,
        "params": count_params(assembly.abstract_state.variables),
        "macs": count_macs(plainly(assembly.model), plan.input_shape)["all"],
        "optimizer": plan.optim.name,
        "workload": subject.origin,
        "data": plan.data.name,
        "feed": t.feed,
        "steps_per_call": t.steps_per_call,
        "accumulate": t.accumulate,
        "fsdp": t.fsdp,
    }


def measure(subject: Subject, effort: Effort, trace: Path | None = None) -> dict[str, Any]:
    """Measures a model.

    Args:
      subject: the model, with config and data.
      effort: how long to measure.
      trace: folder for a profile of some steps, written last; None = no profile.

    Returns:
      The dict of `facts_of(subject)`, and:

      train_ms_per_step: training step on one batch that is already on the devices.
      infer_ms_per_batch: {batch: ms}; blocks only after several batches.
      infer_latency_ms: one image, blocking each time.
      images_per_s, infer_images_per_s: throughput of training, and of inference at the larger batch.
      compile_s, compile_cached_s: tracing and compiling the step, with an empty and with a filled cache.
      trace_s: tracing alone.
      tflops, infer_tflops: achieved. An image counts 2 operations per multiply-add of `jaxvit.models.count` ('all'),
        times 3 in training; recomputation (`remat`) and augmentation are not counted.
      peak_tflops: large matrix products in the same dtype; peak_share = tflops / peak_tflops.
      memory_mb: peak memory in 10^6 bytes. memory_of tells its source: 'device' = counter of the device's allocator,
        'program' = size of the compiled step, for devices without a counter.
      program_mb: size of the compiled step.
      process_mb: peak memory of the whole process, including the measurement.
      input_share: fraction of a step spent waiting for the feed.
      input_device_ms: gather and augmentation, which are part of the step, timed alone.
      loop_overhead: fraction of the loop's time that is not a step or its feed.
      loop_ms_per_step: a step in the training loop.
      spread: {name: median, quartiles and count}, in ms.

    Raises:
      RunFailedError, jax.errors.JaxRuntimeError: the model cannot run here.
    """
    batch = subject.plan.train.batch_size
    facts = facts_of(subject)
    sizes = sorted({1, batch})
    with contextlib.ExitStack() as stack:
        stack.enter_context(runtime.fresh_program_cache())
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxvit-benchmark-"))
        bench = stack.enter_context(contextlib.closing(Bench(subject, Path(folder))))
        bench.train(2)
        device_peak = _device_peak_bytes()  # read before other measurements add to it
        things: dict[str, Runner] = {
            "train": stopwatch(bench.train),
            "fed": bench.fed,
            "loop": bench.loop,
            "input_device": stopwatch(bench.input_on_device()),
            **{f"infer_{size}": stopwatch(bench.inference(size)) for size in sizes},
        }
        things["infer_latency"] = _each_waited_for(things["infer_1"])
        products, operations = bench.products(effort.seconds / 4)
        things["products"] = stopwatch(products)
        times = time_in_turns(things, effort.rounds, effort.seconds)
        if trace:
            bench.trace_to(trace)
    calls = bench.steps_per_call
    for name in ("train", "fed", "loop"):
        times[name] = [seconds / calls for seconds in times[name]]
    ms = {name: spread(values, 1e3) for name, values in times.items()}
    median = {name: float(np.median(values)) for name, values in times.items()}
    operations_per_image = 2.0 * facts["macs"]
    peak = operations / median["products"] / 1e12
    tflops = 3 * operations_per_image * batch / median["train"] / 1e12
    facts |= {
        "train_ms_per_step": ms["train"]["median"],
        "infer_ms_per_batch": {str(size): ms[f"infer_{size}"]["median"] for size in sizes},
        "infer_latency_ms": ms["infer_latency"]["median"],
        "images_per_s": batch / median["train"],
        "infer_images_per_s": batch / median[f"infer_{batch}"],
        "compile_s": bench.compile_cold,
        "compile_cached_s": bench.compile_cached,
        "trace_s": bench.trace,
        "tflops": tflops,
        "infer_tflops": operations_per_image * batch / median[f"infer_{batch}"] / 1e12,
        "peak_tflops": peak,
        "peak_share": tflops / peak,
        "memory_mb": (device_peak or bench.program_bytes) / 1e6,
        "memory_of": "device" if device_peak else "program",
        "program_mb": bench.program_bytes / 1e6,
        "process_mb": _process_peak_bytes() / 1e6,
        "input_share": 1 - median["train"] / median["fed"],
        "input_device_ms": ms["input_device"]["median"],
        "loop_overhead": 1 - median["fed"] / median["loop"],
        "loop_ms_per_step": ms["loop"]["median"],
        "spread": ms,
        "rounds": effort.rounds,
        "seconds": effort.seconds,
    }
    return _rounded(facts)


def _each_waited_for(once: Runner) -> Runner:
    return lambda count: sum(once(1) for _ in range(count))


def _rounded(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: float(f"{value:.4g}") if type(value) is float else value for name, value in facts.items()}
