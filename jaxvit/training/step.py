"""One training step and one evaluation step, as pure functions.

The same function runs on one device, under `jax.jit` over a mesh, and under `jax.pmap`: only `pmap` needs `axis_name`,
the other two see the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxvit.ops.labels import one_hot
from jaxvit.training.loss import cross_entropy
from jaxvit.training.metrics import Sums, classification_sums
from jaxvit.training.state import TrainState

Apply = Callable[..., jax.Array]  # (variables, images, *, train, key) -> logits float32 [B, K]


def make_loss(
    apply: Apply,
    transform: Callable[..., tuple[jax.Array, jax.Array]],
    key: jax.Array,
    *,
    axis_name: str | None = None,
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Builds the two halves of a training step's forward pass.

    Args:
      apply: the model.
      transform: ``(key, step, batch) -> (images, targets [B, K])``: what the model sees, and the distribution over the
        classes that it should say; of weighted classes, times the weights.
      key: root of the step's randomness.
      axis_name: name of pmap's axis; None everywhere else.

    Returns:
      prepare: ``(step, batch) -> examples``, augmented images and all that the loss needs, on whole batches.
      loss: ``(params, constants, examples) -> (loss, (logits [B, K], loss of each image [B]))``. Summed over the parts
        of a batch (micro-batches, or devices under pmap) it is the batch's mean; so are its gradients.
    """

    def prepare(step: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
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

    def loss(
        params: Any, constants: Any, examples: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        variables = {"params": params, **constants}
        logits_BK = apply(variables, examples["image"], train=True, key=examples["key"])
        loss_B = cross_entropy(logits_BK, examples["target"])
        total = jnp.sum(jnp.where(examples["mask"] > 0, loss_B, 0.0))
        return total / examples["count"], (logits_BK, loss_B)

    return prepare, loss


def step_keys(key: jax.Array, step: jax.Array, axis_name: str | None = None) -> tuple[jax.Array, jax.Array]:
    """(augmentation's key, model's key) of a step."""
    step_key = jax.random.fold_in(key, step)
    if axis_name:
        step_key = jax.random.fold_in(step_key, jax.lax.axis_index(axis_name))
    augment_key, model_key = jax.random.split(step_key)
    return augment_key, model_key


def make_train_step(
    prepare: Callable[..., Any],
    loss: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    ema: Callable[[Any, Any, jax.Array], Any] | None = None,
    axis_name: str | None = None,
) -> Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, Sums]]:
    """Builds ``train_step(state, batch) -> (state, sums)``.

    Args:
      prepare, loss: made by `make_loss`, with the same axis_name.
      optimizer: optax transformation.
      accumulate: parts that the batch is cut into; their gradients are added up one after the other.
      ema: ``(average, new params, step) -> average``; None = no average is kept.
      axis_name: name of pmap's axis; None everywhere else.
    """

    def gradients_and_sums(params: Any, constants: Any, examples: Mapping[str, jax.Array]) -> tuple[Any, Sums]:
        gradients, (logits_BK, loss_B) = jax.grad(loss, has_aux=True)(params, constants, examples)
        return gradients, classification_sums(logits_BK, examples["label"], loss_B, examples["mask"])

    def accumulated(params: Any, constants: Any, examples: Mapping[str, jax.Array]) -> tuple[Any, Sums]:
        parts = cut_examples(examples, accumulate)

        def run(part: Mapping[str, jax.Array]) -> tuple[Any, Sums]:
            return gradients_and_sums(params, constants, {"count": examples["count"], **part})

        def add(total: Any, part: Mapping[str, jax.Array]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, run(part)), None

        shapes = jax.eval_shape(run, jax.tree.map(lambda x: x[0], parts))
        total, _ = jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), parts)
        return total

    def train_step(state: TrainState, batch: Mapping[str, jax.Array]) -> tuple[TrainState, Sums]:
        examples = prepare(state.step, batch)
        if accumulate == 1:
            gradients, sums = gradients_and_sums(state.params, state.constants, examples)
        else:
            gradients, sums = accumulated(state.params, state.constants, examples)
        gradients, sums = _sum_over_devices((gradients, sums), axis_name)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        sums = sums | {
            "steps": jnp.float32(1.0),
            "gradient_norm": optax.tree.norm(gradients),
            "parameter_norm": optax.tree.norm(params),
            "update_norm": optax.tree.norm(updates),
        }
        average = ema(state.ema, params, state.step) if ema else state.ema
        state = state.replace(step=state.step + 1, params=params, opt_state=opt_state, ema=average)
        return state, sums

    return train_step


def cut_examples(examples: Mapping[str, jax.Array], parts: int) -> dict[str, jax.Array]:
    """What `prepare` made, [B, …], as [parts, B / parts, …], each part with a key of its own; without the count."""
    cut = {name: _cut(x, parts) for name, x in examples.items() if name not in ("count", "key")}
    return cut | {"key": jax.random.split(examples["key"], parts)}


def _cut(x: jax.Array, parts: int) -> jax.Array:
    """[B, ...] to [parts, B / parts, ...]. A part takes from all over the batch, so each device keeps its images."""
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)


def make_train_call(
    train_step: Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, Sums]],
    pick: Callable[[Any, Any, jax.Array | int], Mapping[str, jax.Array]],
    steps_per_call: int,
) -> Callable[[TrainState, Any, Any, jax.Array], tuple[TrainState, Sums]]:
    """Builds ``train_call(state, data, call, count) -> (state, sums)``: several steps in one go of the device.

    XLA's CPU backend runs the body of a loop several times slower than the same step by itself, and rounds differently
    there: on a CPU, call the step from Python.

    Args:
      train_step: made by `make_train_step`.
      pick: (data, call, i) -> the batch of the call's i-th step.
      steps_per_call: K; the sums of the `count` <= K steps come back stacked, [K], so that nothing is lost by doing
        them together. A `while` loop rather than `scan`, so that one program serves every count: an epoch need not be
        a whole number of calls.
    """

    def train_call(state: TrainState, data: Any, call: Any, count: jax.Array) -> tuple[TrainState, Sums]:
        # Gathered before the loop: a loop that reads from the whole split carries a copy of it around.
        batches = jax.vmap(lambda i: pick(data, call, i))(jnp.arange(steps_per_call))
        shapes = jax.eval_shape(lambda s: train_step(s, jax.tree.map(lambda x_K: x_K[0], batches))[1], state)
        empty = jax.tree.map(lambda x: jnp.zeros((steps_per_call, *x.shape), x.dtype), shapes)

        def one(i: jax.Array, carry: tuple[TrainState, Sums]) -> tuple[TrainState, Sums]:
            state, stacked = carry
            state, sums = train_step(state, jax.tree.map(lambda x_K: x_K[i], batches))
            return state, jax.tree.map(lambda all_K, one: all_K.at[i].set(one), stacked, sums)

        return jax.lax.fori_loop(0, count, one, (state, empty))

    return train_call


def make_eval_step(
    apply: Apply, transform: Callable[[jax.Array], jax.Array], *, axis_name: str | None = None, by_class: bool = False
) -> Callable[[Any, Mapping[str, jax.Array]], Sums]:
    """Builds ``eval_step(variables, batch) -> sums``, without smoothing, class weights and randomness.

    `by_class`: see `jaxvit.training.metrics.classification_sums`.
    """

    def eval_step(variables: Any, batch: Mapping[str, jax.Array]) -> Sums:
        logits_BK = apply(variables, transform(batch["image"]), train=False)
        loss_B = cross_entropy(logits_BK, one_hot(batch["label"], logits_BK.shape[-1]))
        sums = classification_sums(logits_BK, batch["label"], loss_B, batch["mask"], by_class=by_class)
        return _sum_over_devices(sums, axis_name)

    return eval_step


def _sum_over_devices(tree: Any, axis_name: str | None) -> Any:
    return jax.lax.psum(tree, axis_name) if axis_name else tree
