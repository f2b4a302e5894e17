"""Puts the parts that a Plan names together: model, transforms, optimizer. The one place where they meet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.errors import FlaxError

from jaxvit.data.augment import evaluation_transform, geometric_transform, training_transform
from jaxvit.errors import UsageError
from jaxvit.models.registry import create_model
from jaxvit.plan import Plan
from jaxvit.training.optimizer import Schedule, average_weights, make_optimizer, make_schedule
from jaxvit.training.state import TrainState, create_state, derive_key
from jaxvit.training.step import make_eval_step, make_loss, make_train_step, step_keys


@dataclass(frozen=True)
class Assembly:
    """The parts of a run.

    Attributes:
      model: Flax module.
      init: key -> variables {'params': …, and any collection that is not trained}.
      apply: (variables, images, *, train, key=None) -> logits.
      apply_plainly: the same without remat and scan, for looking into modules.
      optimizer, schedule: optax transformation; learning rate of a step.
      abstract_state: shapes and types of the TrainState, made without computing anything.
      classes: K of the model's output; at least as many as the data set has.
    """

    plan: Plan
    model: nn.Module
    init: Callable[[jax.Array], Any]
    apply: Callable[..., jax.Array]
    apply_plainly: Callable[..., jax.Array]
    optimizer: optax.GradientTransformation
    schedule: Schedule
    abstract_state: TrainState
    classes: int

    def create_state(self) -> TrainState:
        """The state before the first step; to be jitted."""
        key = derive_key(self.plan.seed, "init")
        return create_state(self.init, self.optimizer, key, ema=self.plan.ema_decay > 0)

    def loss(
        self, axis_name: str | None = None, *, plainly: bool = False
    ) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """The two halves of this run's forward pass, see `jaxvit.training.step.make_loss`."""
        return make_loss(
            self.apply_plainly if plainly else self.apply,
            training_transform(self.plan.augment, self.classes, self.plan.train.label_smoothing),
            derive_key(self.plan.seed, "step"),
            axis_name=axis_name,
        )

    def train_step(self, axis_name: str | None = None) -> Callable[..., Any]:
        """The pure training step of this run."""
        plan = self.plan
        average = partial(average_weights, decay=plan.ema_decay, ramp=plan.ema_ramp) if plan.ema_decay else None
        prepare, loss = self.loss(axis_name)
        return make_train_step(
            prepare, loss, self.optimizer, accumulate=plan.train.accumulate, ema=average, axis_name=axis_name
        )

    def host_transform(self) -> Callable[[int, Mapping[str, np.ndarray]], dict[str, np.ndarray]] | None:
        """(step, batch) -> batch with the geometry done by the host's processor; None where the device does it."""
        if self.plan.augment.where != "host":
            return None
        root, geometric = derive_key(self.plan.seed, "step"), geometric_transform(self.plan.augment)
        transform = jax.jit(lambda step, images: geometric(step_keys(root, step)[0], images))

        def apply(step: int, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            with jax.default_device(jax.local_devices(backend="cpu")[0]):
                return {**batch, "image": np.asarray(transform(np.int32(step), batch["image"]))}

        return apply

    def eval_step(self, axis_name: str | None = None) -> Callable[..., Any]:
        """The pure evaluation step of this run."""
        return make_eval_step(self.apply, evaluation_transform(self.plan.augment), axis_name=axis_name)


def assemble(plan: Plan, overrides: Iterable[str] = ()) -> Assembly:
    """Builds the parts; checks, by tracing shapes only, that the model takes the data set's images and can be trained.

    Args:
      plan: what to build.
      overrides: config keys set by hand; a model's attribute among them must have an effect.

    Raises:
      UsageError: the model's attributes do not fit together or do not fit the images.
    """
    shape = plan.input_shape
    if not all(shape):
        raise UsageError(
            f"config.data.name: the images of {plan.data.name} vary in size; only sets of one size can be used"
        )
    try:
        model = create_model(plan.model.name, **dict(plan.model.attributes))
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UsageError(f"config.model: {error}") from None

    idle = model.idle_attributes() if hasattr(model, "idle_attributes") else {}
    for key in overrides:
        if (name := key.removeprefix("model.")) in idle and key.startswith("model."):
            raise UsageError(f"--config.{key}: nothing reads this key in this run: model.{idle[name]}")

    def init(key: jax.Array) -> Any:
        return dict(model.init(key, jnp.zeros((1, *shape), jnp.float32), train=False))

    def applying(model: nn.Module) -> Callable[..., jax.Array]:
        def apply(variables: Any, images_BHWC: jax.Array, *, train: bool, key: jax.Array | None = None) -> jax.Array:
            return model.apply(variables, images_BHWC, train=train, rngs={"dropout": key} if train else None)

        return apply

    apply = applying(model)
    # The same numbers, module by module: remat and scan hide the modules from whoever wants to look at their outputs.
    plain = {name: False for name in ("remat", "scan") if getattr(model, name, False) is True}
    apply_plainly = applying(model.clone(**plain)) if plain else apply

    no_decay = tuple(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else ()
    optimizer = make_optimizer(plan.optim, no_decay)
    try:
        abstract = jax.eval_shape(
            lambda: create_state(init, optimizer, derive_key(plan.seed, "init"), ema=plan.ema_decay > 0)
        )
        images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        logits = jax.eval_shape(lambda variables, x: apply(variables, x, train=False), abstract.variables, images)
        # Training takes ways of its own: dropout, for instance.
        key = jax.eval_shape(lambda: jax.random.key(0))
        jax.eval_shape(lambda v, x, k: apply(v, x, train=True, key=k), abstract.variables, images, key)
    except (ValueError, TypeError, ArithmeticError, FlaxError) as error:
        size, reason = "×".join(map(str, shape)), str(error).splitlines()[0]
        raise UsageError(f"config.model: {plan.model.name} does not work on images of {size}: {reason}") from None
    classes = len(plan.data.class_names)
    if logits.ndim != 2 or logits.shape[-1] < classes:
        raise UsageError(
            f"config.model.name: {plan.model.name} gives outputs of shape {logits.shape} for one image, "
            f"and {plan.data.name} has {classes} classes: it must give one score for each"
        )
    return Assembly(
        plan, model, init, apply, apply_plainly, optimizer, make_schedule(plan.optim), abstract, logits.shape[-1]
    )
