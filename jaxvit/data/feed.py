"""How batches get to the devices: from a split that lies there already, or as a stream that is made ahead of the step.

Both give the same batch for the same (seed, step), on any number of devices. A feed is asked for the input of a *call*:
one or several steps that the device does in one go.
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

STREAM_BATCHES = 4  # made ahead, so that memory is bounded


class ResidentFeed:
    """The whole split lies on the devices as uint8; a call's input is the numbers of its images.

    Args:
      source: the split.
      orders: which images make the batch of a step; several for as many runs that are trained together.
      batch_size: images a batch.
      steps_per_call: K.
      put_split: puts the arrays on every device.
      put_call: puts {'rows': int32 [K, B], 'mask': float32 [K, B]} on the devices, split along B; [K, R, B] for R runs.
      own: this process's rows of a batch; it hands over nothing else.
      numbered: a batch has 'number' too, the images' numbers in the split.

    Attributes:
      ahead: batches that may have been made before they are asked for.
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
        """The input of a call of `count` steps from `step` on; what is beyond the count is never looked at."""
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
    """Batches are gathered or decoded by Grain's threads, a few ahead, and go to the devices while the step runs.

    A batch is a function of (seed, step), so the step is the whole position: a resumed run just starts there.

    Args:
      source, order, batch_size, steps_per_call: as for `ResidentFeed`.
      steps: of the whole run.
      put_call: puts {'image': [K, B, H, W, C], 'label': [K, B], 'mask': [K, B]} on the devices, split along B.
      host_transform: (step, batch) -> batch, done by the threads; None = nothing.
      own: this process's rows of a batch; it makes and hands over nothing else.
      numbered: as of `ResidentFeed`.
      threads: of Grain; 0 = by the number of processors.

    Attributes:
      ahead: as of `ResidentFeed`.
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
        self._start, self._next = -1, -1  # of the last call; the step after it
        self._recent: list[Batch] = []
        self._batches: Iterator[Batch] = iter(())
        self.data: dict[str, jax.Array] = {}

    def host_batch(self, step: int) -> Batch:
        """This process's rows of the batch of a step."""
        batch = gather(self._source, self._order[step], self._batch_size, self._own, numbered=self._numbered)
        return self._host_transform(step, batch) if self._host_transform else batch

    def _stream(self, start: int) -> Iterator[Batch]:
        import grain

        steps = grain.MapDataset.range(start, self._steps).map(self.host_batch)
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=self.ahead)
        return iter(steps.to_iter_dataset(options))

    def __call__(self, step: int, count: int) -> Mapping[str, jax.Array]:
        """The input of a call of `count` steps from `step` on."""
        if step == self._start:  # asked again, as a start does that compiles with its first batch
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
    """As `evaluation_batches`, but decoded ahead by threads where the split is not kept decoded."""
    if isinstance(source, Source):
        yield from evaluation_batches(source, batch_size, own)
        return
    import grain

    def batch(i: int) -> Batch:
        return gather(source, np.arange(i * batch_size, min((i + 1) * batch_size, len(source))), batch_size, own)

    threads = max(1, min(16, os.cpu_count() or 1))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(STREAM_BATCHES, threads))
    yield from grain.MapDataset.range(-(-len(source) // batch_size)).map(batch).to_iter_dataset(options)
