"""ViT in the names of Google's JAX code: vision_transformer (AugReg too), big_vision and Scenic, flattened to `.npz`.

The three share most names. vision_transformer adds positions after the class token (its table has a row for it),
big_vision before; files from before 2021 count the modules of a block through: `LayerNorm_0`,
`MultiHeadDotProductAttention_1`, `LayerNorm_2`, `MlpBlock_3`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np

from jaxvit.weights.layouts import SAME, TABLE
from jaxvit.weights.mapping import Arrays, Line
from jaxvit.weights.origin import Guess, NotImportable, Origin, Value, count, grid_of

_BLOCK = "Transformer/encoderblock_{i}"
_OURS = "encoder/block_{i}"
_OLD = {
    "MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0",
    "LayerNorm_2": "LayerNorm_1",
    "MlpBlock_3": "MlpBlock_0",
}
_MAP_HEAD = ("probe", "MlpBlock_0", "MultiHeadDotProductAttention_0", "LayerNorm_0")


def _attention(theirs: str, ours: str) -> tuple[Line, ...]:
    """Flax stores the kernels as (inputs, heads, head_dim), as this project does."""
    return tuple(
        Line(f"{theirs}/{part}/{leaf}", f"{ours}/{part}/{leaf}")
        for part in ("query", "key", "value", "out")
        for leaf in ("kernel", "bias")
    )


def _leaves(theirs: str, ours: str, *leaves: str) -> tuple[Line, ...]:
    return tuple(Line(f"{theirs}/{leaf}", f"{ours}/{leaf}") for leaf in leaves)


def _mlp(theirs: str, ours: str) -> tuple[Line, ...]:
    return (
        *_leaves(f"{theirs}/Dense_0", f"{ours}/dense_0", "kernel", "bias"),
        *_leaves(f"{theirs}/Dense_1", f"{ours}/dense_1", "kernel", "bias"),
    )


_LINES = (
    *_leaves("embedding", "embed/projection", "kernel", "bias"),
    Line("cls", "class_token/table", TABLE),
    *_leaves(f"{_BLOCK}/LayerNorm_0", f"{_OURS}/norm_attention", "scale", "bias"),
    *_attention(f"{_BLOCK}/MultiHeadDotProductAttention_0", f"{_OURS}/attention"),
    *_leaves(f"{_BLOCK}/LayerNorm_1", f"{_OURS}/norm_mlp", "scale", "bias"),
    *_mlp(f"{_BLOCK}/MlpBlock_0", f"{_OURS}/mlp"),
    *_leaves("Transformer/encoder_norm", "norm", "scale", "bias"),
    *_leaves("pre_logits", "representation", "kernel", "bias"),
)
_HEAD = _leaves("head", "head/logits", "kernel", "bias")


def _names(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Today's names, whatever the file has: joined by '/', without a collection in front, modules counted by kind."""
    found = {}
    old = any("/MlpBlock_3/" in name.replace(".", "/") for name in arrays)
    for name, array in arrays.items():
        new = re.sub(r"^(opt/target|optimizer/target|target|params)/", "", name.replace(".", "/"))
        if old:
            new = "/".join(_OLD.get(part, part) for part in new.split("/"))
        found[new] = array
    return found


def _is_google(arrays: Mapping[str, np.ndarray]) -> bool:
    names = {re.sub(r"^.*(Transformer/)", r"\1", name.replace(".", "/")) for name in arrays}
    return any(name.startswith(("Transformer/encoderblock_0/", "Transformer/encoderblock/")) for name in names)


def _is_scenic(arrays: Mapping[str, np.ndarray]) -> bool:
    names = _names(arrays)
    return _is_google(arrays) and any(n.startswith(("output_projection/", "Transformer/TokenLearner")) for n in names)


def _is_big_vision(arrays: Mapping[str, np.ndarray]) -> bool:
    names = _names(arrays)
    elsewhere = "Transformer/posembed_input/pos_embedding" not in names
    heads = "MAPHead_0/probe" in names or "probe" in names
    return _is_google(arrays) and not _is_scenic(arrays) and (elsewhere or heads)


def _is_vision_transformer(arrays: Mapping[str, np.ndarray]) -> bool:
    return _is_google(arrays) and not _is_scenic(arrays) and not _is_big_vision(arrays)


def _shared(
    arrays: Mapping[str, np.ndarray], head: str
) -> tuple[dict[str, bool | int | float | str | tuple], int, int]:
    """(attributes that all three projects' models have, side of a patch, channels of the images)."""
    if "conv_root/kernel" in arrays:
        raise NotImportable("a hybrid with a ResNet before the transformer")
    patch, _, channels, dim = arrays["embedding/kernel"].shape
    first = "Transformer/encoderblock_0"
    query = arrays[f"{first}/MultiHeadDotProductAttention_0/query/kernel"]
    attributes: dict[str, bool | int | float | str | tuple] = {
        "patch": patch,
        "dim": dim,
        "depth": count(arrays, f"{_BLOCK}/LayerNorm_0/scale"),
        "heads": query.shape[1],
        "mlp_dim": arrays[f"{first}/MlpBlock_0/Dense_0/kernel"].shape[1],
        "pool": "cls" if "cls" in arrays else "mean",
        "activation": "gelu_tanh",
    }
    if f"{head}/kernel" in arrays:
        attributes["num_classes"] = arrays[f"{head}/kernel"].shape[1]
    if "pre_logits/kernel" in arrays:
        attributes["rep_size"] = arrays["pre_logits/kernel"].shape[1]
    return attributes, patch, channels


def _vision_transformer(arrays: Mapping[str, np.ndarray]) -> Guess:
    arrays = _names(arrays)
    attributes, patch, channels = _shared(arrays, "head")
    table = arrays.get("Transformer/posembed_input/pos_embedding")
    if table is None:
        raise NotImportable("no position table")
    return Guess("vit", attributes, grid_of(table.shape[-2] - ("cls" in arrays), patch, channels))


VISION_TRANSFORMER = Origin(
    name="vision_transformer",
    title="google-research/vision_transformer",
    fits=_is_vision_transformer,
    guess=_vision_transformer,
    prepare=lambda arrays, attributes: _names(arrays),
    lines=(*_LINES, Line("Transformer/posembed_input/pos_embedding", "position_embed/table", TABLE), *_HEAD),
    positions="vision_transformer",
)


def _big_vision_names(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Names of today's `big_vision/models/vit.py`; what it does to older files is done here too."""
    found = _names(arrays)
    for old in ("Transformer/posembed_input/pos_embedding", "Transformer/pos_embedding"):
        if old in found:
            found["pos_embedding"] = found.pop(old)
    for name in [name for name in found if name.split("/")[0] in _MAP_HEAD]:
        found[f"MAPHead_0/{name}"] = found.pop(name)
    scanned = [name for name in found if name.startswith("Transformer/encoderblock/")]
    for name in scanned:
        for i, part in enumerate(found.pop(name)):
            found[name.replace("encoderblock/", f"encoderblock_{i}/")] = part
    return found


def _has_class_row(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether the table has a row for the class token: files from before big_vision added positions first."""
    tokens = arrays["pos_embedding"].shape[-2]
    return math.isqrt(tokens) ** 2 + 1 == tokens and math.isqrt(tokens) ** 2 != tokens


def _big_vision(arrays: Mapping[str, np.ndarray]) -> Guess:
    arrays = _big_vision_names(arrays)
    attributes, patch, channels = _shared(arrays, "head")
    if "MAPHead_0/probe" in arrays:
        attributes["pool"] = "attention"
    if "pos_embedding" in arrays:
        tokens = arrays["pos_embedding"].shape[-2] - _has_class_row(arrays)
        return Guess("vit", attributes, grid_of(tokens, patch, channels))
    attributes["positions"] = "sincos"
    why = "positions are computed, so the files do not say the size of the images"
    return Guess("vit", attributes, (224, 224, channels), {"input": why})


def _prepare_big_vision(arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Value]) -> Arrays:
    del attributes
    found = _big_vision_names(arrays)
    if "pos_embedding" not in found:
        return found
    table = found["pos_embedding"]
    table = table.reshape(1, *table.shape[-2:])
    if "cls" in found and not _has_class_row(found):
        table = np.concatenate([np.zeros_like(table[:, :1]), table], 1)
    found["pos_embedding"] = table
    return found


def _restore_big_vision(arrays: Mapping[str, np.ndarray]) -> Arrays:
    found = dict(arrays)
    if "cls" in found and "pos_embedding" in found and not found["pos_embedding"][:, 0].any():
        found["pos_embedding"] = found["pos_embedding"][:, 1:]
    return found


BIG_VISION = Origin(
    name="big_vision",
    title="google-research/big_vision",
    fits=_is_big_vision,
    guess=_big_vision,
    prepare=_prepare_big_vision,
    restore=_restore_big_vision,
    lines=(
        *_LINES,
        Line("pos_embedding", "position_embed/table", TABLE),
        Line("MAPHead_0/probe", "pooling/attention_pool/probe", TABLE),
        *_attention("MAPHead_0/MultiHeadDotProductAttention_0", "pooling/attention_pool/attention"),
        *_leaves("MAPHead_0/LayerNorm_0", "pooling/attention_pool/norm", "scale", "bias"),
        *_mlp("MAPHead_0/MlpBlock_0", "pooling/attention_pool/mlp"),
        *_HEAD,
    ),
    positions="big_vision",
)


def _scenic(arrays: Mapping[str, np.ndarray]) -> Guess:
    arrays = _names(arrays)
    attributes, patch, channels = _shared(arrays, "output_projection")
    table = arrays.get("Transformer/posembed_input/pos_embedding")
    if table is None:
        raise NotImportable("no position table")
    learners = count(arrays, "Transformer/TokenLearnerModuleV11_{i}/LayerNorm_0/scale")
    first = count(arrays, "Transformer/TokenLearnerModule_{i}/LayerNorm_0/scale")
    unsure = {}
    if learners or first:
        number, depth = learners or first, int(attributes["depth"])  # type: ignore[arg-type]
        fuse = count(arrays, "Transformer/TokenFuser_{i}/LayerNorm_0/scale") > 0
        start = depth - number if fuse else depth * 3 // 4
        if not fuse:
            unsure["learner_at"] = (
                "the files do not say before which block it stands: the authors' configuration has 9 of 12"
            )
        attributes |= {"learner_at": tuple(range(start, start + number)), "fuse": fuse}
        attributes["learner_activation"] = "gelu_tanh"
        if learners:
            mask = arrays["Transformer/TokenLearnerModuleV11_0/token_masking/Dense_1/kernel"]
            attributes |= {"learner": "v11_mlp", "learner_tokens": mask.shape[1], "learner_hidden": mask.shape[0]}
        else:
            mask = arrays["Transformer/TokenLearnerModule_0/Conv_3/kernel"]
            attributes |= {"learner": "v1", "learner_tokens": mask.shape[3]}
    return Guess("vit", attributes, grid_of(table.shape[-2] - ("cls" in arrays), patch, channels), unsure)


_LEARNER = "Transformer/TokenLearnerModule_{i}"
_LEARNER_11 = "Transformer/TokenLearnerModuleV11_{i}"
_FUSER = "Transformer/TokenFuser_{i}"


def _count_from_block(arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Value]) -> Arrays:
    """Scenic counts learners and fusers from 0, this project by the block they belong to."""
    found = _names(arrays)
    start = attributes.get("learner_at")
    shift = start[0] if isinstance(start, tuple) and start else 0
    return {
        re.sub(r"(Token\w+_)(\d+)/", lambda match: f"{match[1]}{int(match[2]) + shift}/", name): array
        for name, array in found.items()
    }


def _count_from_zero(arrays: Mapping[str, np.ndarray]) -> Arrays:
    numbers = [int(found[1]) for name in arrays if (found := re.search(r"Token\w+_(\d+)/", name))]
    shift = min(numbers, default=0)
    return {
        re.sub(r"(Token\w+_)(\d+)/", lambda match: f"{match[1]}{int(match[2]) - shift}/", name): array
        for name, array in arrays.items()
    }


SCENIC = Origin(
    name="scenic",
    title="google-research/scenic",
    fits=_is_scenic,
    guess=_scenic,
    prepare=_count_from_block,
    restore=_count_from_zero,
    not_written=lambda attributes: (_LEARNER,) if attributes.get("learner") == "v11_mlp" else (_LEARNER_11,),
    lines=(
        *_LINES,
        Line("Transformer/posembed_input/pos_embedding", "position_embed/table", TABLE),
        *_leaves(f"{_LEARNER}/LayerNorm_0", "encoder/token_learner_{i}/norm", "scale", "bias"),
        Line(f"{_LEARNER}/Conv_{{k}}/kernel", "encoder/token_learner_{i}/conv_{k}/kernel", SAME),
        *_leaves(f"{_LEARNER_11}/LayerNorm_0", "encoder/token_learner_{i}/norm", "scale", "bias"),
        *_mlp(f"{_LEARNER_11}/token_masking", "encoder/token_learner_{i}/mlp"),
        *_leaves(f"{_FUSER}/fuser_mix_norm1", "encoder/token_fuser_{i}/norm_in", "scale", "bias"),
        *_leaves(f"{_FUSER}/Dense_0", "encoder/token_fuser_{i}/between", "kernel", "bias"),
        *_leaves(f"{_FUSER}/fuser_mix_norm2", "encoder/token_fuser_{i}/norm_out", "scale", "bias"),
        *_leaves(f"{_FUSER}/LayerNorm_0", "encoder/token_fuser_{i}/norm_original", "scale", "bias"),
        *_mlp(f"{_FUSER}/token_masking", "encoder/token_fuser_{i}/mlp"),
        *_leaves("output_projection", "head/logits", "kernel", "bias"),
    ),
    positions="scenic",
)
