"""Predictions: the classes of an image, with their probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.special

from jaxvit.errors import RunFailedError


@dataclass(frozen=True)
class Prediction:
    """Prediction for an image.

    Attributes:
      file: its name; '' for an image in memory.
      top: (class, probability), the most probable first; empty where there is an error.
      truth: the class that the file's folder names; '' = none.
      error: why the file could not be read; '' = it could.
    """

    file: str
    top: tuple[tuple[str, float], ...] = ()
    truth: str = ""
    error: str = ""

    @property
    def right(self) -> bool | None:
        """Whether the most probable class is the true one; None = that one is not known, or there is an error."""
        return self.top[0][0] == self.truth if self.top and self.truth else None


def check_finite(logits_BK: np.ndarray) -> np.ndarray:
    """Returns the scores.

    Raises:
      RunFailedError: one is not a finite number.
    """
    if not np.isfinite(logits_BK).all():
        raise RunFailedError("the model's scores are not finite numbers: its training has diverged; train it again")
    return logits_BK


def softmax(logits_NK: np.ndarray) -> np.ndarray:
    """Probabilities [N, K] of scores, in float64 on the host."""
    return scipy.special.softmax(logits_NK.astype(np.float64), axis=1)


def most_probable(probabilities_K: np.ndarray, names: tuple[str, ...], top: int) -> tuple[tuple[str, float], ...]:
    """(class, probability) of the `top` most probable classes. Outputs beyond the names have no class."""
    order = np.argsort(-probabilities_K[: len(names)], kind="stable")[:top]
    return tuple((names[i], float(probabilities_K[i])) for i in order)
