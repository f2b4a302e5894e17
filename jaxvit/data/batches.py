"""From a decoded split to batches: which images make which batch is a function of (seed, step) and nothing else.

Images stay uint8 here; they are normalised and augmented on the device. Every batch has the same shape: a short last
batch is padded with images that carry ``mask = 0``, so that each image of an epoch counts exactly once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from jaxvit.data.sources import Source

Batch = dict[str, np.ndarray]  # image uint8 [B, H, W, C], label int32 [B], mask float32 [B]


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Permutation of ``range(count)`` for one epoch.

    Sorting raw Philox output, rather than asking NumPy for a permutation, keeps the order the same in every NumPy
    version: only bit generators promise that.
    """
    key = hashlib.blake2b(f"order/{seed}/{epoch}".encode(), digest_size=16).digest()
    noise = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(count)
    return np.argsort(noise, kind="stable")


class TrainBatches:
    """Batches of a training split, by step.

    Args:
      source: the split.
      batch_size: images a batch.
      seed: the run's seed.
      last_batch: 'keep' pads and masks an epoch's last batch; 'drop' leaves its images out of that epoch.
    """

    def __init__(self, source: Source, batch_size: int, seed: int, last_batch: str = "keep"):
        self._source = source
        self._batch_size = batch_size
        self._seed = seed
        self.steps_per_epoch = steps_per_epoch(len(source), batch_size, last_batch)
        self._epoch = -1
        self._order = np.empty(0, np.int64)

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step (from 0)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(self._seed, epoch, len(self._source))
        chosen = self._order[position * self._batch_size : (position + 1) * self._batch_size]
        return gather(self._source, chosen, self._batch_size)


def steps_per_epoch(count: int, batch_size: int, last_batch: str = "keep") -> int:
    """Steps that one pass over `count` images takes."""
    return -(-count // batch_size) if last_batch == "keep" else count // batch_size


def evaluation_batches(source: Source, batch_size: int) -> Iterator[Batch]:
    """Every image once, in stored order; the last batch is padded and masked."""
    for start in range(0, len(source), batch_size):
        yield gather(source, np.arange(start, min(start + batch_size, len(source))), batch_size)


def gather(source: Source, chosen: np.ndarray, batch_size: int) -> Batch:
    """The chosen images as a batch of exactly `batch_size`: padding repeats the chosen ones, with mask 0."""
    padded = np.resize(chosen, batch_size)  # repeats from the start
    return {
        "image": source.images[padded],
        "label": source.labels[padded],
        "mask": (np.arange(batch_size) < len(chosen)).astype(np.float32),
    }
