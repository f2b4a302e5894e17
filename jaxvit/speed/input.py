"""Measures each stage of the input pipeline: `jaxvit data benchmark`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxvit.config.plan import dataset_of, resolve
from jaxvit.data.batches import TrainBatches, TrainOrder
from jaxvit.data.dataset import Dataset
from jaxvit.data.decoding import decode_records
from jaxvit.data.feed import ResidentFeed, StreamFeed
from jaxvit.data.parts import Source, StreamedSource
from jaxvit.run.assembly import assemble

SECONDS = 2.0  # duration of each measurement, after a warm-up


def measure_input(config: ConfigDict, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Measures the speed of each stage of a config's input pipeline, and its share of a training step.

    Args:
      config: config of a run.
      overrides: keys set on the command line; each must have an effect in this run.

    Returns:
      A dict, with numbers rounded to four digits:

      data, batch, device, cpus: the setting.
      first_batch_s: time until the first batch is ready, from the start.
      decode_images_per_s: decoding in this process.
      stream_images_per_s: the streamed feed, including the transfer to the device.
      resident_images_per_s: gathering and augmenting on the device; only if the data fits there and the device
        augments.
      input_ms: the device's part of the input, for a batch.
      step_ms: a training step that includes it.
      input_share_of_step: input_ms / step_ms.

    Raises:
      UsageError: `jaxvit.train` would refuse the config.
    """
    started = time.perf_counter()
    dataset = dataset_of(config)
    plan = resolve(config, overrides=overrides, dataset=dataset)
    source = dataset.read(plan.data.train)
    batch_size = plan.train.batch_size
    TrainBatches(source, batch_size, plan.seed)[0]
    found: dict[str, Any] = {
        "data": source.name,
        "batch": batch_size,
        "device": jax.devices()[0].device_kind,
        "cpus": os.cpu_count(),
        "first_batch_s": time.perf_counter() - started,
        "decode_images_per_s": decoding_speed(dataset, plan.data.train),
        "stream_images_per_s": stream_speed(source, batch_size),
    }
    assembly = assemble(plan)
    key, a, t = jax.random.key(0), plan.augment, plan.train
    batches = TrainBatches(source, batch_size, plan.seed, t.last_batch, numbered=a.alternates)
    batch = jax.device_put(dict(batches[0]))
    host = assembly.host_transform()
    if host:
        batch = jax.device_put(host(0, {name: np.asarray(values) for name, values in batch.items()}))
    step = jax.jit(assembly.train_step)
    state = jax.jit(assembly.create_state)()
    found["step_ms"] = 1e3 * seconds_each(lambda: step(state, batch))
    transform = partial(assembly.augment, root=key)
    if a.where == "device" and isinstance(source, Source):
        seconds = resident_seconds(source, batch_size, transform)
        found |= {"resident_images_per_s": batch_size / seconds, "input_ms": 1e3 * seconds}
    else:
        device_part = jax.jit(transform)
        found["input_ms"] = 1e3 * seconds_each(lambda: device_part(key, np.int32(0), batch))
    found["input_share_of_step"] = found["input_ms"] / found["step_ms"]
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in found.items()}


def seconds_each(once: Callable[[], Any], seconds: float = SECONDS) -> float:
    """Median duration of a call in seconds, after one warm-up call; waits for the returned arrays."""
    jax.block_until_ready(once())
    times, end = [], time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        started = time.perf_counter()
        jax.block_until_ready(once())
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def decoding_speed(dataset: Dataset, split: str, images: int = 4096) -> float:
    """Images per second that this process, with its threads, reads and decodes."""
    records, rows, shape, side, damage = dataset.stored(split)
    rows = rows[:images]
    started = time.perf_counter()
    for _ in decode_records(records, rows, shape, side, damage):
        pass
    return len(rows) / (time.perf_counter() - started)


def stream_speed(source: Source | StreamedSource, batch_size: int, batches: int = 40) -> float:
    """Images per second that the streamed feed puts on the device, without training."""
    order = TrainOrder(len(source), batch_size, 0)
    feed = StreamFeed(source, order, batch_size, 1, batches + 5, put_call=lambda call: jax.device_put(dict(call)))
    for step in range(5):
        feed(step, 1)
    started = time.perf_counter()
    for step in range(5, batches + 5):
        jax.block_until_ready(feed(step, 1))
    return batches * batch_size / (time.perf_counter() - started)


def resident_seconds(source: Source, batch_size: int, transform: Callable[..., Any], steps: int = 10) -> float:
    """Seconds per step to gather and augment a batch of resident data; one call runs `steps` steps."""
    order = TrainOrder(len(source), batch_size, 0)
    feed = ResidentFeed(
        source,
        order,
        batch_size,
        steps,
        put_split=lambda arrays: jax.device_put(dict(arrays)),
        put_call=lambda call: jax.device_put(dict(call)),
        numbered=True,  # free if no transform uses the numbers
    )

    @jax.jit
    def run(data: Any, call: Any) -> jax.Array:
        def one(i: jax.Array, total: jax.Array) -> jax.Array:
            images, targets = transform(jax.random.fold_in(jax.random.key(0), i), i, feed.pick(data, call, i))
            return total + images.sum() + targets.sum()  # so that XLA cannot remove any work

        return jax.lax.fori_loop(0, steps, one, jax.numpy.float32(0))

    call = feed(0, min(steps, order.steps_per_epoch))
    return seconds_each(lambda: run(feed.data, call)) / steps
