"""Runs a trained model on many images: in batches of one shape, on all devices, ahead of the caller.

`Outcomes` keeps a few numbers per image from which all metrics can be computed, instead of its K scores, so memory does
not grow with the number of classes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import jax
import numpy as np
import scipy.special

from jaxvit.data.ahead import in_threads
from jaxvit.data.parts import Source, StreamedSource
from jaxvit.devices.hardware import device_errors, memory_of_device
from jaxvit.devices.runtime import forward_options
from jaxvit.devices.sharding import make_mesh, place_batch, replicate
from jaxvit.errors import RunFailedError, UsageError
from jaxvit.trained.adapted import AdaptedSource
from jaxvit.trained.load import Loaded
from jaxvit.trained.prediction import check_finite

AHEAD = 2  # batches that are dispatched before the host reads an earlier result


@dataclass(frozen=True)
class Outcomes:
    """Predictions of a model for N labelled images.

    Attributes:
      index: int [N], index of the image in its split.
      labels: int [N], the true class.
      predicted: int [N], the output with the largest score, the lowest of ties; may exceed the classes.
      confidence: [N], probability of `predicted`.
      label_probability: [N], probability of the true class.
      rank: int [N], rank of the true class among the outputs; 0 = it is predicted.
      loss: [N], cross-entropy in nats.
    """

    index: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    label_probability: np.ndarray
    rank: np.ndarray
    loss: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def refuse_batch(loaded: Loaded, batch_size: int, devices: int = 0) -> None:
    """Raises UsageError if a batch of this size cannot fit into device memory; `devices`: 0 = all."""
    size = -(-batch_size // (devices or jax.local_device_count())) * math.prod(loaded.image_shape)
    room = memory_of_device()
    if batch_size < 1:
        raise UsageError(f"batches of {batch_size} images: must be of 1 or more; name another --batch_size")
    if room and size > room:
        gigabytes = f"{size / 2**30:,.1f} GiB of memory on a device that has {room / 2**30:,.1f} GiB"
        raise UsageError(f"batches of {batch_size} images take {gigabytes}; name a smaller --batch_size")


class Predictor:
    """Computes the scores of any number of images; compiles the model once, for one batch size.

    Args:
      loaded: the trained model.
      batch_size: images per batch, rounded up to a multiple of the number of devices.
      devices: number of this process's devices; 0 = all.
      compute: function of (variables, uint8 images) that returns [B, K]; None = `Loaded.apply`, the scores.

    Attributes:
      batch_size: the rounded batch size.
      places: K, number of outputs per image.

    Raises:
      UsageError: the batch cannot fit into device memory.
    """

    def __init__(
        self,
        loaded: Loaded,
        batch_size: int,
        devices: int = 0,
        compute: Callable[[Any, jax.Array], jax.Array] | None = None,
    ):
        compute = compute or loaded.apply
        count = devices or jax.local_device_count()
        refuse_batch(loaded, batch_size, count)
        self._mesh = make_mesh(count)
        self.batch_size = -(-batch_size // count) * count
        self._variables = replicate(self._mesh, loaded.variables)
        self._run = jax.jit(compute, compiler_options=forward_options())
        batch = jax.ShapeDtypeStruct((self.batch_size, *loaded.image_shape), np.uint8)
        self.places: int = jax.eval_shape(compute, loaded.variables, batch).shape[-1]

    def logits(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields the scores, float32 [n, K], of each batch, uint8 [n, *image_shape] with n up to `batch_size`.

        Raises:
          RunFailedError: the batch does not fit into device memory, the device fails, or scores are not finite.
        """
        waiting: deque[tuple[int, jax.Array]] = deque()
        with device_errors({"a smaller --batch_size, now": self.batch_size}):
            for images in batches:
                padding = np.zeros((self.batch_size - len(images), *images.shape[1:]), np.uint8)
                placed = place_batch(self._mesh, {"image": np.concatenate([images, padding])})
                waiting.append((len(images), self._run(self._variables, placed["image"])))
                if len(waiting) > AHEAD:
                    yield _fetch(*waiting.popleft())
            while waiting:
                yield _fetch(*waiting.popleft())

    def outcomes(self, source: Source | StreamedSource | AdaptedSource) -> Outcomes:
        """Returns the outcome of every image of a split, once, for any batch size and number of devices.

        Images that cannot be decoded are left out if `data.on_error` is 'skip'.

        Raises:
          RunFailedError: no image can be decoded, or an error of `logits`.
        """
        waiting: deque[tuple[np.ndarray, np.ndarray, np.ndarray]] = deque()

        def batch(number: int) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
            start = number * self.batch_size
            rows = np.arange(start, min(start + self.batch_size, len(source)))
            images, labels, good = source.batch(rows)
            return images, (rows, labels, good)

        def batches() -> Iterator[np.ndarray]:
            count = -(-len(source) // self.batch_size)
            stored = source.source if isinstance(source, AdaptedSource) else source
            decoded = in_threads(batch, 0, count) if isinstance(stored, StreamedSource) else map(batch, range(count))
            for images, facts in decoded:
                waiting.append(facts)
                yield images

        parts = []
        for logits in self.logits(batches()):
            rows, labels, good = waiting.popleft()
            parts.append(judge(logits[good], labels[good], rows[good]))
        if not any(map(len, parts)):
            raise RunFailedError(f"{source.name}: not one of its images can be decoded")
        merged = {f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Outcomes)}
        return Outcomes(**merged)


def _fetch(count: int, logits_BK: jax.Array) -> np.ndarray:
    logits_BK = np.asarray(logits_BK)[:count]
    return check_finite(logits_BK)


def judge(logits_NK: np.ndarray, labels_N: np.ndarray, index_N: np.ndarray) -> Outcomes:
    """Compares scores with true classes, in float64. If scores are equal, the lower class ranks first."""
    logits_NK = logits_NK.astype(np.float64)
    rows = np.arange(len(labels_N))
    log_probabilities_NK = scipy.special.log_softmax(logits_NK, axis=1)
    own_N1 = logits_NK[rows, labels_N][:, None]
    before_NK = (logits_NK > own_N1) | ((logits_NK == own_N1) & (np.arange(logits_NK.shape[1]) < labels_N[:, None]))
    predicted_N = logits_NK.argmax(axis=1)
    return Outcomes(
        index=index_N,
        labels=labels_N,
        predicted=predicted_N,
        confidence=np.exp(log_probabilities_NK[rows, predicted_N]),
        label_probability=np.exp(log_probabilities_NK[rows, labels_N]),
        rank=before_NK.sum(axis=1),
        loss=-log_probabilities_NK[rows, labels_N],
    )
