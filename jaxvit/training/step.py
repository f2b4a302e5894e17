"""One training step and one evaluation step, as pure functions.

Read from top to bottom: `train_step` calls `prepare` (augmentation), `loss` (the model) and the optimizer. Every
function takes the model and the transforms as arguments; `jaxvit.run.assembly.Assembly` binds those of a run. The same
functions run on one device, under `jax.jit` over a mesh, and under `jax.pmap`: only `pmap` needs `axis_name`, the other
two see the whole batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar, cast

import jax
import jax.numpy as jnp
import optax

from jaxvit.ops.labels import one_hot
from jaxvit.ops.trees import Params, Variables
from jaxvit.training.loss import Found, by_labels, cross_entropy
from jaxvit.training.metrics import Sums, classification_sums
from jaxvit.training.state import TrainState

T = TypeVar("T")

Apply = Callable[..., jax.Array]  # (variables, images, *, train, key) -> logits float32 [B, K]
Trained = Callable[..., Found]  # the same, or (logits, features [B, C]) if the criterion needs both
Batch = Mapping[str, jax.Array]  # image uint8 [B, H, W, C], label int32 [B], mask float32 [B]
# (key, step, batch) -> (images float32 [B, H, W, C], targets float32 [B, K])
Transform = Callable[[jax.Array, jax.Array, Batch], tuple[jax.Array, jax.Array]]
Criterion = Callable[[Found, Batch], tuple[jax.Array, jax.Array]]  # (output, examples) -> (logits, loss [B])
Gather = Callable[[Params], Params]
Average = Callable[[Params, Params, jax.Array], Params]  # (average, new parameters, step) -> average


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    key: jax.Array,
    apply: Trained,
    transform: Transform,
    optimizer: optax.GradientTransformation,
    accumulate: int = 1,
    average: Average | None = None,
    gather: Gather | None = None,
    axis_name: str | None = None,
    criterion: Criterion = by_labels,
) -> tuple[TrainState, Sums]:
    """Augments a batch, computes gradients and updates the state.

    Args:
      state: state before the step.
      batch: images, labels and mask.
      key: root key of the run; the step's own keys are derived from it and `state.step`.
      apply: the model.
      transform: augments the images and makes the targets.
      optimizer: optax transformation.
      accumulate: number of parts that the batch is cut into; their gradients are computed one after the other and
        added.
      average: updates the EMA of the parameters; None = no EMA is kept.
      gather: gathers parameters that are split over devices, `jaxvit.devices.sharding.gather_where_used`; None = they
        are not split.
      axis_name: name of pmap's axis; None under jit.
      criterion: the loss of each image.

    Returns:
      The state after the step, and sums over the batch: those of `classification_sums`, and the norms of gradient,
      parameters and update.
    """
    # The scopes are the origins that `jaxvit compile` and profiles report.
    with jax.named_scope("augment"):
        examples = prepare(state.step, batch, key=key, transform=transform, axis_name=axis_name)
    with jax.named_scope("model"):
        how = {"apply": apply, "accumulate": accumulate, "gather": gather, "criterion": criterion}
        gradients, sums = gradients_and_sums(state, examples, **how)
    gradients, sums = _sum_over_devices((gradients, sums), axis_name)
    with jax.named_scope("optimizer"):
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = cast(Params, optax.apply_updates(state.params, updates))
        ema = average(state.ema, params, state.step) if average else state.ema
    with jax.named_scope("norms"):
        sums = sums | {
            "steps": jnp.float32(1.0),
            "gradient_norm": optax.tree.norm(gradients),
            "parameter_norm": optax.tree.norm(params),
            "update_norm": optax.tree.norm(updates),
        }
    return dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state, ema=ema), sums


def prepare(
    step: jax.Array, batch: Batch, *, key: jax.Array, transform: Transform, axis_name: str | None = None
) -> dict[str, jax.Array]:
    """Augments a batch and collects everything that `loss` needs.

    Returns:
      image float32 [B, H, W, C], target float32 [B, K], label, mask; count: images that count, over all devices;
      key: random key of the model's dropout and drop path.
    """
    augment_key, model_key = step_keys(key, step, axis_name)
    images_BHWC, targets_BK = transform(augment_key, step, batch)
    return {
        "image": images_BHWC,
        "target": targets_BK,
        "label": batch["label"],
        "mask": batch["mask"],
        "count": jnp.maximum(_sum_over_devices(jnp.sum(batch["mask"]), axis_name), 1.0),
        "key": model_key,
    }


def step_keys(key: jax.Array, step: jax.Array, axis_name: str | None = None) -> tuple[jax.Array, jax.Array]:
    """Derives (the augmentation's key, the model's key) of a step from the root key of the run."""
    step_key = jax.random.fold_in(key, step)
    if axis_name:
        step_key = jax.random.fold_in(step_key, jax.lax.axis_index(axis_name))
    augment_key, model_key = jax.random.split(step_key)
    return augment_key, model_key


def loss(
    params: Params,
    constants: Variables,
    examples: Batch,
    *,
    apply: Trained,
    gather: Gather | None = None,
    criterion: Criterion = by_labels,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Runs the model on examples made by `prepare`.

    Returns:
      (loss, (logits [B, K], loss of each image [B])). The loss is divided by the count of the whole batch, so that
      the losses (and gradients) of its parts add up to the batch's mean.
    """
    variables = {"params": gather(params) if gather else params, **constants}
    found = apply(variables, examples["image"], train=True, key=examples["key"])
    logits_BK, loss_B = criterion(found, examples)
    total = jnp.sum(jnp.where(examples["mask"] > 0, loss_B, 0.0))
    return total / examples["count"], (logits_BK, loss_B)


def gradients_and_sums(
    state: TrainState,
    examples: Batch,
    *,
    apply: Trained,
    accumulate: int = 1,
    gather: Gather | None = None,
    criterion: Criterion = by_labels,
) -> tuple[Params, Sums]:
    """Gradients of the mean loss, and the metrics' sums; with `accumulate` > 1, part by part."""

    def of_part(part: Batch) -> tuple[Params, Sums]:
        of_params = partial(loss, apply=apply, gather=gather, criterion=criterion)
        gradient = jax.grad(of_params, has_aux=True)
        gradients, (logits_BK, loss_B) = gradient(state.params, state.constants, part)
        return gradients, classification_sums(logits_BK, part["label"], loss_B, part["mask"])

    return of_part(examples) if accumulate == 1 else _add_up(of_part, examples, accumulate)


def _add_up(of_part: Callable[[Batch], T], examples: Batch, parts: int) -> T:
    """Sums a function's results over the parts of a batch, one part after the other."""
    cut = cut_examples(examples, parts)

    def add(total: T, part: Batch) -> tuple[T, None]:
        return jax.tree.map(jnp.add, total, of_part({"count": examples["count"], **part})), None

    shapes = jax.eval_shape(of_part, {"count": examples["count"], **jax.tree.map(lambda x: x[0], cut)})
    return jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), cut)[0]


def cut_examples(examples: Batch, parts: int) -> dict[str, jax.Array]:
    """Cuts examples made by `prepare`, [B, …], into [parts, B / parts, …]; each part gets its own key, none a count."""
    cut = {name: _cut(x, parts) for name, x in examples.items() if name not in ("count", "key")}
    return cut | {"key": jax.random.split(examples["key"], parts)}


def _cut(x: jax.Array, parts: int) -> jax.Array:
    """[B, …] to [parts, B / parts, …]. Each part takes every `parts`-th image, so that devices keep their images."""
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)


def train_steps(
    state: TrainState,
    batches: Batch,
    count: jax.Array,
    *,
    step: Callable[[TrainState, Batch], tuple[TrainState, Sums]],
) -> tuple[TrainState, Sums]:
    """Runs several training steps in one device program.

    XLA's CPU backend runs the body of a loop several times slower than the same step alone, and rounds differently
    there: on a CPU, call the step from Python.

    Args:
      state: state before the first step.
      batches: the batches of S steps, [S, B, …]. They are gathered before the loop, because a loop that reads from the
        whole split carries a copy of it.
      count: number of steps to run, at most S. A `while` loop rather than a `scan`, so that one program serves every
        count: an epoch need not be a whole number of calls.
      step: one training step, (state, batch) -> (state, sums).

    Returns:
      The state after the last step, and the sums of each step, [S], zero beyond `count`.
    """
    size = jax.tree.leaves(batches)[0].shape[0]
    shapes = jax.eval_shape(lambda s: step(s, jax.tree.map(lambda x_S: x_S[0], batches))[1], state)
    empty = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), shapes)

    def one(i: jax.Array, carry: tuple[TrainState, Sums]) -> tuple[TrainState, Sums]:
        state, stacked = carry
        state, sums = step(state, jax.tree.map(lambda x_S: x_S[i], batches))
        return state, jax.tree.map(lambda all_S, one: all_S.at[i].set(one), stacked, sums)

    return jax.lax.fori_loop(0, count, one, (state, empty))


def eval_step(
    variables: Variables,
    batch: Batch,
    *,
    apply: Apply,
    transform: Callable[[jax.Array], jax.Array],
    by_class: bool = False,
    axis_name: str | None = None,
) -> Sums:
    """Sums of the metrics over one batch; the loss has no label smoothing and no class weights, and nothing is random.

    Args:
      variables: variables of the model.
      batch: images, labels and mask.
      apply: the model.
      transform: preprocesses uint8 images.
      by_class: whether to add counts for each class; see `jaxvit.training.metrics.classification_sums`.
      axis_name: name of pmap's axis; None under jit.
    """
    logits_BK = apply(variables, transform(batch["image"]), train=False)
    loss_B = cross_entropy(logits_BK, one_hot(batch["label"], logits_BK.shape[-1]))
    sums = classification_sums(logits_BK, batch["label"], loss_B, batch["mask"], by_class=by_class)
    return _sum_over_devices(sums, axis_name)


def _sum_over_devices(tree: T, axis_name: str | None) -> T:
    return jax.lax.psum(tree, axis_name) if axis_name else tree
