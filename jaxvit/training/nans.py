"""Finds where a number that is not finite first comes from, by running one step again module by module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvit.training.state import TrainState
from jaxvit.training.step import cut_examples


def explain(
    prepare: Callable[..., Any],
    loss: Callable[..., Any],
    state: TrainState,
    batch: Mapping[str, Any],
    accumulate: int = 1,
) -> str:
    """A phrase that names the first module whose output, or else the first parameter whose gradient, is not finite.

    Args:
      prepare: the run's augmentation, (step, batch) -> examples; see `jaxvit.training.step.prepare`.
      loss: the run's loss, (params, constants, examples) -> (loss, …); see `jaxvit.training.step.loss`.
      state: before the step that went wrong.
      batch: of that step.
      accumulate: parts that the step cuts its batch into; each draws noise of its own.
    """
    examples = prepare(state.step, batch)
    parts = [examples]
    if accumulate > 1:
        cut = cut_examples(examples, accumulate)
        parts = [examples | {name: x[i] for name, x in cut.items()} for i in range(accumulate)]
    for part in parts:
        if found := _explain_part(loss, state, part):
            return found
    return "forward pass and gradients are finite when repeated; the update itself is not: lower optim.peak_lr"


def _explain_part(loss: Callable[..., Any], state: TrainState, examples: Mapping[str, Any]) -> str:
    """The same for one part; '' where all is finite."""
    culprits: list[str] = []

    def watch(next_fun: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        inputs_fine = _finite((args, kwargs))
        outputs = next_fun(*args, **kwargs)
        if inputs_fine and not _finite(outputs):
            culprits.append("/".join(context.module.path) or type(context.module).__name__)
        return outputs

    with nn.intercept_methods(watch):
        loss(state.params, state.constants, examples)
    # Inner modules finish before the outer ones that contain them: the first entry is the innermost.
    if culprits:
        return f"the output of module {culprits[0]} is the first that is not finite"
    gradients, _ = jax.grad(loss, has_aux=True)(state.params, state.constants, examples)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        if not _finite(gradient):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return f"the forward pass is finite; the gradient of {name} is not"
    return ""


def _finite(tree: Any) -> bool:
    arrays = [
        x
        for x in jax.tree.leaves(tree)
        # A module of somebody's own may trace a part of itself; a tracer has no values to look at.
        if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer) and jnp.issubdtype(x.dtype, jnp.inexact)
    ]
    return all(bool(jnp.isfinite(x).all()) for x in arrays)
