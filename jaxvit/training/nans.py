"""Finds the source of a NaN or infinity by running a step again, module by module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxvit.training.state import TrainState
from jaxvit.training.step import Batch, cut_examples

# (params, constants, examples) -> (loss, other values); see `jaxvit.training.step.loss`.
Loss: TypeAlias = Callable[..., tuple[jax.Array, object]]


def explain(
    prepare: Callable[[jax.Array, Batch], dict[str, jax.Array]],
    loss: Loss,
    state: TrainState,
    batch: Batch,
    accumulate: int = 1,
) -> str:
    """Returns a phrase that names the first module with a non-finite output, or else the first such gradient.

    Args:
      prepare: the run's augmentation, (step, batch) -> examples; see `jaxvit.training.step.prepare`.
      loss: the run's loss, (params, constants, examples) -> (loss, …); see `jaxvit.training.step.loss`.
      state: state before the failed step.
      batch: batch of that step.
      accumulate: number of parts that the step cuts its batch into; each has its own random key.
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


def _explain_part(loss: Loss, state: TrainState, examples: Batch) -> str:
    """`explain` for one part; '' if everything is finite."""
    culprits: list[str] = []

    def watch(
        next_fun: Callable[..., object],
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        context: nn.module.InterceptorContext,
    ) -> object:
        inputs_fine = _finite((args, kwargs))
        outputs = next_fun(*args, **kwargs)
        if inputs_fine and not _finite(outputs):
            culprits.append("/".join(context.module.path) or type(context.module).__name__)
        return outputs

    with nn.intercept_methods(watch):
        loss(state.params, state.constants, examples)
    # Inner modules return before outer ones, so the first entry is the innermost.
    if culprits:
        return f"the output of module {culprits[0]} is the first that is not finite"
    gradients, _ = jax.grad(loss, has_aux=True)(state.params, state.constants, examples)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        if not _finite(gradient):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return f"the forward pass is finite; the gradient of {name} is not"
    return ""


def _finite(tree: object) -> bool:
    arrays = [
        x
        for x in jax.tree.leaves(tree)
        # A user's module may jit a part of itself; tracers have no values.
        if isinstance(x, jax.Array) and not isinstance(x, Tracer) and jnp.issubdtype(x.dtype, jnp.inexact)
    ]
    return all(bool(jnp.isfinite(x).all()) for x in arrays)
