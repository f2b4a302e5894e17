"""The steps of a model, read off `jaxvit.models.summarize.summarize`: what a diagram of it shows, without the drawing.

A step is a module that has a meaning of its own (a patch embedding, a block, a classifier). What only holds such
modules is looked into; what such a module is made of is not. Equal modules that follow each other are one step.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from flax import linen as nn

from jaxvit.models.shiftvit import ShiftViT
from jaxvit.models.summarize import summarize

# This package's steps, in words for a reader who does not know the classes.
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
# What steps are made of; a step itself only where it stands alone.
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
_POOLS = {"cls": "class token only", "mean": "mean of the tokens", "flatten": "tokens side by side"}
_SHIFTS = {"border": "shift (border) + MLP", "none": "MLP"}


@dataclass(frozen=True)
class DiagramStep:
    """A box of a diagram.

    Attributes:
      type: class of the module; '' where it is a step of the model itself.
      kind: what it does, in words.
      names: where it is in the model.
      output: shape of its output, without the batch; () = not one array.
      params: parameters of one of the modules that it stands for.
      repeats: how many equal modules it stands for.
    """

    type: str
    kind: str
    names: str
    output: tuple[int, ...]
    params: int = 0
    repeats: int = 1

    @property
    def tokens(self) -> int:
        """Tokens, or places of a map, in its output; 0 where that is a vector."""
        return math.prod(self.output[:-1])


def model_steps(model: nn.Module, input_shape: tuple[int, ...]) -> tuple[list[DiagramStep], dict[str, Any]]:
    """The steps of a model, first to last, and what `summarize` says of it.

    Args:
      model: called as `model(images, train=False)`; any module.
      input_shape: (H, W, C) in pixels and channels.

    Raises:
      ValueError: an image that does not suit the model.
    """
    facts = summarize(model, input_shape)
    root, *rows = facts["layers"]
    if getattr(model, "positions", "") == "none":  # the module is there and does nothing
        rows = [row for row in rows if row["type"] != "PositionEmbed"]
    steps: list[DiagramStep] = []
    for run in _runs(_parts(rows, "")):
        step = _step(run, rows, model)
        steps += _before(step, steps[-1], rows, run[0], model) if steps else []
        steps.append(step)
    result = tuple(root["output"])
    if not steps or steps[-1].output != result:
        steps.append(DiagramStep("", "result", "", result))
    return steps, facts


def _inside(rows: list[dict], path: str) -> list[dict]:
    return [row for row in rows if row["path"].startswith(f"{path}/")] if path else rows


def _parts(rows: list[dict], path: str) -> list[dict]:
    """The rows below a path that are steps."""
    found = []
    depth = path.count("/") + 1 if path else 0
    for row in _inside(rows, path):
        if row["path"].count("/") != depth or row["type"] in ("Dropout", "Identity"):
            continue
        inside = _inside(rows, row["path"])
        children = [r["type"] for r in inside if r["path"].count("/") == depth + 1 and r["type"] not in LAYERS]
        # A stack of somebody's own blocks holds several of one class.
        holds_steps = any(r["type"] in STEPS for r in inside) or len(set(children)) < len(children)
        known = row["type"] in STEPS or row["type"] in LAYERS
        found += _parts(rows, row["path"]) if holds_steps and not known else [row]
    return found


def _runs(rows: list[dict]) -> list[list[dict]]:
    """Rows that follow each other and differ in their names only, together."""

    def looks(row: dict) -> tuple:
        return row["path"].rpartition("/")[0], row["type"], row["output"], row["params"]

    runs: list[list[dict]] = []
    for row in rows:
        if runs and looks(runs[-1][0]) == looks(row):
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


def _step(run: list[dict], rows: list[dict], model: nn.Module) -> DiagramStep:
    first = run[0]
    output = list(first["output"])
    # The model puts the tokens without a place before these outputs again.
    prefix = getattr(model, "prefix", 0)
    if first["type"] == "TokenFuser":
        output[0] += prefix
    if first["type"] == "PrefixTokens" and first["path"] == "register_tokens":
        output[0] += prefix - getattr(model, "registers", prefix)
    names = _names([row["path"] for row in run])
    return DiagramStep(first["type"], _kind(first, rows, model), names, tuple(output), first["params"], len(run))


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
    """'blocks 0–3' for encoder/block_0 … encoder/block_3; 'stage 1, blocks 0–3' where the parent has a number too."""
    parent, _, last = paths[0].rpartition("/")
    base, index = _numbered(last)
    end = _numbered(paths[-1].rpartition("/")[2])[1]
    names = base if not index else f"{base} {index}" if len(paths) == 1 else f"{base}s {index}–{end}"
    above, above_index = _numbered(parent.rpartition("/")[2])
    return f"{above} {above_index}, {names}" if above_index else names


def _numbered(name: str) -> tuple[str, str]:
    """('token learner', '3') for token_learner_3; ('embed', '') for embed."""
    base, index = re.fullmatch(r"(.*?)(?:_(\d+))?", name).groups()
    if index and not base.endswith("ss"):  # one of a list: stages_0
        base = base.removesuffix("s")
    return base.replace("_", " "), index or ""


def _before(
    step: DiagramStep, previous: DiagramStep, rows: list[dict], row: dict, model: nn.Module
) -> list[DiagramStep]:
    """What the model itself does between two modules to get a vector out of tokens or a map; it has no row."""
    if step.type not in ("Classifier", "Dense") or len(step.output) != 1 or len(previous.output) < 2:
        return []  # these two keep all axes but the last: something else has done away with the others
    dense = next(r for r in [row, *_inside(rows, row["path"])] if r["type"] == "Dense")
    came_in = dense["params"] // dense["output"][-1]  # with or without one for the bias
    flat, channels = math.prod(previous.output), previous.output[-1]
    if came_in in (channels, channels + 1):
        kind = "mean of the map" if isinstance(model, ShiftViT) else "one vector for the image"
        return [DiagramStep("", kind, "in the model itself", (channels,))]
    return [DiagramStep("", "side by side", "in the model itself", (flat,))] if came_in in (flat, flat + 1) else []
