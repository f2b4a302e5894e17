"""The function that a page runs: from pixels to probabilities, the model's input, and maps of its weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxvit.exports.model import ExportModel
from jaxvit.layers import ShiftStage
from jaxvit.layers.stack import plainly
from jaxvit.models import ShiftViT
from jaxvit.ops.implementations import traced_for
from jaxvit.trained.introspection import Recorded, attention_rollout, record_in_trace

_DIRECTIONS = ("left", "right", "up", "down")


@dataclass(frozen=True)
class MapFacts:
    """Everything that a page needs to draw one output of the graph.

    Attributes:
      kind: 'tokens', 'fuser', 'pool', 'rollout': maps in [0, 1] over the image; or 'shift': maps of a stage's channels.
      title: name of the maps.
      note: one sentence that explains them.
      grid: (rows, columns) of a map.
      covered: (height, width) of the part of the model's input, from its upper left corner, that a map covers, as
        fractions.
      names: a name for each map.
      relative: whether each map is scaled to a maximum of 1.
      pixels: 'shift' only: distance of the shift.
      border: 'shift' only: nothing moves, and one border becomes zero.
    """

    kind: str
    title: str
    note: str
    grid: tuple[int, int]
    covered: tuple[float, float]
    names: tuple[str, ...]
    relative: bool = True
    pixels: int = 0
    border: bool = False

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def outputs_of(
    model: ExportModel, images_BHWC: Any, by: Mapping[str, str] | None = None
) -> tuple[list[jax.Array], list[MapFacts]]:
    """Computes what a page shows of uint8 images [B, *image_shape]. For tracing: the weights become constants.

    Args:
      model: the exported model.
      images_BHWC: the images.
      by: {operation: implementation}, see `jaxvit.ops.implementations`.

    Returns:
      The arrays: probabilities [B, K]; the model's input without normalization [B, H, W, C] in 0..1; and maps
      [B, count, rows, columns], one array for each of the facts. And the facts.
    """
    loaded = replace(model.loaded, model=plainly(model.loaded.model))
    stages: list[tuple[Any, jax.Array]] = []

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, ShiftStage) and context.method_name == "__call__":
            stages.append((context.module, args[0]))
        return call(*args, **kwargs)

    with traced_for("cpu"), nn.intercept_methods(watch):
        logits_BK, recorded = record_in_trace(loaded, model.restored.variables, images_BHWC, by)
    probabilities_BK = jax.nn.softmax(logits_BK, axis=-1)[:, : len(loaded.class_names)]
    settings = loaded.preprocessing
    mean, std = (jnp.asarray(each, jnp.float32).reshape(1, 1, 1, -1) for each in (settings.mean, settings.std))
    picture_BHWC = jnp.clip(loaded.preprocess(images_BHWC) * std + mean, 0.0, 1.0)
    maps = _weights(model, recorded)
    if isinstance(loaded.model, ShiftViT) and loaded.model.shift != "none":
        maps += [_shift(loaded.model, i, x_BHWC) for i, (_, x_BHWC) in enumerate(stages)]
    return [probabilities_BK, picture_BHWC, *(array for _, array in maps)], [facts for facts, _ in maps]


def _weights(model: ExportModel, recorded: Recorded) -> list[tuple[MapFacts, jax.Array]]:
    """The maps of TokenLearner, TokenFuser and the pooling; without any, attention rollout if the model has it."""
    loaded, grid = model.loaded, recorded.grid
    if grid is None:
        return []
    places = math.prod(grid)
    height, width = loaded.input_shape[:2]
    place = {"grid": grid, "covered": (recorded.covered[0] / height, recorded.covered[1] / width)}

    def maps(weights_BKN: jax.Array) -> jax.Array:
        return weights_BKN.reshape(-1, weights_BKN.shape[1], *grid)

    found = []
    for step in recorded.steps:
        if step.kind == "attention" or places not in step.weights.shape[1:]:
            continue
        number = step.name.rpartition("_")[2]
        if step.kind == "learn":
            names = tuple(f"token {i + 1}" for i in range(step.weights.shape[1]))
            note = "Each map shows from where one learned token takes its values."
            facts = MapFacts("tokens", f"TokenLearner before block {number}", note, names=names, **place)
            found.append((facts, maps(step.weights)))
        else:
            names = tuple(f"token {i + 1}" for i in range(step.weights.shape[2]))
            note = "Each map shows how much of one learned token is added at each place, from 0 to 1."
            title = f"TokenFuser after block {number}"
            facts = MapFacts("fuser", title, note, names=names, relative=False, **place)
            found.append((facts, maps(step.weights.swapaxes(1, 2))))
    pool = recorded.pool
    if pool is not None and pool.shape[-1] == places:
        names = ("weights",) if pool.shape[1] == 1 else tuple(f"query {i + 1}" for i in range(pool.shape[1]))
        facts = MapFacts("pool", "Pooling", "The weight of each place in the pooled vector.", names=names, **place)
        found.append((facts, maps(pool)))
    if found or model.reduce or not any(step.kind == "attention" for step in recorded.steps):
        return found
    try:
        rollout_BN = attention_rollout(recorded, getattr(loaded.model, "pool", ""))
    except ValueError:  # a pooling for which it is not defined
        return found
    note = "How much of each place reaches the answer through attention (Abnar and Zuidema 2020)."
    return [(MapFacts("rollout", "Attention rollout", note, names=("rollout",), **place), maps(rollout_BN[:, None]))]


def _shift(model: ShiftViT, stage: int, x_BHWC: jax.Array) -> tuple[MapFacts, jax.Array]:
    """The strength of each group of channels before the first block of a stage: the root of the mean square."""
    channels = x_BHWC.shape[-1]
    width = channels // model.divisions if model.groups == "count" else model.divisions
    bounds = [0, width, 2 * width, 3 * width, 4 * width, channels]
    groups = [(a, b) for a, b in itertools.pairwise(bounds) if b > a]
    squares_BHWC = jnp.square(x_BHWC.astype(jnp.float32))
    strengths = [jnp.sqrt(jnp.mean(squares_BHWC[..., a:b], axis=-1)) for a, b in groups]
    directions = (*_DIRECTIONS, "stays")
    names = tuple(f"{name}: {b - a} of {channels} channels" for name, (a, b) in zip(directions, groups, strict=False))
    rows, columns = x_BHWC.shape[1:3]
    pixels = f"{model.pixels} pixel{'s' * (model.pixels != 1)}"
    border = model.shift == "border"
    what = f"sets a border of {pixels} to zero and moves nothing" if border else f"moves four groups by {pixels}"
    note = f"The first block of this stage {what}. Brightness is the strength of a group on this image."
    facts = MapFacts(
        "shift",
        f"Stage {stage + 1}: {rows}×{columns}",
        note,
        grid=(rows, columns),
        covered=(1.0, 1.0),
        names=names,
        pixels=model.pixels,
        border=border,
    )
    return facts, jnp.stack(strengths, axis=1)
