"""Shows which parts of an image a trained model uses, from the weights that its layers sow and from gradients.

Attention rollout: Abnar and Zuidema 2020 (arXiv:2005.00928), section 3. Position similarities: figure 7 of Dosovitskiy
et al. 2020 (arXiv:2010.11929). Receptive fields from gradients: Luo et al. 2016 (arXiv:1701.04128), section 2.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from jaxvit.errors import RunFailedError
from jaxvit.layers import PositionEmbed, ShiftStage, TokenLearner
from jaxvit.layers.stack import plainly
from jaxvit.ops import implementations
from jaxvit.trained.load import Loaded


@dataclass(frozen=True)
class RecordedStep:
    """The weights with which one layer of an encoder mixes tokens.

    Attributes:
      kind: 'attention' (weights [B, M, N, N]), 'learn' ([B, S, N]) or 'fuse' ([B, N, S]).
      name: name of the layer, such as 'block_3'.
      weights: the weights.
      weighting: for 'learn', the function that gives the weights: 'softmax' or 'sigmoid'.
    """

    kind: str
    name: str
    weights: np.ndarray
    weighting: str = ""


@dataclass(frozen=True)
class Recorded:
    """The weights that a model used for B images.

    Attributes:
      grid: (rows, columns) of the N patches; None for a model without a patch grid.
      covered: (H, W), the part of the input image, from its upper left corner, that the patches cover.
      prefix: number of tokens without a patch (such as the class token), which precede the others.
      steps: the layers that mix tokens, in order; empty for a model without attention.
      pool: pooling weights [B, Q, N]; None if the pooling has no weights.
    """

    grid: tuple[int, int] | None
    covered: tuple[int, int]
    prefix: int
    steps: tuple[RecordedStep, ...]
    pool: np.ndarray | None


def record(loaded: Loaded, images_BHWC: np.ndarray) -> Recorded:
    """Runs the model on uint8 images [B, *image_shape] and collects the weights that its layers sow.

    A model that merges or removes tokens runs without that, since the maps need all places.

    Raises:
      RunFailedError: invalid weights, such as a softmax that does not sum to 1.
    """
    if hasattr(loaded.model, "reduce"):
        loaded = dataclasses.replace(loaded, model=loaded.model.clone(reduce="none"))
    traced: list[Recorded] = []

    def run(variables: Any, images: Any) -> Any:
        traced.append(record_in_trace(loaded, variables, images)[1])
        return [step.weights for step in traced[0].steps], traced[0].pool

    weights, pool = jax.device_get(jax.jit(run)(loaded.variables, images_BHWC))
    steps = tuple(
        dataclasses.replace(step, weights=array) for step, array in zip(traced[0].steps, weights, strict=True)
    )
    recorded = dataclasses.replace(traced[0], steps=steps, pool=pool)
    _check(recorded)
    return recorded


def record_in_trace(
    loaded: Loaded, variables: Any, images_BHWC: Any, by: Mapping[str, str] | None = None
) -> tuple[jax.Array, Recorded]:
    """Computes the scores [B, K] and the weights that the layers sow, without `jax.jit`: for tracing.

    Args:
      loaded: the trained model.
      variables: variables of the model.
      images_BHWC: uint8 [B, *image_shape].
      by: {operation: implementation}, see `jaxvit.trained.load.Loaded.apply`.

    Returns:
      (scores, record). Nothing is checked; the arrays of the record are those of the trace.
    """
    model = plainly(loaded.model)
    grids: list[tuple[int, ...]] = []
    learners: dict[str, str] = {}

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        out = call(*args, **kwargs)
        module = context.module
        if context.method_name == "__call__":
            if module.path == ("embed",) and out.ndim == 4:
                grids.append(out.shape[1:3])
            if isinstance(module, TokenLearner):
                learners["/".join(module.path)] = "sigmoid" if module.kind == "v1" else "softmax"
        return out

    ways = implementations.use(loaded.implementations), implementations.use(by or {})
    with ways[0], ways[1], nn.intercept_methods(watch):
        x = loaded.preprocess(images_BHWC)
        logits_BK, state = model.apply(variables, x, train=False, mutable=["intermediates"])
    sown = state.get("intermediates", {})
    steps, pool = [], None
    for path, (weights, *_) in sorted(flatten_dict(sown).items(), key=lambda item: _order(item[0])):
        *parents, layer, name = path
        if layer == "attention" and parents and parents[-1].startswith("block_"):
            steps.append(RecordedStep("attention", parents[-1], weights))
        elif name == "token_maps" and layer.startswith("token_learner_"):
            steps.append(RecordedStep("learn", layer, weights, learners["/".join((*parents, layer))]))
        elif name == "mix" and layer.startswith("token_fuser_"):
            steps.append(RecordedStep("fuse", layer, weights))
        elif name == "pool_weights":
            pool = weights
        elif name == "attention" and "attention_pool" in parents:
            pool = weights.mean(axis=1)
    grid = grids[0] if grids else None
    patch = getattr(model, "patch", 0) if getattr(model, "tokenizer", "patch") == "patch" else 0
    covered = tuple(side * patch for side in grid) if grid and patch else loaded.input_shape[:2]
    return logits_BK, Recorded(grid, covered, getattr(model, "prefix", 0), tuple(steps), pool)


def merged_places(loaded: Loaded, images_BHWC: np.ndarray) -> dict[str, np.ndarray]:
    """Returns which token each patch is in, after each block that merges or removes tokens.

    Args:
      loaded: the trained model.
      images_BHWC: uint8 [B, *image_shape].

    Returns:
      {name of the block: int [B, N]}, in order; -1 = removed. Blocks on learned tokens are left out.
    """
    model = plainly(loaded.model)
    prefix = getattr(model, "prefix", 0)

    def run(variables: Any, images: Any) -> Any:
        x = loaded.preprocess(images)
        with implementations.use(loaded.implementations):
            return model.apply(variables, x, train=False, mutable=["intermediates"])[1]

    sown = jax.device_get(jax.jit(run)(loaded.variables, images_BHWC)).get("intermediates", {})
    found: dict[int, np.ndarray] = {}
    for path, (places, *_) in flatten_dict(sown).items():
        if number := re.fullmatch(r"token_places_(\d+)", path[-1]):
            found[int(number[1])] = places[:, prefix:]
    largest = max((places.shape[1] for places in found.values()), default=0)
    return {f"block_{i}": found[i] for i in sorted(found) if found[i].shape[1] == largest}


def _order(path: Sequence[str]) -> tuple[int, int]:
    """Sort key for the layers of an encoder: TokenLearner i precedes block i, and TokenFuser i follows it."""
    for part in path:
        if found := re.fullmatch(r"(token_learner|block|token_fuser)_(\d+)", part):
            return int(found[2]), ("token_learner", "block", "token_fuser").index(found[1])
    return 1 << 30, 0


def _check(recorded: Recorded) -> None:
    """Checks that softmax weights sum to 1 and that sigmoid weights are in [0, 1]."""

    def must(fine: Any, name: str, what: str) -> None:
        if not np.all(fine):
            raise RunFailedError(f"{name}: {what}; the model does not compute what its layers document")

    for step in recorded.steps:
        if step.kind == "attention" or step.weighting == "softmax":
            must(abs(step.weights.sum(axis=-1) - 1) < 1e-3, step.name, "its weights do not sum to 1")
        must((step.weights >= 0) & (step.weights <= 1 + 1e-6), step.name, "its weights are not between 0 and 1")
    if recorded.pool is not None:
        must(abs(recorded.pool.sum(axis=-1) - 1) < 1e-3, "pooling", "its weights do not sum to 1")


def attention_rollout(recorded: Recorded, pool: str) -> Any:
    """Computes attention rollout: the share of each patch in the pooled output, [B, N]; each row sums to 1.

    As in the paper, only attention mixes tokens; norms, MLPs and the values are ignored. A block is half identity (the
    shortcut) and half the mean of its heads. A TokenLearner contributes its weights, normalised to sum to 1 for each
    token; a TokenFuser is half its mixing weights and half the map before the TokenLearner.

    Args:
      recorded: result of `record`, or of `record_in_trace`; then the rollout is traced too.
      pool: the model's pooling: 'cls', 'cls_register', 'mean', 'flatten', 'sequence' or 'attention'.

    Raises:
      ValueError: the model has no attention, or an unknown pooling.
    """
    if not recorded.steps or recorded.grid is None:
        raise ValueError("this model has no attention to roll out")
    prefix, places = recorded.prefix, math.prod(recorded.grid)
    batch = recorded.steps[0].weights.shape[0]
    xp = np if isinstance(recorded.steps[0].weights, np.ndarray) else jnp
    flow_BTN = before_BTN = xp.broadcast_to(xp.eye(prefix + places), (batch, prefix + places, prefix + places))
    for step in recorded.steps:
        if step.kind == "attention":
            flow_BTN = 0.5 * flow_BTN + 0.5 * step.weights.mean(axis=1) @ flow_BTN
            continue
        rows = _normalised(step.weights)
        if step.kind == "learn":
            before_BTN = flow_BTN
            flow_BTN = xp.concatenate([flow_BTN[:, :prefix], rows @ flow_BTN[:, prefix:]], axis=1)
        else:
            spread = 0.5 * before_BTN[:, prefix:] + 0.5 * rows @ flow_BTN[:, prefix:]
            flow_BTN = xp.concatenate([flow_BTN[:, :prefix], spread], axis=1)
    if pool == "cls":
        reached_BN = flow_BTN[:, 0]
    elif pool == "cls_register":
        reached_BN = flow_BTN[:, :2].mean(axis=1)
    elif pool in ("mean", "flatten"):
        reached_BN = flow_BTN[:, prefix:].mean(axis=1)
    elif pool in ("sequence", "attention") and recorded.pool is not None:
        reached_BN = (recorded.pool @ flow_BTN[:, prefix:])[:, 0]
    else:
        raise ValueError(f"pool={pool!r}: attention rollout does not support this pooling")
    return _normalised(reached_BN[:, prefix:])


def _normalised(weights: Any) -> Any:
    """Scales rows to sum to 1."""
    return weights / (weights.sum(axis=-1, keepdims=True)).clip(1e-12)


def position_similarities(loaded: Loaded) -> tuple[np.ndarray, tuple[int, int]] | None:
    """Returns the cosine similarities of the position embeddings of all patches, [N, N], and the grid (rows, columns).

    Returns None for a model without position embeddings.
    """
    model, found = plainly(loaded.model), []

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, PositionEmbed) and context.method_name == "__call__":
            found.append((context.module.clone(parent=None, name=None), context.module.path, args[0].shape, kwargs))
        return call(*args, **kwargs)

    images = jax.ShapeDtypeStruct((1, *loaded.input_shape), jnp.float32)
    with nn.intercept_methods(watch):
        jax.eval_shape(lambda v, x: model.apply(v, x, train=False), loaded.variables, images)
    if not found or found[0][0].kind == "none":
        return None
    module, path, shape, kwargs = found[0]
    params = loaded.variables["params"]
    for part in path:
        params = params.get(part, {})
    table_NC = np.asarray(module.apply({"params": params}, jnp.zeros(shape, jnp.float32), **kwargs)[0], np.float64)
    table_NC = table_NC[-math.prod(kwargs["grid"]) :]
    table_NC = table_NC / np.maximum(np.linalg.norm(table_NC, axis=1, keepdims=True), 1e-12)
    return table_NC @ table_NC.T, tuple(kwargs["grid"])


def receptive_fields(loaded: Loaded, images_BHWC: np.ndarray, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Computes the gradient of the central feature after each stage of a ShiftViT with respect to the input pixels.

    Args:
      loaded: the trained model.
      images_BHWC: uint8 [B, *image_shape]; the result is the mean over these images.
      seed: seed of the random signs with which the channels are summed, so that they do not cancel.

    Returns:
      {'stage 0 (12×12)': mean absolute gradients [H, W], scaled to a maximum of 1, …}; {} for other models.
    """
    model = plainly(loaded.model)
    x_BHWC = loaded.preprocess(images_BHWC)

    def stages(x: jax.Array) -> list[jax.Array]:
        def wanted(module: nn.Module, method: str) -> bool:
            return isinstance(module, ShiftStage) and method == "__call__"

        _, state = model.apply(
            loaded.variables, x, train=False, capture_intermediates=wanted, mutable=["intermediates"]
        )
        found = {k: v for k, v in flatten_dict(state.get("intermediates", {})).items() if k[-1] == "__call__"}
        return [value[0] for _, value in sorted(found.items())]

    shapes = [out.shape for out in jax.eval_shape(stages, x_BHWC)]
    fields = {}
    for i, (batch, height, width, channels) in enumerate(shapes):
        signs_BC = jax.random.rademacher(jax.random.key(seed), (batch, channels), jnp.float32)

        def middle(x: jax.Array, i: int = i, signs_BC: jax.Array = signs_BC) -> jax.Array:
            out = stages(x)[i].astype(jnp.float32)
            return jnp.sum(out[:, out.shape[1] // 2, out.shape[2] // 2] * signs_BC)

        gradient_BHWC = np.abs(np.asarray(jax.jit(jax.grad(middle))(x_BHWC), np.float64))
        field_HW = gradient_BHWC.mean(axis=(0, 3))
        fields[f"stage {i} ({height}×{width})"] = field_HW / max(field_HW.max(), 1e-30)
    return fields
