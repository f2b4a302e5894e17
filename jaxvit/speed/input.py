"""How fast the input is, stage by stage: what `jaxvit data benchmark` measures."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxvit.data.batches import TrainOrder
from jaxvit.data.decoding import decode_records
from jaxvit.data.feed import ResidentFeed, StreamFeed
from jaxvit.data.sources import Dataset, Source, StreamedSource

SECONDS = 2.0  # of each measurement, after a warm-up


def seconds_each(once: Callable[[], Any], seconds: float = SECONDS) -> float:
    """Median duration of a call, after one that does not count; waits for what the call returns."""
    jax.block_until_ready(once())
    times, end = [], time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        started = time.perf_counter()
        jax.block_until_ready(once())
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def decoding_speed(dataset: Dataset, split: str, images: int = 4096) -> float:
    """Images a second that this process reads and decodes in a bare loop, its threads included."""
    records, rows, shape, side, damage = dataset.stored(split)
    rows = rows[:images]
    started = time.perf_counter()
    for _ in decode_records(records, rows, shape, side, damage):
        pass
    return len(rows) / (time.perf_counter() - started)


def stream_speed(source: Source | StreamedSource, batch_size: int, batches: int = 40) -> float:
    """Images a second of the streamed feed, onto the device, with nothing to train."""
    order = TrainOrder(len(source), batch_size, 0)
    feed = StreamFeed(source, order, batch_size, 1, batches + 5, put_call=lambda call: jax.device_put(dict(call)))
    for step in range(5):
        feed(step, 1)
    started = time.perf_counter()
    for step in range(5, batches + 5):
        jax.block_until_ready(feed(step, 1))
    return batches * batch_size / (time.perf_counter() - started)


def resident_seconds(source: Source, batch_size: int, transform: Callable[..., Any], steps: int = 10) -> float:
    """Seconds a step of gathering and augmenting a batch that lies on the device; `steps` of them in one call."""
    order = TrainOrder(len(source), batch_size, 0)
    feed = ResidentFeed(
        source,
        order,
        batch_size,
        steps,
        put_split=lambda arrays: jax.device_put(dict(arrays)),
        put_call=lambda call: jax.device_put(dict(call)),
        numbered=True,  # costs nothing where no transform looks at it
    )

    @jax.jit
    def run(data: Any, call: Any) -> jax.Array:
        def one(i: jax.Array, total: jax.Array) -> jax.Array:
            images, targets = transform(jax.random.fold_in(jax.random.key(0), i), i, feed.pick(data, call, i))
            return total + images.sum() + targets.sum()  # so that nothing can be left out

        return jax.lax.fori_loop(0, steps, one, jax.numpy.float32(0))

    call = feed(0, min(steps, order.steps_per_epoch))
    return seconds_each(lambda: run(feed.data, call)) / steps
