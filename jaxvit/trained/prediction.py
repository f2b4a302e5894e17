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
      file: its path; '' for an image in memory.
      top: pairs (class, probability), the most probable first; empty if there is an error.
      truth: the class that the file's folder is named after; '' = none.
      error: why the file could not be read; '' if it could.
    """

    file: str
    top: tuple[tuple[str, float], ...] = ()
    truth: str = ""
    error: str = ""

    @property
    def right(self) -> bool | None:
        """Whether the most probable class is the true one; None if the true class is unknown or there is an error."""
        return self.top[0][0] == self.truth if self.top and self.truth else None


def check_finite(logits_BK: np.ndarray) -> np.ndarray:
    """Returns the scores unchanged.

    Raises:
      RunFailedError: a score is not finite.
    """
    if not np.isfinite(logits_BK).all():
        raise RunFailedError("the model's scores are not finite numbers: its training has diverged; train it again")
    return logits_BK


def softmax(logits_NK: np.ndarray) -> np.ndarray:
    """Computes probabilities [N, K] from scores, in float64 on the host."""
    return scipy.special.softmax(logits_NK.astype(np.float64), axis=1)


def most_probable(probabilities_K: np.ndarray, names: tuple[str, ...], top: int) -> tuple[tuple[str, float], ...]:
    """Returns (class, probability) of the `top` most probable classes; ignores outputs beyond the class names."""
    order = np.argsort(-probabilities_K[: len(names)], kind="stable")[:top]
    return tuple((names[i], float(probabilities_K[i])) for i in order)
