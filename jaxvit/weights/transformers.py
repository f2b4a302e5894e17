"""ViT, DeiT and DINOv2 as Hugging Face `transformers` stores them: `models/vit`, `deit`, `dinov2`.

DINOv2's classifier reads the class token beside the mean of the others, which no model here does: it is left out, and
the class token alone is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from jaxvit.weights.distilled import AVERAGE
from jaxvit.weights.layouts import CONV, HEADS_BIAS, HEADS_IN, HEADS_OUT, TABLE
from jaxvit.weights.mapping import Arrays, Line, torch_dense, torch_norm
from jaxvit.weights.origin import Guess, NotImportable, Origin, Value, count, grid_of, heads_of

_LAYER = "encoder.layer.{i}"
_OURS = "encoder/block_{i}"
_PARTS = ("query", "key", "value")


_NEW = {
    "attention.q_proj.": "attention.attention.query.",
    "attention.k_proj.": "attention.attention.key.",
    "attention.v_proj.": "attention.attention.value.",
    "attention.o_proj.": "attention.output.dense.",
}
_NEW_VIT = {
    "mlp.fc1.": "intermediate.dense.",
    "mlp.fc2.": "output.dense.",
}  # where there is `layernorm_before`


def _plain(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Names without the model in front, 'vit.', 'deit.', 'dinov2.' or 'dinov2_with_registers.', as files have them.

    `state_dict()` of transformers 5 has new names for layers, which `save_pretrained` writes under the old ones.
    """
    found = {re.sub(r"^(vit|deit|dinov2|dinov2_with_registers)\.", "", name): a for name, a in arrays.items()}
    found = {re.sub(r"^layers\.", "encoder.layer.", name): array for name, array in found.items()}
    old = {**_NEW, **(_NEW_VIT if "encoder.layer.0.layernorm_before.weight" in found else {})}
    pattern = re.compile(r"^(encoder\.layer\.\d+\.)(" + "|".join(map(re.escape, old)) + ")")
    return {pattern.sub(lambda m: m[1] + old[m[2]], name): array for name, array in found.items()}


def _fits(arrays: Mapping[str, np.ndarray]) -> bool:
    return any(name.endswith("embeddings.patch_embeddings.projection.weight") for name in arrays)


def _guess(arrays: Mapping[str, np.ndarray]) -> Guess:
    found = _plain(arrays)
    if any(name.startswith("encoder.layer.0.mlp.weights_in") for name in found):
        raise NotImportable("SwiGLU in its MLPs")
    if "embeddings.cls_token" not in found or "encoder.layer.0.attention.attention.query.weight" not in found:
        raise NotImportable("a model other than ViT, DeiT or DINOv2")
    if "distillation_classifier.weight" in found:
        what = "a distilled DeiT, whose answer is the mean of two heads on two tokens"
        raise NotImportable(f"{what}; {AVERAGE} reads it as that")
    dim, channels, patch, _ = found["embeddings.patch_embeddings.projection.weight"].shape
    dino = "encoder.layer.0.mlp.fc1.weight" in found
    distilled = "embeddings.distillation_token" in found
    stored = found.get("embeddings.register_tokens")
    hidden = found["encoder.layer.0.mlp.fc1.weight" if dino else "encoder.layer.0.intermediate.dense.weight"]
    attributes: dict[str, bool | int | float | str | tuple] = {
        "patch": patch,
        "dim": dim,
        "depth": count(found, f"{_LAYER}.{'norm1' if dino else 'layernorm_before'}.weight"),
        "heads": heads_of(dim),
        "mlp_dim": hidden.shape[0],
        "pool": "cls",
        "registers": distilled + (0 if stored is None else stored.shape[-2]),
        "norm_eps": 1e-6 if dino else 1e-12,
        "qkv_bias": "encoder.layer.0.attention.attention.query.bias" in found,
        "layer_scale": 1.0 if "encoder.layer.0.layer_scale1.lambda1" in found else 0.0,
    }
    if "classifier.weight" in found and not dino:
        attributes["num_classes"] = found["classifier.weight"].shape[0]
        if found["classifier.weight"].shape[1] == 2 * dim:  # see `jaxvit.weights.distilled`
            attributes["pool"] = "cls_register"
    places = found["embeddings.position_embeddings"].shape[-2] - 1 - distilled
    return Guess("vit", attributes, grid_of(places, patch, channels))


def _prepare(arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Value]) -> Arrays:
    del attributes
    found = _plain(arrays)
    token = found.pop("embeddings.distillation_token", None)
    if token is not None:  # takes part and is not read: a register with a position
        table = found["embeddings.position_embeddings"]
        found["embeddings.register_tokens"] = token + table[:, 1:2]
        found["embeddings.position_embeddings"] = np.concatenate([table[:, :1], table[:, 2:]], 1)
    if "encoder.layer.0.mlp.fc1.weight" in found:
        found = {name: array for name, array in found.items() if not name.startswith("classifier.")}
    return found


def _restore(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """With the model's name in front again, which the norms' names tell."""
    prefix = "dinov2" if "encoder.layer.0.norm1.weight" in arrays else "vit"
    prefix += "_with_registers" if "embeddings.register_tokens" in arrays else ""
    return {name if name.startswith("classifier.") else f"{prefix}.{name}": array for name, array in arrays.items()}


_VIT = (f"{_LAYER}.layernorm_", f"{_LAYER}.intermediate.", f"{_LAYER}.output.")
_DINO = (f"{_LAYER}.norm", f"{_LAYER}.mlp.")


TRANSFORMERS = Origin(
    name="transformers",
    title="Hugging Face transformers",
    fits=_fits,
    guess=_guess,
    prepare=_prepare,
    restore=_restore,
    not_written=lambda attributes: _VIT if attributes.get("layer_scale") else _DINO,  # only DINOv2 has LayerScale
    ignored=(r"pooler\..*", r"embeddings\.mask_token"),
    lines=(
        Line("embeddings.cls_token", "class_token/table", TABLE),
        Line("embeddings.register_tokens", "register_tokens/table", TABLE),
        Line("embeddings.position_embeddings", "position_embed/table", TABLE),
        Line("embeddings.patch_embeddings.projection.weight", "embed/projection/kernel", CONV),
        Line("embeddings.patch_embeddings.projection.bias", "embed/projection/bias"),
        *torch_norm(f"{_LAYER}.layernorm_before", f"{_OURS}/norm_attention"),
        *torch_norm(f"{_LAYER}.norm1", f"{_OURS}/norm_attention"),
        *(
            Line(f"{_LAYER}.attention.attention.{part}.weight", f"{_OURS}/attention/{part}/kernel", HEADS_IN)
            for part in _PARTS
        ),
        *(
            Line(f"{_LAYER}.attention.attention.{part}.bias", f"{_OURS}/attention/{part}/bias", HEADS_BIAS)
            for part in _PARTS
        ),
        Line(f"{_LAYER}.attention.output.dense.weight", f"{_OURS}/attention/out/kernel", HEADS_OUT),
        Line(f"{_LAYER}.attention.output.dense.bias", f"{_OURS}/attention/out/bias"),
        Line(f"{_LAYER}.layer_scale1.lambda1", f"{_OURS}/scale_attention"),
        *torch_norm(f"{_LAYER}.layernorm_after", f"{_OURS}/norm_mlp"),
        *torch_norm(f"{_LAYER}.norm2", f"{_OURS}/norm_mlp"),
        *torch_dense(f"{_LAYER}.intermediate.dense", f"{_OURS}/mlp/dense_0"),
        *torch_dense(f"{_LAYER}.output.dense", f"{_OURS}/mlp/dense_1"),
        *torch_dense(f"{_LAYER}.mlp.fc1", f"{_OURS}/mlp/dense_0"),
        *torch_dense(f"{_LAYER}.mlp.fc2", f"{_OURS}/mlp/dense_1"),
        Line(f"{_LAYER}.layer_scale2.lambda1", f"{_OURS}/scale_mlp"),
        *torch_norm("layernorm", "norm"),
        *torch_dense("classifier", "head/logits"),
    ),
)
