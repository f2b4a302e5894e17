"""CCT, CVT and ViT-Lite as their authors store them: SHI-Labs/Compact-Transformers, `src/`.

Their fixed sine positions are stored too; they become a learned table that starts from the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from jaxvit.weights.layouts import CONV, HEADS_OUT, QKV, TABLE
from jaxvit.weights.mapping import Line, torch_dense, torch_norm
from jaxvit.weights.origin import Guess, NotImportable, Origin, count, heads_of

_BLOCK = "classifier.blocks.{i}"
_OURS = "encoder/block_{i}"


def _fits(arrays: Mapping[str, np.ndarray]) -> bool:
    return "classifier.blocks.0.pre_norm.weight" in arrays and "classifier.norm.weight" in arrays


def _guess(arrays: Mapping[str, np.ndarray]) -> Guess:
    dim = arrays["classifier.norm.weight"].shape[0]
    table = arrays.get("classifier.positional_emb")
    class_token = "classifier.class_emb" in arrays
    attributes: dict[str, bool | int | float | str | tuple] = {
        "num_classes": arrays["classifier.fc.weight"].shape[0],
        "dim": dim,
        "depth": count(arrays, f"{_BLOCK}.pre_norm.weight"),
        "heads": heads_of(dim),
        "mlp_ratio": arrays["classifier.blocks.0.linear1.weight"].shape[0] / dim,
        "pool": "cls" if class_token else "sequence",
        "positions": "none" if table is None else "learned",
    }
    unsure = {}
    if "tokenizer.conv_layers.0.0.weight" not in arrays:
        raise NotImportable("a text model: only image models can be imported")
    stem = arrays["tokenizer.conv_layers.0.0.weight"]
    channels, kernel = stem.shape[1], stem.shape[2]
    if "tokenizer.conv_layers.0.0.bias" in arrays:  # a patch embedding has a bias, a convolutional tokenizer none
        attributes |= {"tokenizer": "patch", "patch": kernel}
        step = kernel
    else:
        layers = count(arrays, "tokenizer.conv_layers.{i}.0.weight")
        attributes |= {"tokenizer": "conv", "kernel": kernel, "conv_layers": layers}
        if layers > 1:
            attributes["conv_width"] = stem.shape[0]
        step = (2 * max(1, kernel // 2 - 1)) ** layers  # the stride, then a max-pooling of stride 2
    side = 32 if kernel < 7 else 224
    if table is not None:
        side = math.isqrt(table.shape[-2] - class_token) * step
    else:
        unsure["input"] = "without a position table, the files do not say the size of the images"
    return Guess("cct", attributes, (side, side, channels), unsure)


COMPACT_TRANSFORMERS = Origin(
    name="compact_transformers",
    title="SHI-Labs/Compact-Transformers",
    fits=_fits,
    guess=_guess,
    lines=(
        Line("tokenizer.conv_layers.{i}.0.weight", "embed/conv_{i}/kernel", CONV),
        *torch_dense("tokenizer.conv_layers.0.0", "embed/projection", CONV),
        Line("classifier.class_emb", "class_token/table", TABLE),
        Line("classifier.positional_emb", "position_embed/table", TABLE),
        *torch_norm(f"{_BLOCK}.pre_norm", f"{_OURS}/norm_attention"),
        Line(
            f"{_BLOCK}.self_attn.qkv.weight",
            tuple(f"{_OURS}/attention/{part}/kernel" for part in ("query", "key", "value")),
            QKV,
        ),
        *torch_dense(f"{_BLOCK}.self_attn.proj", f"{_OURS}/attention/out", HEADS_OUT),
        *torch_norm(f"{_BLOCK}.norm1", f"{_OURS}/norm_mlp"),
        *torch_dense(f"{_BLOCK}.linear1", f"{_OURS}/mlp/dense_0"),
        *torch_dense(f"{_BLOCK}.linear2", f"{_OURS}/mlp/dense_1"),
        *torch_norm("classifier.norm", "norm"),
        *torch_dense("classifier.attention_pool", "pooling/sequence_pool/score"),
        *torch_dense("classifier.fc", "head/logits"),
    ),
    positions="cct",
)
