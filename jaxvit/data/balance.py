"""Weights for classes of unequal size.

The weight of a class multiplies the loss of its images, or the frequency with which they are drawn. The mean weight
over the training images is 1, so the loss keeps its scale and an epoch its number of images.

Sources: inverse frequency, as scikit-learn's `class_weight='balanced'`; effective number, Cui et al. 2019
(arXiv:1901.05555), equation 2: n images count as (1 - β^n) / (1 - β).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

BALANCES = ("none", "sampling", "loss")
WEIGHTINGS = ("inverse", "effective")
UNEVEN = 3.0  # ratio of the largest class to the smallest above which a warning is printed


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
    """Indices of the images of an epoch [N], drawn in proportion to the weights of their classes, in random order.

    Systematic resampling (Kitagawa 1996): an image with weight w occurs floor(w) or ceil(w) times, w on average, and
    each class has its share of the epoch to within one image.

    Args:
      labels: labels of all images [N].
      weights: weight of each class, as `class_weights` returns them.
      seed, epoch: the draw is a function of both.
    """
    count = len(labels)
    key = hashlib.blake2b(f"balance/{seed}/{epoch}".encode(), digest_size=16).digest()
    noise = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(2 * count + 1)
    # The images are laid on a line, class by class, each as long as its weight, in a new order each epoch. Evenly
    # spaced ticks from a random start select the images.
    along = np.lexsort((noise[:count], labels))
    line = np.cumsum(np.asarray(weights)[labels[along]])
    ticks = (np.arange(count) + (noise[-1] >> np.uint64(11)) * 2.0**-53) * (line[-1] / count)
    drawn = along[np.minimum(np.searchsorted(line, ticks, side="right"), count - 1)]
    return drawn[np.argsort(noise[count:-1], kind="stable")]
