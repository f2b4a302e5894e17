"""The parts of a model, from `jaxvit.models.summarize.summarize`: the content of its architecture diagram.

A part is a module with a known role (a patch embedding, a block, a classifier). Containers of such modules are
opened; the layers inside a part are not shown. Equal consecutive modules are one part.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from flax import linen as nn

from jaxvit.models.shiftvit import ShiftViT
from jaxvit.models.summarize import summarize

# Parts of jaxvit's models: class name, and words for a reader who does not know the classes.
STEPS: dict[str, str] = {
    "PatchEmbed": "patch embedding",
    "ConvTokenizer": "convolutions to tokens",
    "PositionEmbed": "positions",
    "PrefixTokens": "extra tokens",
    "EncoderBlock": "attention + MLP",
    "ShiftBlock": "shift + MLP",
    "TokenLearner": "TokenLearner",
    "TokenFuser": "TokenFuser",
    "Downsample": "merge 2 × 2",
    "Pool": "pool",
    "SequencePool": "sequence pool",
    "AttentionPool": "attention pool",
    "Classifier": "classifier",
}
# Layers inside parts; a layer outside all parts is a part itself.
LAYERS: dict[str, str] = {
    "Norm": "norm",
    "LayerNorm": "norm",
    "BatchNorm": "norm",
    "GroupNorm": "norm",
    "RMSNorm": "norm",
    "Mlp": "MLP",
    "Attention": "attention",
    "MultiHeadDotProductAttention": "attention",
    "MultiHeadAttention": "attention",
    "SelfAttention": "attention",
    "Conv": "convolution",
    "Dense": "dense layer",
    "DenseGeneral": "dense layer",
}
_POOLS = {
    "cls": "class token only",
    "cls_register": "class token, register",
    "mean": "mean of the tokens",
    "flatten": "tokens side by side",
}
_SHIFTS = {"border": "shift (border) + MLP", "none": "MLP"}


@dataclass(frozen=True)
class Part:
    """A part of the model: one box of the diagram.

    Attributes:
      type: class name of the module; '' if the model's own code does it.
      kind: what it does, in words.
      names: its name in the model, in words.
      output: shape of its output without the batch axis; () if the output is not a single array.
      params: number of parameters of one module.
      repeats: number of equal modules in this part.
    """

    type: str
    kind: str
    names: str
    output: tuple[int, ...]
    params: int = 0
    repeats: int = 1

    @property
    def tokens(self) -> int:
        """Number of output tokens, or H × W of a feature map; 1 if the output is a vector."""
        return math.prod(self.output[:-1])


def model_steps(model: nn.Module, input_shape: tuple[int, ...]) -> tuple[list[Part], dict[str, Any]]:
    """The parts of a model, first to last, and the output of `summarize`.

    Args:
      model: any Flax module that is called as `model(images, train=False)`.
      input_shape: shape of one image, (H, W, C).

    Raises:
      ValueError: the model does not accept images of this shape.
    """
    facts = summarize(model, input_shape)
    root, *rows = facts["layers"]
    if getattr(model, "positions", "") == "none":  # the module exists, but does nothing
        rows = [row for row in rows if row["type"] != "PositionEmbed"]
    steps: list[Part] = []
    for run in _runs(_parts(rows, "")):
        step = _step(run, rows, model)
        steps += _before(step, steps[-1], rows, run[0], model) if steps else []
        steps.append(step)
    result = tuple(root["output"])
    if not steps or steps[-1].output != result:
        steps.append(Part("", "result", "", result))
    return steps, facts


def _inside(rows: list[dict], path: str) -> list[dict]:
    return [row for row in rows if row["path"].startswith(f"{path}/")] if path else rows


def _parts(rows: list[dict], path: str) -> list[dict]:
    """The rows below a path that are parts."""
    found = []
    depth = path.count("/") + 1 if path else 0
    for row in _inside(rows, path):
        if row["path"].count("/") != depth or row["type"] in ("Dropout", "Identity"):
            continue
        inside = _inside(rows, row["path"])
        children = [r["type"] for r in inside if r["path"].count("/") == depth + 1 and r["type"] not in LAYERS]
        # A module with several children of one class is a stack of blocks, also in a user's model.
        holds_steps = any(r["type"] in STEPS for r in inside) or len(set(children)) < len(children)
        known = row["type"] in STEPS or row["type"] in LAYERS
        found += _parts(rows, row["path"]) if holds_steps and not known else [row]
    return found


def _runs(rows: list[dict]) -> list[list[dict]]:
    """Groups consecutive rows that differ only in their names."""

    def looks(row: dict) -> tuple:
        return row["path"].rpartition("/")[0], row["type"], row["output"], row["params"]

    runs: list[list[dict]] = []
    for row in rows:
        if runs and looks(runs[-1][0]) == looks(row):
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


def _step(run: list[dict], rows: list[dict], model: nn.Module) -> Part:
    first = run[0]
    output = list(first["output"])
    # The model prepends the prefix tokens to these outputs.
    prefix = getattr(model, "prefix", 0)
    if first["type"] == "TokenFuser":
        output[0] += prefix
    if first["type"] == "PrefixTokens" and first["path"] == "register_tokens":
        output[0] += prefix - getattr(model, "registers", prefix)
    names = _names([row["path"] for row in run])
    return Part(first["type"], _kind(first, rows, model), names, tuple(output), first["params"], len(run))


def _kind(row: dict, rows: list[dict], model: nn.Module) -> str:
    name = row["type"]
    if name == "PositionEmbed":
        return "learned positions" if row["params"] else "fixed positions"
    if name == "PrefixTokens":
        return row["path"].rpartition("/")[2].replace("_", " ")
    if name == "Pool":
        inside = [STEPS[r["type"]] for r in _inside(rows, row["path"]) if r["type"] in STEPS]
        return inside[0] if inside else _POOLS.get(getattr(model, "pool", ""), STEPS[name])
    if name == "ShiftBlock":
        return _SHIFTS.get(getattr(model, "shift", ""), STEPS[name])
    return STEPS.get(name) or LAYERS.get(name) or name


def _names(paths: list[str]) -> str:
    """'blocks 0–3' for encoder/block_0 … encoder/block_3; 'stage 1, blocks 0–3' if the parent is numbered too."""
    parent, _, last = paths[0].rpartition("/")
    base, index = _numbered(last)
    end = _numbered(paths[-1].rpartition("/")[2])[1]
    names = base if not index else f"{base} {index}" if len(paths) == 1 else f"{base}s {index}–{end}"
    above, above_index = _numbered(parent.rpartition("/")[2])
    return f"{above} {above_index}, {names}" if above_index else names


def _numbered(name: str) -> tuple[str, str]:
    """('token learner', '3') for token_learner_3; ('embed', '') for embed."""
    base, index = re.fullmatch(r"(.*?)(?:_(\d+))?", name).groups()
    if index and not base.endswith("ss"):  # an element of a list: stages_0
        base = base.removesuffix("s")
    return base.replace("_", " "), index or ""


def _before(step: Part, previous: Part, rows: list[dict], row: dict, model: nn.Module) -> list[Part]:
    """The pooling that the model's own code does between two modules; `summarize` has no row for it."""
    if step.type not in ("Classifier", "Dense") or len(step.output) != 1 or len(previous.output) < 2:
        return []  # a Dense layer keeps all axes but the last: only then something before it has pooled
    dense = next(r for r in [row, *_inside(rows, row["path"])] if r["type"] == "Dense")
    came_in = dense["params"] // dense["output"][-1]  # plus 1 if it has a bias
    flat, channels = math.prod(previous.output), previous.output[-1]
    if came_in in (channels, channels + 1):
        kind = "mean of the map" if isinstance(model, ShiftViT) else "one vector for the image"
        return [Part("", kind, "in the model itself", (channels,))]
    return [Part("", "side by side", "in the model itself", (flat,))] if came_in in (flat, flat + 1) else []
