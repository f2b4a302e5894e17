"""The timed workloads: nine of the documents' models with batch size, input, optimizer and loss, and random data."""

from __future__ import annotations

import numpy as np

from jaxvit.speed.workloads import DOCUMENTS, Workload

_MODELS = (
    "tutorial_fashion_vit",
    "tutorial_fashion_fast_vit",
    "tutorial_mini_vit",
    "tutorial_mini_vit_8l",
    "tutorial_mini_vit_tl4",
    "tutorial_mini_vit_tl8",
    "tutorial_vit_cifar100",
    "tutorial_shiftvit",
    "tutorial_cct",
)

WORKLOADS: dict[str, Workload] = {model: DOCUMENTS[model] for model in _MODELS}


def images(workload: Workload, count: int, seed: int = 0) -> np.ndarray:
    """Random images, (count, H, W, C) float32, with mean 0 and standard deviation 1."""
    return np.random.default_rng(seed).standard_normal((count, *workload.input), dtype=np.float32)


def labels(workload: Workload, count: int, seed: int = 1) -> np.ndarray:
    """Random classes, (count,) int32."""
    return np.random.default_rng(seed).integers(0, workload.classes, count, dtype=np.int32)
