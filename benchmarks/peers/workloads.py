"""What is timed: for each model its batch, input, optimizer and loss, the same for every framework."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Workload:
    """A model and how it is trained.

    Attributes:
      model: a name of `jaxvit.list_models()`.
      batch: images of a training step, as in the model's document.
      input: (H, W, C) of an image; the values are floats that need no further preprocessing.
      classes: K.
      optimizer: 'adam' or 'adamw'. Both decay nothing, or all weights, by lr · weight_decay · w.
      learning_rate, weight_decay, epsilon: of the optimizer; the rate is constant.
      label_smoothing: of the softmax cross-entropy.
    """

    model: str
    batch: int
    input: tuple[int, int, int]
    classes: int = 10
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    epsilon: float = 1e-7
    label_smoothing: float = 0.0


def _fashion(model: str) -> Workload:
    return Workload(model, 32, (28, 28, 1), classes=4, optimizer="adam", weight_decay=0.0)


_ALL = (
    _fashion("tutorial_fashion_vit"),
    _fashion("tutorial_fashion_fast_vit"),
    Workload("tutorial_mini_vit", 256, (48, 48, 3)),
    Workload("tutorial_mini_vit_8l", 256, (48, 48, 3)),
    Workload("tutorial_mini_vit_tl4", 256, (48, 48, 3)),
    Workload("tutorial_mini_vit_tl8", 256, (48, 48, 3)),
    Workload("tutorial_vit_cifar100", 256, (72, 72, 3), classes=100),
    Workload("tutorial_shiftvit", 256, (48, 48, 3)),
    Workload("tutorial_cct", 128, (32, 32, 3), label_smoothing=0.1),
)

WORKLOADS: dict[str, Workload] = {workload.model: workload for workload in _ALL}


def images(workload: Workload, count: int, seed: int = 0) -> np.ndarray:
    """Random images, (count, H, W, C) float32, of mean 0 and deviation 1."""
    return np.random.default_rng(seed).standard_normal((count, *workload.input), dtype=np.float32)


def labels(workload: Workload, count: int, seed: int = 1) -> np.ndarray:
    """Random classes, (count,) int32."""
    return np.random.default_rng(seed).integers(0, workload.classes, count, dtype=np.int32)
