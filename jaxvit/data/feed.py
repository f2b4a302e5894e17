"""Two feeds bring batches to the devices: from a split in device memory, or as a stream of prefetched batches.

Both give the same batch for the same (seed, step), on any number of devices. A feed returns the input of a *call*: one
or several steps that run in one compiled program.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxvit.data.batches import Batch, TrainOrder, evaluation_batches, gather, padded
from jaxvit.data.parts import Source, StreamedSource

Put = Callable[[Mapping[str, np.ndarray]], Mapping[str, jax.Array]]

STREAM_BATCHES = 4  # batches to prefetch; bounds the memory


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


class StreamFeed:
    """Gathers or decodes batches in Grain's threads and copies them to the devices while earlier steps run.

    A batch depends only on (seed, step), so the step is the only state: a resumed run starts the stream there.

    Args:
      source, order, batch_size, steps_per_call: see `ResidentFeed`.
      steps: number of steps of the whole run.
      put_call: copies {'image': [K, B, H, W, C], 'label': [K, B], 'mask': [K, B]} to the devices, sharded along B.
      host_transform: function (step, batch) -> batch that the threads apply; None = none.
      own: the rows of a batch that this process provides.
      numbered: see `ResidentFeed`.
      threads: number of Grain threads; 0 = one per core, at most 16.

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
    ):
        self._source, self._order, self._batch_size = source, order, batch_size
        self._steps_per_call, self._steps, self._put = steps_per_call, steps, put_call
        self._host_transform, self._own, self._numbered = host_transform, own, numbered
        self._threads = threads or max(1, min(16, os.cpu_count() or 1))
        self.ahead = max(STREAM_BATCHES, self._threads)
        self._start, self._next = -1, -1  # first step of the last call; the step after it
        self._recent: list[Batch] = []
        self._batches: Iterator[Batch] = iter(())
        self.data: dict[str, jax.Array] = {}

    def host_batch(self, step: int) -> Batch:
        """Returns this process's rows of the batch of a step."""
        batch = gather(self._source, self._order[step], self._batch_size, self._own, numbered=self._numbered)
        return self._host_transform(step, batch) if self._host_transform else batch

    def _stream(self, start: int) -> Iterator[Batch]:
        import grain

        steps = grain.MapDataset.range(start, self._steps).map(self.host_batch)
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=self.ahead)
        return iter(steps.to_iter_dataset(options))

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


def evaluation_stream(source: Source | StreamedSource, batch_size: int, own: slice = slice(None)) -> Iterator[Batch]:
    """Yields the batches of `evaluation_batches`; threads decode ahead if the split is a `StreamedSource`."""
    if isinstance(source, Source):
        yield from evaluation_batches(source, batch_size, own)
        return
    import grain

    def batch(i: int) -> Batch:
        return gather(source, np.arange(i * batch_size, min((i + 1) * batch_size, len(source))), batch_size, own)

    threads = max(1, min(16, os.cpu_count() or 1))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(STREAM_BATCHES, threads))
    yield from grain.MapDataset.range(-(-len(source) // batch_size)).map(batch).to_iter_dataset(options)
