"""ViT, DeiT and DeiT III in timm's names: huggingface/pytorch-image-models, `timm/models/vision_transformer.py`.

facebookresearch/deit uses the same names, and `gamma_1`, `gamma_2` for LayerScale.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jaxvit.weights.distilled import AVERAGE
from jaxvit.weights.layouts import CONV, HEADS_OUT, QKV, QKV_BIAS, TABLE
from jaxvit.weights.mapping import Arrays, Line, torch_dense, torch_norm
from jaxvit.weights.origin import Guess, NotImportable, Origin, Value, count, grid_of, heads_of

_BLOCK = "blocks.{i}"
_OURS = "encoder/block_{i}"
_PARTS = ("query", "key", "value")

# Names that only occur in models that this project does not have.
_FOREIGN = {
    "patch_embed.backbone.": "a hybrid with a ResNet before the transformer",
    "dist_token": f"a distilled DeiT, whose answer is the mean of two heads on two tokens; {AVERAGE} reads it as that",
    "blocks.0.mlp.w12.": "SwiGLU in its MLPs",
    "blocks.0.mlp.fc1_g.": "SwiGLU in its MLPs",
    "blocks.0.mlp.norm.": "a norm inside its MLPs",
    "blocks.0.attn.relative_position_bias_table": "relative positions",
    "blocks.0.attn.rel_pos.": "relative positions",
    "rel_pos_bias.": "relative positions",
    "blocks.0.attn.norm.": "a norm before the attention's output",
    "norm_pre.": "a norm before its first block",
    "attn_pool.": "timm's attention pooling",
    "layers.0.blocks.": "windows (Swin) or another pyramid",
}


def _fits(arrays: Mapping[str, np.ndarray]) -> bool:
    return "blocks.0.norm1.weight" in arrays and any(name.startswith("patch_embed.") for name in arrays)


def _check(arrays: Mapping[str, np.ndarray]) -> None:
    for start, what in _FOREIGN.items():
        if any(name.startswith(start) for name in arrays):
            raise NotImportable(what)
    if "patch_embed.proj.bias" not in arrays:
        raise NotImportable("a patch embedding without a bias")
    if arrays["patch_embed.proj.weight"].ndim != 4 or "pos_embed" not in arrays:
        raise NotImportable("an unknown form of patches or positions")


def _guess(arrays: Mapping[str, np.ndarray]) -> Guess:
    _check(arrays)
    dim, channels, patch, _ = arrays["patch_embed.proj.weight"].shape
    _, places = _places(arrays)
    after = "fc_norm.weight" in arrays
    class_token = "cls_token" in arrays
    registers = arrays["reg_token"].shape[-2] if "reg_token" in arrays else 0
    attributes: dict[str, bool | int | float | str | tuple] = {
        "patch": patch,
        "dim": dim,
        "depth": count(arrays, f"{_BLOCK}.norm1.weight"),
        "heads": heads_of(dim),
        "mlp_dim": arrays["blocks.0.mlp.fc1.weight"].shape[0],
        "pool": "mean" if after or not class_token else "cls",
        "norm_after_pool": after,
        "registers": registers + (after and class_token),  # a class token that is not read is a register
        "qkv_bias": "blocks.0.attn.qkv.bias" in arrays,
        "qk_norm": "blocks.0.attn.q_norm.weight" in arrays,
        "layer_scale": 1.0 if {"blocks.0.ls1.gamma", "blocks.0.gamma_1"} & set(arrays) else 0.0,
    }
    if "head.weight" in arrays and arrays["head.weight"].shape[1] == 2 * dim:  # see `jaxvit.weights.distilled`
        attributes["pool"] = "cls_register"
    if attributes["qk_norm"]:
        attributes["heads"] = dim // arrays["blocks.0.attn.q_norm.weight"].shape[0]
    if "head.weight" in arrays:
        attributes["num_classes"] = arrays["head.weight"].shape[0]
    if "pre_logits.fc.weight" in arrays:
        attributes["rep_size"] = arrays["pre_logits.fc.weight"].shape[0]
    return Guess("vit", attributes, grid_of(places, patch, channels))


def _places(arrays: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """(leading entries of the position table that have no place, places)."""
    tokens = arrays["pos_embed"].shape[-2]
    leading = ("cls_token" in arrays) + (arrays["reg_token"].shape[-2] if "reg_token" in arrays else 0)
    for prefix in (0, 1, leading):
        if prefix <= leading and round((tokens - prefix) ** 0.5) ** 2 == tokens - prefix:
            return prefix, tokens - prefix
    return 0, tokens


def _prepare(arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Value]) -> Arrays:
    del attributes
    found = {name.replace(".gamma_", ".ls") + (".gamma" if ".gamma_" in name else ""): a for name, a in arrays.items()}
    class_token, table, (prefix, _) = found.get("cls_token"), found["pos_embed"], _places(found)
    table = table.reshape(1, *table.shape[-2:])
    registers = found.get("reg_token")
    if prefix > 1:  # registers have positions, which are added to them once and for all
        registers = registers + table[:, 1:prefix]
        found["reg_token"], table = registers, np.concatenate([table[:, :1], table[:, prefix:]], 1)
    if class_token is not None and "fc_norm.weight" in found:
        leading = class_token + table[:, :1] if prefix else class_token
        found["reg_token"] = leading if registers is None else np.concatenate([leading, registers], 1)
        del found["cls_token"]
        table = table[:, 1:] if prefix else table
    elif class_token is not None and not prefix:  # `no_embed_class`: the class token has no position
        table = np.concatenate([np.zeros_like(table[:, :1]), table], 1)
    found["pos_embed"] = table
    return found


def _restore(arrays: Mapping[str, np.ndarray]) -> Arrays:
    found = dict(arrays)
    if "cls_token" not in found:
        return found
    table, registers = found["pos_embed"], found.get("reg_token")
    if not table[:, 0].any():
        found["pos_embed"] = table[:, 1:]
    elif registers is not None:  # timm gives positions to all leading tokens or to none
        found["pos_embed"] = np.concatenate([table[:, :1], np.zeros_like(registers), table[:, 1:]], 1)
    return found


TIMM = Origin(
    name="timm",
    title="timm (huggingface/pytorch-image-models)",
    fits=_fits,
    guess=_guess,
    prepare=_prepare,
    restore=_restore,
    not_written=lambda attributes: ("norm.",) if attributes.get("norm_after_pool") else ("fc_norm.",),
    lines=(
        Line("cls_token", "class_token/table", TABLE),
        Line("reg_token", "register_tokens/table", TABLE),
        Line("pos_embed", "position_embed/table", TABLE),
        *torch_dense("patch_embed.proj", "embed/projection", CONV),
        *torch_norm(f"{_BLOCK}.norm1", f"{_OURS}/norm_attention"),
        Line(f"{_BLOCK}.attn.qkv.weight", tuple(f"{_OURS}/attention/{part}/kernel" for part in _PARTS), QKV),
        Line(f"{_BLOCK}.attn.qkv.bias", tuple(f"{_OURS}/attention/{part}/bias" for part in _PARTS), QKV_BIAS),
        *torch_norm(f"{_BLOCK}.attn.q_norm", f"{_OURS}/attention/norm_query"),
        *torch_norm(f"{_BLOCK}.attn.k_norm", f"{_OURS}/attention/norm_key"),
        *torch_dense(f"{_BLOCK}.attn.proj", f"{_OURS}/attention/out", HEADS_OUT),
        Line(f"{_BLOCK}.ls1.gamma", f"{_OURS}/scale_attention"),
        *torch_norm(f"{_BLOCK}.norm2", f"{_OURS}/norm_mlp"),
        *torch_dense(f"{_BLOCK}.mlp.fc1", f"{_OURS}/mlp/dense_0"),
        *torch_dense(f"{_BLOCK}.mlp.fc2", f"{_OURS}/mlp/dense_1"),
        Line(f"{_BLOCK}.ls2.gamma", f"{_OURS}/scale_mlp"),
        *torch_norm("norm", "norm"),
        *torch_norm("fc_norm", "norm"),
        *torch_dense("pre_logits.fc", "representation"),
        *torch_dense("head", "head/logits"),
    ),
)
