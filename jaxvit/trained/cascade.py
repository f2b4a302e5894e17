"""A cascade: few tokens for every image, and more only where the answer is unsure.

Answering easy images early is as old as Viola and Jones 2001; with the probability of the predicted class as the
measure of certainty it is, for example, in Wang et al. 2021 (Dynamic transformers, arXiv:2105.15075), who also use more
tokens for harder images. The second stage computes everything; it reuses nothing of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import jax
import numpy as np

from jaxvit.errors import UsageError
from jaxvit.models.count import count_macs
from jaxvit.trained.inference import Outcomes, Predictor
from jaxvit.trained.load import Loaded
from jaxvit.trained.prediction import softmax


@dataclass(frozen=True)
class Cascade:
    """Two stages of one model.

    Attributes:
      few, more: the model with few learned tokens and with more.
      threshold: an image goes on to `more` if the probability of its class by `few` is below this.
    """

    few: Loaded
    more: Loaded
    threshold: float

    def mean_macs(self, share: float) -> float:
        """Multiply-adds per image, if a share of the images goes on to the second stage."""
        few, more = (count_macs(each.model, each.input_shape)["all"] for each in (self.few, self.more))
        return few + share * more


def parse_cascade(loaded: Loaded, text: str, threshold: float) -> Cascade:
    """Makes a cascade of '4,16': numbers of learned tokens that the model was trained for.

    Raises:
      UsageError: the text is not two rising numbers, the model was not trained for them, or the threshold is not from 0
        to 1.
    """
    words = text.split(",")
    if len(words) != 2 or not all(word.isascii() and word.isdigit() for word in words):
        raise UsageError(f"--cascade={text}: must be two numbers of tokens, such as --cascade=4,16")
    few, more = map(int, words)
    if few >= more:
        raise UsageError(f"--cascade={text}: the first number must be the smaller one")
    if not 0 <= threshold <= 1:
        raise UsageError(f"--threshold={threshold:g}: must be from 0 to 1, a probability")
    return Cascade(
        loaded.with_tokens(few, f"--cascade={text}"), loaded.with_tokens(more, f"--cascade={text}"), threshold
    )


class CascadePredictor(Predictor):
    """A `Predictor` that computes unsure images again with more tokens.

    Args:
      cascade: the two stages.
      batch_size, devices: as in `Predictor`. The second stage uses smaller batches for few images, down to an eighth.

    Attributes:
      seen, again: numbers of images so far that ran the first stage, and that also ran the second.
    """

    def __init__(self, cascade: Cascade, batch_size: int, devices: int = 0):
        super().__init__(cascade.few, batch_size, devices)
        self._cascade, self._devices = cascade, devices
        self._more: dict[int, Predictor] = {}
        self.seen = self.again = 0

    def logits(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields the scores of each batch: see `Predictor.logits`."""
        for images in batches:
            found_BK = np.array(next(super().logits([images])))
            unsure_B = softmax(found_BK).max(axis=1, initial=0.0) < self._cascade.threshold
            self.seen, self.again = self.seen + len(images), self.again + int(unsure_B.sum())
            if unsure_B.any():
                found_BK[unsure_B] = next(self._second(int(unsure_B.sum())).logits([images[unsure_B]]))
            yield found_BK

    def _second(self, count: int) -> Predictor:
        size = max(-(-self.batch_size // 8), 1 << (count - 1).bit_length())
        size = min(size, self.batch_size)
        if size not in self._more:
            self._more[size] = Predictor(self._cascade.more, size, self._devices)
        return self._more[size]


def combined(few: Outcomes, more: Outcomes, threshold: float) -> tuple[Outcomes, float]:
    """Returns (the outcomes of a cascade, the share of images that went on to the second stage)."""
    unsure_N = few.confidence < threshold
    values = {f.name: np.where(unsure_N, getattr(more, f.name), getattr(few, f.name)) for f in fields(Outcomes)}
    return Outcomes(**values), float(unsure_N.mean())


def choose_threshold(few: Outcomes, more: Outcomes, max_drop: float) -> float:
    """The smallest threshold at which the cascade is at most `max_drop` less accurate than its second stage alone.

    Args:
      few, more: outcomes of the two stages on the same images, which are not those of the test.
      max_drop: share of the images, such as .003.

    Returns:
      A probability, 0 to 1; 0 = the first stage is accurate enough for all images. At 1, only images with a
      probability of exactly 1 stay.
    """
    order = np.argsort(few.confidence, kind="stable")
    right_few, right_more = (few.rank == 0)[order], (more.rank == 0)[order]
    # After k: the k least certain images go on.
    gained = np.concatenate([[0], np.cumsum(right_more.astype(int) - right_few.astype(int))])
    needed = right_more.sum() - max_drop * len(order) - right_few.sum()
    thresholds = np.concatenate([few.confidence[order], [1.0]])
    for k, threshold in enumerate(thresholds):
        tied = k > 0 and threshold == thresholds[k - 1]  # these go on together or not at all
        if not tied and gained[k] >= needed - 1e-9:
            return 0.0 if k == 0 else float(threshold)
    return 1.0


def make_predictor(cascade: Cascade) -> Callable[..., Predictor]:
    """A function like the class `Predictor`, for `jaxvit.trained.predict.read_and_compute`."""

    def make(
        loaded: Loaded, batch_size: int, devices: int, compute: Callable[[Any, jax.Array], jax.Array] | None
    ) -> CascadePredictor:
        del loaded, compute
        return CascadePredictor(cascade, batch_size, devices)

    return make
