"""Classes of unequal size: their counts, and weights that make up for them.

A class's weight multiplies its images' share of the loss, or how often they are drawn. Weights are scaled so that their
mean over the training images is 1: the loss keeps its scale, and an epoch its number of images.

Sources: inverse frequency, as scikit-learn's `class_weight='balanced'`; effective number, Cui et al. 2019
(arXiv:1901.05555), equation 2: (1 - β^n) / (1 - β) images in place of n.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

BALANCES = ("none", "sampling", "loss")
WEIGHTINGS = ("inverse", "effective")
UNEVEN = 3.0  # the largest class has more than this times the images of the smallest: said


def class_weights(counts: np.ndarray, weighting: str = "inverse", beta: float = 0.999) -> tuple[float, ...]:
    """The weight of each class; 0 for one without images.

    Args:
      counts: training images of each class [K].
      weighting: 'inverse' = 1 / n, or 'effective' = (1 - beta) / (1 - beta^n).
      beta: for 'effective': near 1 it is the inverse frequency, at 0 all classes weigh the same.

    Returns:
      K weights w with sum(counts * w) = sum(counts).

    Example:
      >>> class_weights(np.array([30, 10]))
      (0.6666666666666666, 2.0)
    """
    n = np.asarray(counts, np.float64)
    safe = np.maximum(n, 1)
    effective = safe if weighting == "inverse" else -np.expm1(safe * np.log(beta)) / (1 - beta) if beta else safe**0
    raw = np.where(n > 0, 1 / effective, 0.0)
    total = float((n * raw).sum())
    return tuple((raw * (n.sum() / total)).tolist()) if total else tuple(raw.tolist())


def sampled_order(labels: np.ndarray, weights: Sequence[float], seed: int, epoch: int) -> np.ndarray:
    """Numbers of the images of an epoch [N], each drawn in proportion to its class's weight, in random order.

    Systematic resampling (Kitagawa 1996): an image of weight w, of mean 1, comes floor(w) or ceil(w) times, w on
    average, and each class has its share of the epoch to within one image.

    Args:
      labels: of all images [N].
      weights: of each class, 0 or more, as `class_weights` gives them.
      seed, epoch: whose draw.
    """
    count = len(labels)
    key = hashlib.blake2b(f"balance/{seed}/{epoch}".encode(), digest_size=16).digest()
    noise = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(2 * count + 1)
    # Class after class on a line, each image as long as its weight, in another order in each epoch; evenly spaced
    # ticks from a random start fall on those that are drawn.
    along = np.lexsort((noise[:count], labels))
    line = np.cumsum(np.asarray(weights)[labels[along]])
    ticks = (np.arange(count) + (noise[-1] >> np.uint64(11)) * 2.0**-53) * (line[-1] / count)
    drawn = along[np.minimum(np.searchsorted(line, ticks, side="right"), count - 1)]
    return drawn[np.argsort(noise[count:-1], kind="stable")]
