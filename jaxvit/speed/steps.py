"""What `jaxvit benchmark` measures of one model: its training step, its inference, and what they cost beside.

The training step is the very program that `jaxvit train` runs, with its donated state, on one batch that lies on the
devices; `fed` is the same step with batches from the run's own feed, and `loop` the whole training loop around it. All
are timed turn by turn, several steps between two waits.
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

from jaxvit.data.augment import evaluation_transform
from jaxvit.devices import hardware, runtime
from jaxvit.devices.sharding import make_mesh, place_batch, replicated, shard_state, split_batch
from jaxvit.errors import UsageError
from jaxvit.layers.stack import plainly
from jaxvit.models.count import count_macs, count_params
from jaxvit.run.program import StartOptions, make_feed, make_program, make_train_program
from jaxvit.speed.subject import STEPS, Subject
from jaxvit.speed.timing import Runner, spread, stopwatch, time_in_turns
from jaxvit.training.journal import Journal, JsonLines
from jaxvit.training.loop import Position, RunTracker, fit
from jaxvit.training.progress import Progress
from jaxvit.training.stopping import StopRequest

TRACED_STEPS = 10


@dataclass(frozen=True)
class Effort:
    """How long to measure: `rounds` turns for everything that is timed, each of `seconds`.

    Raises:
      UsageError: no round, or no time.
    """

    rounds: int = 5
    seconds: float = 2.0

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UsageError(f"--rounds={self.rounds}: must be 1 or more")
        if not 0 < self.seconds < float("inf"):
            raise UsageError(f"--seconds={self.seconds:g}: must be above 0")


class _Unsaved:
    """Checkpoints of a run that keeps none."""

    def save(self, *_: Any) -> None: ...

    def wait(self) -> None: ...

    def latest_step(self) -> None: ...


class Bench:
    """A run, ready to train, whose parts can be timed.

    Making it compiles the training step two times: into an empty cache of programs, and again through that cache. To be
    made within `runtime.fresh_program_cache`.

    Args:
      subject: what is measured.
      folder: for metrics and such, which nobody wants to keep.

    Attributes:
      compile_cold, compile_cached: seconds of tracing and compiling the training step, without and with the cache.
      trace: seconds of tracing alone.
      program_bytes: what the compiled training step needs on a device: arguments, results, temporaries. 0 = unknown.
      steps_per_call: steps of one call of the device; `train` and `fed` count calls.
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
        """(seconds of tracing, of that and compiling, the program), from nothing that this process remembers."""
        jax.clear_caches()
        t = self._subject.plan.train
        made = make_train_program(self._subject.assembly, self._feed, self._state, self._mesh, t.steps_per_call)
        began = time.perf_counter()
        lowered = made.lower(self._state, self._feed, self._call)
        traced = time.perf_counter()
        program = lowered.compile()
        return traced - began, time.perf_counter() - began, program

    def _take(self, steps: int) -> int:
        """The first of so many steps that follow those taken before."""
        start = self._next if self._next + steps <= STEPS else 0
        self._next = start + steps
        return start

    def train(self, calls: int) -> None:
        """So many calls of the training step on one batch."""
        for _ in range(calls):
            self._state, sums = self._program.train_step(self._state, self._call, self.steps_per_call)
        jax.block_until_ready((self._state, sums))

    def _drain(self) -> None:
        """Takes the batches that threads may have made while other things were timed: they would look free."""
        for _ in range(-(-self._feed.ahead // self.steps_per_call)):
            self._feed(self._take(self.steps_per_call), self.steps_per_call)

    def fed(self, calls: int) -> float:
        """Seconds of the same on batches from the feed."""
        self._drain()
        began = time.perf_counter()
        for _ in range(calls):
            call = self._feed(self._take(self.steps_per_call), self.steps_per_call)
            self._state, sums = self._program.train_step(self._state, call, self.steps_per_call)
        jax.block_until_ready((self._state, sums))
        return time.perf_counter() - began

    def loop(self, calls: int) -> float:
        """Seconds of so many calls in the training loop; metrics are written, nothing is evaluated or saved."""
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
        """What the devices do with the input inside the step, by itself: gathering, augmenting, targets."""
        prepare, _ = self._subject.assembly.loss(mesh=self._mesh)

        @jax.jit
        def run(step: jax.Array, data: Any, call: Any) -> Any:
            examples = prepare(step, self._feed.pick(data, call, 0))
            return examples["image"], examples["target"]

        def repeated(count: int) -> None:
            for _ in range(count):
                found = run(self._state.step, self._feed.data, self._call)
            jax.block_until_ready(found)

        return repeated

    def inference(self, batch: int) -> Callable[[int], None]:
        """Logits of so many images as they are stored, on all devices if these divide the batch, else on one."""
        plan, assembly = self._subject.plan, self._subject.assembly
        mesh = self._mesh if batch % plan.train.devices == 0 else make_mesh(1)
        # Variables of its own: the state's are given away at the next step.
        variables = jax.device_put(self._variables(), replicated(mesh))
        images, _, _ = self._source.batch(np.arange(batch) % len(self._source))
        placed = place_batch(mesh, {"image": images})["image"]
        prepare = evaluation_transform(plan.augment)
        run = jax.jit(
            lambda variables, x: assembly.apply(variables, prepare(x), train=False),
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
        """Large matrix products in the dtype used, one on each device at once; and their floating-point operations.

        The matrices are doubled until a product takes so many seconds, a twentieth at most, or they have 8,192 rows.
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
        """Writes a profile of so many calls, with batches from the feed."""
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
    """The most that was in use on a device, as its allocator counts; 0 where it does not, as on CPUs."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return max(each.get("peak_bytes_in_use", 0) for each in stats)


def _process_peak_bytes() -> int:
    """The most memory that this process has had; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def facts_of(subject: Subject) -> dict[str, Any]:
    """What is known of a subject without running it: model, sizes, data, device."""
    plan, assembly = subject.plan, subject.assembly
    t = plan.train
    return {
        "model": plan.model.name,
        "batch": t.batch_size,
        "dtype": subject.dtype,
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
      subject: what.
      effort: how long.
      trace: folder for a profile of some steps, written after all else; None = none.

    Returns:
      `facts_of` the subject; and

      train_ms_per_step: on one batch that lies on the devices.
      infer_ms_per_batch: {batch: ms}, several batches between two waits; infer_latency_ms: one image, waited for.
      images_per_s: of training; infer_images_per_s: of inference at the larger batch.
      compile_s, compile_cached_s: tracing and compiling the step, into an empty cache and through it; trace_s: of that
        tracing alone.
      tflops, infer_tflops: achieved. Counted as 2 operations for each multiply-add of `jaxvit.models.count` ('all'),
        times 3 for training; recomputation (`remat`) and augmentation count nothing.
      peak_tflops: of large matrix products in the same dtype; peak_share = tflops / peak_tflops.
      memory_mb: 10^6 bytes; of what, memory_of says: the most in use on a 'device' by its allocator's count, or what
        the compiled 'program' of the step needs, where the device does not count. program_mb: the latter, always.
        process_mb: the most that the process has had, of all, measuring included.
      input_share: part of a step's time that is waiting for the feed. input_device_ms:
        gathering and augmenting inside the step, timed by itself.
      loop_overhead: what the training loop adds to a step with its feed, as part of it; loop_ms_per_step: with it.
      spread: {name: median, quartiles and number of what was timed}, in ms.

    Raises:
      RunFailedError, jax.errors.JaxRuntimeError: it cannot be run here.
    """
    batch = subject.plan.train.batch_size
    facts = facts_of(subject)
    sizes = sorted({1, batch})
    with contextlib.ExitStack() as stack:
        stack.enter_context(runtime.fresh_program_cache())
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxvit-benchmark-"))
        bench = stack.enter_context(contextlib.closing(Bench(subject, Path(folder))))
        bench.train(2)
        device_peak = _device_peak_bytes()  # before anything but training had a share in it
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
