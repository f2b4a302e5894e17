"""From a split to batches: which images make which batch is a function of (seed, step) and nothing else.

Images stay uint8 here; they are normalised and augmented on the device. Every batch has the same shape: a short last
batch is padded with images that carry ``mask = 0``, so that each image of an epoch counts exactly once.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from jaxvit.data.balance import sampled_order
from jaxvit.data.parts import Source, StreamedSource

# image uint8 [B, H, W, C], label int32 [B], mask float32 [B]; where asked for number int32 [B], in the split
Batch = dict[str, np.ndarray]


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Permutation of ``range(count)`` for one epoch.

    Sorting raw Philox output, rather than asking NumPy for a permutation, keeps the order the same in every NumPy
    version: only bit generators promise that.
    """
    key = hashlib.blake2b(f"order/{seed}/{epoch}".encode(), digest_size=16).digest()
    noise = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(count)
    return np.argsort(noise, kind="stable")


class TrainOrder:
    """Which images make the batch of a step.

    Args:
      count: images in the split.
      batch_size: images a batch.
      seed: the run's seed.
      last_batch: 'keep' pads and masks an epoch's last batch; 'drop' leaves its images out of that epoch.
      repeats: repeated augmentation (Hoffer et al., 2020): each image stands this many times in its batch. An epoch
        keeps its number of steps, so it sees one image in `repeats`.
      sampling: (labels [N], weight of each class): images are drawn by their class's weight, see
        `jaxvit.data.balance.sampled_order`; None = each once an epoch.
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

    def _of_epoch(self, epoch: int) -> np.ndarray:
        if self._sampling:
            order = sampled_order(*self._sampling, self._seed, epoch)
        else:
            order = epoch_order(self._seed, epoch, self._count)
        return np.repeat(order, self._repeats)[: self._count] if self._repeats > 1 else order

    def __getitem__(self, step: int) -> np.ndarray:
        """Numbers of the images of a step (from 0); fewer than a batch where it is padded."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return self._epochs(epoch)[position * self._batch_size : (position + 1) * self._batch_size]


class TrainBatches:
    """Batches of a training split, by step; the arguments are those of `TrainOrder` and of `gather`."""

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
        """The batch of a step (from 0)."""
        return gather(self._source, self.order[step], self._batch_size, numbered=self._numbered)


def steps_per_epoch(count: int, batch_size: int, last_batch: str = "keep") -> int:
    """Steps that one pass over `count` images takes."""
    return -(-count // batch_size) if last_batch == "keep" else count // batch_size


def evaluation_batches(source: Source | StreamedSource, batch_size: int, own: slice = slice(None)) -> Iterator[Batch]:
    """Every image once, in stored order, this process's rows of each batch; the last one is padded and masked."""
    for start in range(0, len(source), batch_size):
        yield gather(source, np.arange(start, min(start + batch_size, len(source))), batch_size, own)


def padded(chosen: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """(numbers [B], mask float32 [B]): padding repeats the chosen ones from the start, with mask 0."""
    return np.resize(chosen, batch_size), (np.arange(batch_size) < len(chosen)).astype(np.float32)


def gather(
    source: Source | StreamedSource,
    chosen: np.ndarray,
    batch_size: int,
    own: slice = slice(None),
    *,
    numbered: bool = False,
) -> Batch:
    """The chosen images as a batch of exactly `batch_size`, or this process's own rows of it.

    Those that cannot be decoded have mask 0. A batch that is `numbered` tells the images' numbers.
    """
    rows, mask = padded(chosen, batch_size)
    images, labels, good = source.batch(rows[own])
    batch = {"image": images, "label": labels, "mask": mask[own] * good.astype(np.float32)}
    return batch | {"number": rows[own].astype(np.int32)} if numbered else batch
