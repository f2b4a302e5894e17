"""The teacher in a run: checks that it fits, and what it says about a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvit.config.distillation import TeacherWeights, read_teacher
from jaxvit.config.plan_types import Plan
from jaxvit.errors import UsageError
from jaxvit.layers.pool import Classifier
from jaxvit.ops import implementations

Call = Callable[[], jax.Array]


@dataclass(frozen=True)
class Teacher:
    """A trained model whose answers another one learns.

    Its weights are constants of the training program: they are neither in the optimizer nor in the checkpoints.

    Attributes:
      weights: the trained model.
      features: whether to return its features, too.
      implementations: implementations of operations, as in the run.
    """

    weights: TeacherWeights
    features: bool
    implementations: str

    def __call__(self, images_BHWC: jax.Array) -> dict[str, jax.Array]:
        """Returns `teacher_logits` [B, K] of augmented images, and `teacher_features` [B, C]: what its head sees."""
        with implementations.use(self.implementations):
            logits_BK, features_BC = logits_and_features(
                lambda: cast(jax.Array, self.weights.model.apply(self.weights.variables, images_BHWC, train=False))
            )
        found = {"teacher_logits": logits_BK}
        if self.features:
            found["teacher_features"] = features_BC
        return jax.lax.stop_gradient(found)


def logits_and_features(call: Call) -> tuple[jax.Array, jax.Array]:
    """Runs a model; returns (its logits, the input of its head [B, C] in float32).

    Raises:
      UsageError: the model has no `jaxvit.layers.Classifier`; features are not known then.
    """
    seen: list[jax.Array] = []

    def watch(call, args, kwargs, context):
        if isinstance(context.module, Classifier) and context.method_name == "__call__":
            seen.append(args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        logits_BK = call()
    if not seen:
        raise UsageError("config.distill.features: a model whose head is not jaxvit.layers.Classifier has no features")
    return logits_BK, seen[-1].astype(jnp.float32)


def teacher_of(plan: Plan, student_logits: Callable[[], jax.Array]) -> Teacher | None:
    """Reads the teacher of a run and checks that it fits; None if the run has none.

    Args:
      plan: plan of the run.
      student_logits: runs the student on one image, for its number of features; called while only shapes are traced.

    Raises:
      UsageError: other classes, images or normalisation than the run's; other weights than those of `distill.hash`; or
        features of another width.
    """
    settings = plan.distill
    if not settings.source:
        return None
    weights = read_teacher(settings.source)
    facts, where = weights.facts, f"config.distill.from='{settings.source}'"
    if settings.hash not in ("", weights.hash):
        raise UsageError(
            f"{where}: its weights have changed since this run began (hash {settings.hash} then, {weights.hash} now); "
            "put them back, or use a new --workdir"
        )
    if facts.class_names != plan.data.class_names:
        theirs, ours = (", ".join(names[:3]) for names in (facts.class_names, plan.data.class_names))
        raise UsageError(
            f"{where}: the teacher knows {len(facts.class_names)} classes ({theirs}, …), and this run has "
            f"{len(plan.data.class_names)} ({ours}, …); both must have the same"
        )
    if facts.input_shape != plan.input_shape:
        theirs, ours = ("×".join(map(str, shape)) for shape in (facts.input_shape, plan.input_shape))
        raise UsageError(
            f"{where}: the teacher sees images of {theirs}, and this run has {ours}; both must be the same"
        )
    for name in ("mean", "std"):
        theirs, ours = getattr(facts.preprocessing, name), getattr(plan.augment, name)
        if theirs != ours:
            raise UsageError(
                f"{where}: the teacher's images have {name} {theirs}, and config.augment.{name}={ours}; set it to the "
                "teacher's"
            )
    teacher = Teacher(weights, settings.features > 0, plan.train.implementations)
    images = jax.ShapeDtypeStruct((1, *plan.input_shape), jnp.float32)
    said = jax.eval_shape(teacher, images)
    if settings.features:
        _, own = jax.eval_shape(lambda: logits_and_features(student_logits))
        if own.shape != said["teacher_features"].shape:
            raise UsageError(
                f"config.distill.features={settings.features}: the teacher has {said['teacher_features'].shape[-1]} "
                f"features, and this model {own.shape[-1]}; both must have the same number, or set it to 0"
            )
    return teacher
