"""ShiftViT as its authors store it: microsoft/SPACH, `models/shiftvit.py`, all nine sizes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jaxvit.weights.layouts import CONV, POINTWISE
from jaxvit.weights.mapping import Line, torch_dense, torch_norm
from jaxvit.weights.origin import Guess, Origin, count


def _fits(arrays: Mapping[str, np.ndarray]) -> bool:
    return "layers.0.blocks.0.norm2.weight" in arrays and "patch_embed.proj.weight" in arrays


def _guess(arrays: Mapping[str, np.ndarray]) -> Guess:
    stem = arrays["patch_embed.proj.weight"]
    dim, channels, patch = stem.shape[0], stem.shape[1], stem.shape[2]
    stages = count(arrays, "layers.{i}.blocks.0.norm2.weight")
    depths = tuple(count(arrays, f"layers.{stage}.blocks.{{i}}.norm2.weight") for stage in range(stages))
    return Guess(
        model="shiftvit",
        attributes={
            "num_classes": arrays["head.weight"].shape[0],
            "patch": patch,
            "dim": dim,
            "depths": depths,
            "mlp_ratio": arrays["layers.0.blocks.0.mlp.fc1.weight"].shape[0] / dim,
            "divisions": 16 if dim == 128 else 12,  # not stored; the base sizes have 16
        },
        input=(224, 224, channels),
        unsure={
            "divisions": "the files do not say it: the authors' base sizes, of 128 channels, have 16, the others 12"
        },
    )


SPACH = Origin(
    name="spach",
    title="microsoft/SPACH",
    fits=_fits,
    guess=_guess,
    lines=(
        *torch_dense("patch_embed.proj", "embed/projection", CONV),
        *torch_norm("patch_embed.norm", "norm_stem"),
        *torch_norm("layers.{s}.blocks.{i}.norm2", "stages_{s}/block_{i}/norm"),
        *torch_dense("layers.{s}.blocks.{i}.mlp.fc1", "stages_{s}/block_{i}/mlp/dense_0", POINTWISE),
        *torch_dense("layers.{s}.blocks.{i}.mlp.fc2", "stages_{s}/block_{i}/mlp/dense_1", POINTWISE),
        *torch_norm("layers.{s}.downsample.norm", "merges_{s}/norm"),
        Line("layers.{s}.downsample.reduction.weight", "merges_{s}/merge/kernel", CONV),
        *torch_norm("norm", "norm_final"),
        *torch_dense("head", "head/logits"),
    ),
)
