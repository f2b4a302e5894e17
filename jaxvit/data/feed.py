"""How batches get to the devices: from a split that lies there already, or as a stream that is made ahead of the step.

Both give the same batch for the same (seed, step), on any number of devices. A feed is asked for the input of a *call*:
one or several steps that the device does in one go.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxvit.data.batches import Batch, TrainOrder, evaluation_batches, gather, padded
from jaxvit.data.sources import Source, StreamedSource

Put = Callable[[Mapping[str, np.ndarray]], Mapping[str, jax.Array]]

STREAM_BATCHES = 4  # made ahead, so that memory is bounded


class ResidentFeed:
    """The whole split lies on the devices as uint8; a call's input is the numbers of its images.

    Args:
      source: the split.
      order: which images make the batch of a step.
      batch_size: images a batch.
      steps_per_call: K.
      put_split: puts the arrays on every device.
      put_call: puts {'rows': int32 [K, B], 'mask': float32 [K, B]} on the devices, split along B.
    """

    def __init__(
        self, source: Source, order: TrainOrder, batch_size: int, steps_per_call: int, *, put_split: Put, put_call: Put
    ):
        self._order, self._batch_size, self._steps, self._put = order, batch_size, steps_per_call, put_call
        self.data = put_split({"image": source.images, "label": source.labels})

    def __call__(self, step: int, count: int) -> Mapping[str, jax.Array]:
        """The input of a call of `count` steps from `step` on; what is beyond the count is never looked at."""
        parts = [padded(self._order[step + i], self._batch_size) for i in range(count)]
        parts += [parts[-1]] * (self._steps - count)
        rows = np.stack([rows for rows, _ in parts]).astype(np.int32)
        return self._put({"rows": rows, "mask": np.stack([mask for _, mask in parts])})

    @staticmethod
    def pick(data: Mapping[str, jax.Array], call: Mapping[str, jax.Array], i: jax.Array | int) -> dict[str, jax.Array]:
        """The batch of a call's i-th step; traced inside the call."""
        rows_B = call["rows"][i]
        images = jnp.take(data["image"], rows_B, axis=0, mode="clip")
        return {"image": images, "label": jnp.take(data["label"], rows_B, mode="clip"), "mask": call["mask"][i]}


class StreamFeed:
    """Batches are gathered or decoded by Grain's threads, a few ahead, and go to the devices while the step runs.

    A batch is a function of (seed, step), so the step is the whole position: a resumed run just starts there.

    Args:
      source, order, batch_size, steps_per_call: as for `ResidentFeed`.
      steps: of the whole run.
      put_call: puts {'image': [K, B, H, W, C], 'label': [K, B], 'mask': [K, B]} on the devices, split along B.
      host_transform: (step, batch) -> batch, done by the threads; None = nothing.
      shard: (index, count) of this host: it makes only its own part of each batch.
      threads: of Grain; 0 = by the number of processors.
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
        shard: tuple[int, int] = (0, 1),
        threads: int = 0,
    ):
        self._source, self._order, self._batch_size = source, order, batch_size
        self._steps_per_call, self._steps, self._put = steps_per_call, steps, put_call
        self._host_transform, self._shard = host_transform, shard
        self._threads = threads or max(1, min(16, os.cpu_count() or 1))
        self._next, self._batches = -1, iter(())
        self.data: dict[str, jax.Array] = {}

    def host_batch(self, step: int) -> Batch:
        """This host's part of the batch of a step."""
        batch = gather(self._source, self._order[step], self._batch_size)
        if self._host_transform:
            batch = self._host_transform(step, batch)
        index, count = self._shard
        own = slice(index * self._batch_size // count, (index + 1) * self._batch_size // count)
        return {name: values[own] for name, values in batch.items()} if count > 1 else batch

    def _stream(self, start: int) -> Iterator[Batch]:
        import grain

        steps = grain.MapDataset.range(start, self._steps).map(self.host_batch)
        ahead = max(STREAM_BATCHES, self._threads)
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=ahead)
        return iter(steps.to_iter_dataset(options))

    def __call__(self, step: int, count: int) -> Mapping[str, jax.Array]:
        """The input of a call of `count` steps from `step` on."""
        if step != self._next:
            self._batches = self._stream(step)
        batches = [next(self._batches) for _ in range(count)]
        self._next = step + count
        batches += [batches[-1]] * (self._steps_per_call - count)
        return self._put({name: np.stack([batch[name] for batch in batches]) for name in batches[0]})

    @staticmethod
    def pick(data: Mapping[str, jax.Array], call: Mapping[str, jax.Array], i: jax.Array | int) -> dict[str, jax.Array]:
        """The batch of a call's i-th step; traced inside the call."""
        return {name: values[i] for name, values in call.items()}


def evaluation_stream(source: Source | StreamedSource, batch_size: int) -> Iterator[Batch]:
    """As `evaluation_batches`, but decoded ahead by threads where the split is not kept decoded."""
    if isinstance(source, Source):
        yield from evaluation_batches(source, batch_size)
        return
    import grain

    def batch(i: int) -> Batch:
        return gather(source, np.arange(i * batch_size, min((i + 1) * batch_size, len(source))), batch_size)

    threads = max(1, min(16, os.cpu_count() or 1))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(STREAM_BATCHES, threads))
    yield from grain.MapDataset.range(-(-len(source) // batch_size)).map(batch).to_iter_dataset(options)
