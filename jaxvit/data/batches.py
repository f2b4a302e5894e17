"""Turns a split into batches. The images of a batch depend only on (seed, step).

Images stay uint8 here; they are normalised and augmented on the device. Every batch has the same shape: a short last
batch is padded with images that carry ``mask = 0``, so that each image of an epoch counts exactly once.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxvit.data.balance import sampled_order
from jaxvit.data.parts import Source, StreamedSource

# image uint8 [B, H, W, C], label int32 [B], mask float32 [B], optionally number int32 [B]: the index in the split
Batch = dict[str, np.ndarray]


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Returns a permutation of ``range(count)`` for one epoch.

    It sorts raw Philox output instead of calling `numpy.random.Generator.permutation`: NumPy guarantees the same
    stream in every version only for bit generators.
    """
    key = hashlib.blake2b(f"order/{seed}/{epoch}".encode(), digest_size=16).digest()
    noise = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(count)
    return np.argsort(noise, kind="stable")


class TrainOrder:
    """Maps a training step to the indices of its images.

    Args:
      count: images in the split.
      batch_size: images per batch.
      seed: the run's seed.
      last_batch: 'keep' pads and masks an epoch's last batch; 'drop' skips the images left over at its end.
      repeats: repeated augmentation (Hoffer et al., 2020): each image occurs this many times in its batch. The number
        of steps per epoch stays the same, so an epoch uses one in `repeats` images.
      sampling: (labels [N], weight of each class): draws images in proportion to their class's weight, see
        `jaxvit.data.balance.sampled_order`; None = each image once per epoch.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        last_batch: str = "keep",
        repeats: int = 1,
        sampling: tuple[np.ndarray, Sequence[float]] | None = None,
    ):
        self._sampling = sampling
        self._count, self._batch_size, self._seed, self._repeats = count, batch_size, seed, repeats
        self.steps_per_epoch = steps_per_epoch(count, batch_size, last_batch)
        self._epochs = functools.lru_cache(maxsize=2)(self._of_epoch)  # safe to use from several threads

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_epochs"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._epochs = functools.lru_cache(maxsize=2)(self._of_epoch)

    def _of_epoch(self, epoch: int) -> np.ndarray:
        if self._sampling:
            order = sampled_order(*self._sampling, self._seed, epoch)
        else:
            order = epoch_order(self._seed, epoch, self._count)
        return np.repeat(order, self._repeats)[: self._count] if self._repeats > 1 else order

    def __getitem__(self, step: int) -> np.ndarray:
        """Returns the indices of the images of a step (from 0): fewer than `batch_size` for a batch to pad."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return self._epochs(epoch)[position * self._batch_size : (position + 1) * self._batch_size]


class TrainBatches:
    """Batches of a training split, indexed by step. For the arguments see `TrainOrder` and `gather`."""

    def __init__(
        self,
        source: Source | StreamedSource,
        batch_size: int,
        seed: int,
        last_batch: str = "keep",
        repeats: int = 1,
        sampling: tuple[np.ndarray, Sequence[float]] | None = None,
        *,
        numbered: bool = False,
    ):
        self._source = source
        self._batch_size, self._numbered = batch_size, numbered
        self.order = TrainOrder(len(source), batch_size, seed, last_batch, repeats, sampling)
        self.steps_per_epoch = self.order.steps_per_epoch

    def __getitem__(self, step: int) -> Batch:
        """Returns the batch of a step (from 0)."""
        return gather(self._source, self.order[step], self._batch_size, numbered=self._numbered)


def steps_per_epoch(count: int, batch_size: int, last_batch: str = "keep") -> int:
    """Returns the number of steps in one pass over `count` images."""
    return -(-count // batch_size) if last_batch == "keep" else count // batch_size


def evaluation_batches(source: Source | StreamedSource, batch_size: int, own: slice = slice(None)) -> Iterator[Batch]:
    """Yields every image once, in stored order: this process's rows of each batch. The last batch is padded."""
    for start in range(0, len(source), batch_size):
        yield gather(source, np.arange(start, min(start + batch_size, len(source))), batch_size, own)


def padded(chosen: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (indices [B], mask float32 [B]): repeats `chosen` from its start up to B, with mask 0."""
    return np.resize(chosen, batch_size), (np.arange(batch_size) < len(chosen)).astype(np.float32)


def gather(
    source: Source | StreamedSource,
    chosen: np.ndarray,
    batch_size: int,
    own: slice = slice(None),
    *,
    numbered: bool = False,
) -> Batch:
    """Returns a batch of exactly `batch_size` images, or this process's rows of it.

    Args:
      source: the split.
      chosen: indices of the images; the batch is padded if there are fewer than `batch_size`.
      batch_size: images in the batch.
      own: the rows of this process.
      numbered: adds 'number', the indices, to the batch.

    Returns:
      The batch. Padding and images that cannot be decoded have mask 0.
    """
    rows, mask = padded(chosen, batch_size)
    images, labels, good = source.batch(rows[own])
    batch = {"image": images, "label": labels, "mask": mask[own] * good.astype(np.float32)}
    return batch | {"number": rows[own].astype(np.int32)} if numbered else batch
