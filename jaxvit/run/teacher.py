"""The teacher in a run: checks that it fits, and what it says about a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from jaxvit.training.loss import Found, cross_entropy, distillation_loss, feature_distance
from jaxvit.training.settings import Distillation

Call = Callable[[], jax.Array]


@dataclass(frozen=True)
class Teacher:
    """A trained model whose answers another one learns.

    Its weights are constants of the training program: they are neither in the optimizer nor in the checkpoints.

    Attributes:
      weights: the trained model.
      settings: how much is learned from it.
      implementations: implementations of operations, as in the run.
    """

    weights: TeacherWeights
    settings: Distillation
    implementations: str

    def answers(self, images_BHWC: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Returns (its logits [B, K], what its head sees [B, C] if that is learned) of augmented images."""

        def run() -> jax.Array:
            return cast(jax.Array, self.weights.model.apply(self.weights.variables, images_BHWC, train=False))

        with implementations.use(self.implementations):
            found = logits_and_features(run) if self.settings.features else (run(), None)
        return jax.lax.stop_gradient(found)

    def criterion(self, found: Found, examples: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """The loss of a student, (logits [B, K], loss [B]): labels, and the teacher's answers about the same images.

        Args:
          found: what the student returns: logits, or (logits, features) if features are learned.
          examples: result of `jaxvit.training.step.prepare`.
        """
        mix = self.settings
        logits_BK, features_BC = found if isinstance(found, tuple) else (found, None)
        teacher_BK, teacher_BC = self.answers(examples["image"])
        loss_B = (1 - mix.weight) * cross_entropy(logits_BK, examples["target"])
        if mix.weight:
            loss_B = loss_B + mix.weight * distillation_loss(logits_BK, teacher_BK, mix.temperature)
        if features_BC is not None and teacher_BC is not None:
            loss_B = loss_B + mix.features * feature_distance(features_BC, teacher_BC)
        return logits_BK, loss_B


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
    mix = Distillation(settings.weight, settings.temperature, settings.features)
    teacher = Teacher(weights, mix, plan.train.implementations)
    images = jax.ShapeDtypeStruct((1, *plan.input_shape), jnp.float32)
    _, theirs = jax.eval_shape(teacher.answers, images)
    if theirs is not None:
        _, ours = jax.eval_shape(lambda: logits_and_features(student_logits))
        if ours.shape != theirs.shape:
            raise UsageError(
                f"config.distill.features={settings.features}: the teacher has {theirs.shape[-1]} features, and this "
                f"model {ours.shape[-1]}; both must have the same number, or set it to 0"
            )
    return teacher
