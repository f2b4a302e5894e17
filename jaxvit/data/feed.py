"""Two feeds bring batches to the devices: from a split in device memory, or as a stream of prefetched batches.

Both give the same batch for the same (seed, step), on any number of devices. A feed returns the input of a *call*: one
or several steps that run in one compiled program.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from jaxvit.data.ahead import BATCHES, in_processes, in_threads, processes_for, threads_for
from jaxvit.data.batches import Batch, TrainOrder, evaluation_batches, gather, padded
from jaxvit.data.parts import Source, StreamedSource

Put = Callable[[Mapping[str, np.ndarray]], Mapping[str, jax.Array]]


class ResidentFeed:
    """Keeps the whole split on the devices as uint8; the input of a call is the indices of its images.

    Args:
      source: the split.
      orders: the images of each step; a sequence of R orders trains R runs together.
      batch_size: B, images per batch.
      steps_per_call: K.
      put_split: copies the arrays of the split to every device.
      put_call: copies {'rows': int32 [K, B], 'mask': float32 [K, B]} to the devices, sharded along B; the shapes are
        [K, R, B] for R runs.
      own: the rows of a batch that this process provides.
      numbered: adds 'number', the indices in the split, to each batch.

    Attributes:
      ahead: number of batches that may be prefetched.
      data: the arrays on the devices.
    """

    ahead = 0

    def __init__(
        self,
        source: Source,
        orders: TrainOrder | Sequence[TrainOrder],
        batch_size: int,
        steps_per_call: int,
        *,
        put_split: Put,
        put_call: Put,
        own: slice = slice(None),
        numbered: bool = False,
    ):
        self._orders, self._batch_size, self._steps, self._put = orders, batch_size, steps_per_call, put_call
        self._own, self._numbered = own, numbered
        self.data = put_split({"image": np.asarray(source.images), "label": source.labels})

    def __call__(self, step: int, count: int) -> Mapping[str, jax.Array]:
        """Returns the input of a call of `count` steps, starting at `step`; entries past `count` are padding."""
        if isinstance(self._orders, TrainOrder):
            return self._put(self._rows(self._orders, step, count))
        each = [self._rows(order, step, count) for order in self._orders]
        return self._put({name: np.stack([rows[name] for rows in each], axis=1) for name in each[0]})

    def _rows(self, order: TrainOrder, step: int, count: int) -> dict[str, np.ndarray]:
        parts = [padded(order[step + i], self._batch_size) for i in range(count)]
        parts += [parts[-1]] * (self._steps - count)
        rows = np.stack([rows[self._own] for rows, _ in parts]).astype(np.int32)
        return {"rows": rows, "mask": np.stack([mask[self._own] for _, mask in parts])}

    def pick(
        self, data: Mapping[str, jax.Array], call: Mapping[str, jax.Array], i: jax.Array | int
    ) -> dict[str, jax.Array]:
        """The batch of a call's i-th step; traced inside the call."""
        rows_B = call["rows"][i]
        images = jnp.take(data["image"], rows_B, axis=0, mode="clip")
        batch = {"image": images, "label": jnp.take(data["label"], rows_B, mode="clip"), "mask": call["mask"][i]}
        return batch | {"number": rows_B} if self._numbered else batch


@dataclass(frozen=True)
class HostBatches:
    """The batches of a stream by number, as a function that other processes can call.

    Attributes:
      source: the split.
      order: the images of each training step; None = those of each evaluation batch, in stored order.
      batch_size: images per batch.
      own: the rows of a batch that this process provides.
      numbered: see `ResidentFeed`.
    """

    source: Source | StreamedSource
    order: TrainOrder | None
    batch_size: int
    own: slice = field(default_factory=lambda: slice(None))
    numbered: bool = False

    def __call__(self, number: int) -> Batch:
        """Returns this process's rows of a batch."""
        if self.order is None:
            start = number * self.batch_size
            chosen = np.arange(start, min(start + self.batch_size, len(self.source)))
        else:
            chosen = self.order[number]
        return gather(self.source, chosen, self.batch_size, self.own, numbered=self.numbered)


class StreamFeed:
    """Gathers or decodes batches in Grain's threads or processes, and copies them to the devices while steps run.

    A batch depends only on (seed, step), so the step is the only state: a resumed run starts the stream there.

    Args:
      source, order, batch_size, steps_per_call: see `ResidentFeed`.
      steps: number of steps of the whole run.
      put_call: copies {'image': [K, B, H, W, C], 'label': [K, B], 'mask': [K, B]} to the devices, sharded along B.
      host_transform: function (step, batch) -> batch that the threads apply; None = none.
      own: the rows of a batch that this process provides.
      numbered: see `ResidentFeed`.
      threads: number of Grain threads; 0 = one per core, at most 16.
      workers: number of processes that decode, as in the config key `data.workers`.

    Attributes:
      ahead: number of batches that may be prefetched.
    """

    def __init__(
        self,
        source: Source | StreamedSource,
        order: TrainOrder,
        batch_size: int,
        steps_per_call: int,
        steps: int,
        *,
        put_call: Put,
        host_transform: Callable[[int, Batch], Batch] | None = None,
        own: slice = slice(None),
        numbered: bool = False,
        threads: int = 0,
        workers: int = -1,
    ):
        self._batches_of = HostBatches(source, order, batch_size, own, numbered)
        self._steps_per_call, self._steps, self._put = steps_per_call, steps, put_call
        self._host_transform = host_transform
        self._threads, self._processes = threads_for(threads), _processes(source, workers)
        self.ahead = max(BATCHES, self._threads, 3 * self._processes)
        self._start, self._next = -1, -1  # first step of the last call; the step after it
        self._recent: list[Batch] = []
        self._batches: Iterator[Batch] = iter(())
        self.data: dict[str, jax.Array] = {}

    def host_batch(self, step: int) -> Batch:
        """Returns this process's rows of the batch of a step."""
        batch = self._batches_of(step)
        return self._host_transform(step, batch) if self._host_transform else batch

    def _stream(self, start: int) -> Iterator[Batch]:
        if not self._processes:
            return in_threads(self.host_batch, start, self._steps, self._threads)
        decoded = _in_processes(self._batches_of, start, self._steps, self._processes)
        transform = self._host_transform
        return (transform(step, b) if transform else b for step, b in enumerate(decoded, start))

    def __call__(self, step: int, count: int) -> Mapping[str, jax.Array]:
        """Returns the input of a call of `count` steps, starting at `step`."""
        if step == self._start:  # the same call again, after a start that compiles with its first batch
            self._batches = itertools.chain(self._recent, self._batches)
        elif step != self._next:
            self._batches = self._stream(step)
        self._recent = [next(self._batches) for _ in range(count)]
        self._start, self._next = step, step + count
        batches = self._recent + [self._recent[-1]] * (self._steps_per_call - count)
        return self._put({name: np.stack([batch[name] for batch in batches]) for name in batches[0]})

    @staticmethod
    def pick(data: Mapping[str, jax.Array], call: Mapping[str, jax.Array], i: jax.Array | int) -> dict[str, jax.Array]:
        """The batch of a call's i-th step; traced inside the call."""
        return {name: values[i] for name, values in call.items()}


def evaluation_stream(
    source: Source | StreamedSource, batch_size: int, own: slice = slice(None), workers: int = -1
) -> Iterator[Batch]:
    """Yields the batches of `evaluation_batches`; a `StreamedSource` is decoded ahead by threads or processes.

    Args:
      source: the split.
      batch_size: images per batch.
      own: the rows of a batch that this process provides.
      workers: number of processes that decode, as in the config key `data.workers`.
    """
    if isinstance(source, Source):
        yield from evaluation_batches(source, batch_size, own)
        return
    make, count = HostBatches(source, None, batch_size, own), -(-len(source) // batch_size)
    processes = _processes(source, workers)
    yield from _in_processes(make, 0, count, processes) if processes else in_threads(make, 0, count)


def _processes(source: Source | StreamedSource, workers: int) -> int:
    """Number of processes that decode; 0 = threads, or the split is decoded already."""
    return processes_for(workers) if isinstance(source, StreamedSource) else 0


def _in_processes(make: HostBatches, start: int, stop: int, processes: int) -> Iterator[Batch]:
    assert isinstance(make.source, StreamedSource)
    return in_processes(make, make.source, start, stop, processes)
