"""Puts the parts that a Plan names together: model, transforms, optimizer. The one place where they meet."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.errors import FlaxError, ModifyScopeVariableError
from jax.sharding import Mesh

from jaxvit import own_code
from jaxvit.config.plan_types import Plan
from jaxvit.data.augment import augment, augment_geometry, flip_key, mirrored, preprocess
from jaxvit.data.parts import Source, StreamedSource
from jaxvit.devices.hardware import memory_of_device
from jaxvit.devices.sharding import gather_where_used, on_own_rows, over_images, platform_of, split_batch
from jaxvit.errors import UsageError, first_line
from jaxvit.layers.stack import plainly
from jaxvit.models.count import count_params
from jaxvit.models.registry import create_model
from jaxvit.ops import implementations
from jaxvit.ops.trees import Params, Variables
from jaxvit.run.elastic import elastic_models
from jaxvit.run.initial_state import InitialValues, initial_values
from jaxvit.run.teacher import Teacher, logits_and_features, teacher_of
from jaxvit.training.frozen import check_frozen, hold
from jaxvit.training.loss import by_labels
from jaxvit.training.metrics import Sums
from jaxvit.training.muon import check_patterns
from jaxvit.training.optimizer import (
    average_weights,
    decay_mask,
    layer_factors,
    make_optimizer,
    make_schedule,
)
from jaxvit.training.state import TrainState, create_state, derive_key
from jaxvit.training.step import Batch, Trained, eval_step, prepare, step_keys, train_step


@dataclass(frozen=True)
class Assembly:
    """The parts of a run, and the functions that they make: `train_step`, `eval_step` and what these call.

    Every method that takes arrays is pure, to be jitted by the caller, e.g. ``jax.jit(assembly.train_step)``.

    Attributes:
      plan: the run's plan.
      model: Flax module.
      optimizer: optax transformation.
      schedule: learning rate of a step.
      abstract_state: shapes and types of the TrainState, computed without allocating arrays.
      classes: K of the model's output; at least the number of classes of the data set.
      initial: initial values that follow a formula; None = the modules' initializers alone.
      teacher: a trained model whose answers are learned; None = none.
      elastic: the model with each number of learned tokens of `train.elastic`; () = only `model`.
    """

    plan: Plan
    model: nn.Module
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    abstract_state: TrainState
    classes: int
    initial: InitialValues | None = None
    teacher: Teacher | None = None
    elastic: tuple[nn.Module, ...] = ()

    def train_step(
        self,
        state: TrainState,
        batch: Batch,
        *,
        key: jax.Array | None = None,
        axis_name: str | None = None,
        mesh: Mesh | None = None,
    ) -> tuple[TrainState, Sums]:
        """One training step: (state, batch) to (state, sums); see `jaxvit.training.step.train_step`.

        Args:
          state: state before the step.
          batch: images, labels and mask, from a feed.
          key: root key of all steps; None = `step_key()`.
          axis_name: name of pmap's axis; None under jit.
          mesh: mesh that the batch is split over; None for one device and for pmap. Its devices decide which
            implementations are the fastest; None = those of jax's default backend.
        """
        plan, key = self.plan, self.step_key() if key is None else key
        with _traced_for(mesh):
            return train_step(
                state,
                batch,
                key=key,
                apply=self._trained(),
                transform=partial(self.augment, root=key, mesh=mesh),
                optimizer=self.optimizer,
                accumulate=plan.train.accumulate,
                average=partial(average_weights, decay=plan.ema_decay, ramp=plan.ema_ramp, freeze=plan.optim.freeze)
                if plan.ema_decay
                else None,
                gather=self._gather(mesh) if mesh is not None and plan.train.fsdp > 1 else None,
                axis_name=axis_name,
                criterion=self.teacher.criterion if self.teacher else by_labels,
            )

    def _gather(self, mesh: Mesh) -> Callable[[Params], Params]:
        # The blocks' dense layers convert their kernels to the compute dtype; the other parameters are small. On CPUs,
        # attention with absorbed kernels multiplies them in float32 first.
        dtype = getattr(self.model, "dtype", "float32") if platform_of(mesh) != "cpu" else "float32"

        def dtype_of(path: tuple[str, ...]) -> str:
            block = any(part.startswith(("block_", "layers_")) for part in path)
            return dtype if block and path[-1] == "kernel" else "float32"

        return gather_where_used(mesh, dtype_of)

    def augment(
        self, key: jax.Array, step: jax.Array, batch: Batch, *, root: jax.Array, mesh: Mesh | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Augments a batch: images float32 [B, H, W, C] and targets [B, K]; see `jaxvit.data.augment.augment`.

        Args:
          key: augmentation key of the step.
          step: number of the step.
          batch: from a feed.
          root: root key of all steps.
          mesh: as in `train_step`.
        """
        settings = self.plan.augment
        # Images are mixed with images of the same device, unless there is only one.
        own = self.plan.train.per_device_batch > 1
        return augment(
            key,
            step,
            batch,
            settings,
            classes=self.classes,
            label_smoothing=self.plan.train.label_smoothing,
            each=over_images(mesh) if mesh is not None else jax.vmap,
            within=on_own_rows(mesh) if mesh is not None and own else lambda blend: blend,
            flips=flip_key(root) if settings.alternates else None,
            class_weights=self.plan.data.loss_weights,
        )

    def apply(
        self,
        variables: Variables,
        images_BHWC: jax.Array,
        *,
        train: bool,
        key: jax.Array | None = None,
        plain: bool = False,
    ) -> jax.Array:
        """Runs the model: images, as `augment` and `preprocess` return them, to logits [B, K].

        Args:
          variables: parameters and constants.
          images_BHWC: float32 images.
          train: whether dropout and drop path are on.
          key: key of dropout and drop path, needed if `train`.
          plain: without remat and scan, so that module calls can be intercepted.
        """
        return _apply(self.plan, plainly(self.model) if plain else self.model, variables, images_BHWC, train, key)

    def _trained(self) -> Trained:
        if self.elastic:
            return self.apply_elastic
        return self.apply_with_features if self.plan.distill.features else self.apply_in_training

    def apply_elastic(self, variables: Variables, images_BHWC: jax.Array, *, train: bool, key: jax.Array) -> jax.Array:
        """As `apply`, with one of the numbers of learned tokens of `train.elastic`, drawn by the key."""
        draw = jax.random.randint(jax.random.fold_in(key, len(self.elastic)), (), 0, len(self.elastic))

        def of(model: nn.Module) -> Callable[[Variables, jax.Array, jax.Array], jax.Array]:
            return lambda variables, images, key: _apply(self.plan, model, variables, images, train, key)

        return jax.lax.switch(draw, [of(model) for model in self.elastic], self._held(variables), images_BHWC, key)

    def apply_with_features(
        self, variables: Variables, images_BHWC: jax.Array, *, train: bool, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """As `apply`; returns (logits, what the head sees)."""
        return logits_and_features(lambda: self.apply_in_training(variables, images_BHWC, train=train, key=key))

    def apply_in_training(
        self, variables: Variables, images_BHWC: jax.Array, *, train: bool, key: jax.Array
    ) -> jax.Array:
        """As `apply`; frozen parameters have no gradients."""
        return self.apply(self._held(variables), images_BHWC, train=train, key=key)

    def _held(self, variables: Variables) -> Variables:
        return {**variables, "params": hold(variables["params"], self.plan.optim.freeze)}

    def eval_step(
        self, variables: Variables, batch: Batch, *, axis_name: str | None = None, mesh: Mesh | None = None
    ) -> Sums:
        """One evaluation step: (variables, batch) to sums; see `jaxvit.training.step.eval_step`.

        `mesh` is as in `train_step`.
        """
        transform = partial(preprocess, settings=self.plan.augment)
        by_class = self.plan.train.by_class
        with _traced_for(mesh):
            return eval_step(
                variables, batch, apply=self.apply, transform=transform, axis_name=axis_name, by_class=by_class
            )

    def prepare(
        self, step: jax.Array, batch: Batch, *, key: jax.Array | None = None, mesh: Mesh | None = None
    ) -> dict[str, jax.Array]:
        """The first half of `train_step` alone: augmented images and targets; see `jaxvit.training.step.prepare`."""
        key = self.step_key() if key is None else key
        return prepare(step, batch, key=key, transform=partial(self.augment, root=key, mesh=mesh))

    def init(self, key: jax.Array) -> Variables:
        """Initializes the variables, 'params' and any constants, by the modules' own initializers."""
        return _init(self.plan, self.model, key)

    def init_key(self) -> jax.Array:
        """The root key of the parameters."""
        return derive_key(self.plan.seed, "init")

    def step_key(self, seed: int | None = None) -> jax.Array:
        """The root key of all steps, for the plan's seed or another."""
        return derive_key(self.plan.seed if seed is None else seed, "step")

    def create_state(
        self,
        key: jax.Array | None = None,
        measured: np.ndarray | None = None,
        loaded: Mapping[str, np.ndarray] | None = None,
    ) -> TrainState:
        """The state before the first step.

        Args:
          key: root key of the parameters; None = `init_key()`. Jitted with it as an argument, one program serves all
            seeds.
          measured: result of `measure`. None = a first layer that should start with filters of the training images
            starts with random ones: enough where only shapes and speed count.
          loaded: result of `load`. None = weights of `init.from` are random likewise.
        """
        key = self.init_key() if key is None else key
        return create_state(partial(self._initial, measured, loaded), self.optimizer, key, ema=self.plan.ema_decay > 0)

    def _initial(
        self, measured: np.ndarray | None, loaded: Mapping[str, np.ndarray] | None, key: jax.Array
    ) -> Variables:
        variables = self.init(key)
        return self.initial(variables, key, measured, loaded) if self.initial else variables

    def measure(self, source: Source | StreamedSource) -> np.ndarray | None:
        """Measures what the initial values need of the training split; None if they need nothing."""
        return self.initial.measure(source) if self.initial else None

    def load(self) -> dict[str, np.ndarray]:
        """Reads the weights that the run starts from; {} if there are none."""
        return self.initial.load() if self.initial else {}

    def host_transform(
        self, before: int = 0
    ) -> Callable[[int, Mapping[str, np.ndarray]], dict[str, np.ndarray]] | None:
        """Returns (step, batch) -> batch, which augments the geometry on the host; None if the device does it.

        `before` is the number of images of the whole batch that precede those of this process.
        """
        settings = self.plan.augment
        if settings.where != "host":
            return None
        root = self.step_key()

        @jax.jit
        def transform(root: jax.Array, step: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
            by_turns_B = mirrored(settings, flip_key(root), step, batch)
            key, _ = step_keys(root, step)
            return augment_geometry(key, batch["image"], settings, mirrored_B=by_turns_B, before=before)

        def on_host(step: int, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            with jax.default_device(jax.local_devices(backend="cpu")[0]):
                return {**batch, "image": np.asarray(transform(root, np.int32(step), batch))}

        return on_host


def _traced_for(mesh: Mesh | None) -> contextlib.AbstractContextManager[None]:
    """Sets what the operations of a program for the devices of a mesh need to know of them."""
    if mesh is None:
        return contextlib.nullcontext()
    return implementations.traced_for(platform_of(mesh), split_batch(mesh))


def _init(plan: Plan, model: nn.Module, key: jax.Array) -> Variables:
    variables = dict(model.init(key, jnp.zeros((1, *plan.input_shape), jnp.float32), train=False))
    if "params" not in variables:
        raise UsageError(f"config.model.name='{plan.model.name}': has no parameters; there is nothing to train")
    return variables


def _apply(
    plan: Plan,
    model: nn.Module,
    variables: Variables,
    images_BHWC: jax.Array,
    train: bool,
    key: jax.Array | None = None,
) -> jax.Array:
    with implementations.use(plan.train.implementations):
        rngs = {"dropout": key} if train and key is not None else None
        return cast(jax.Array, model.apply(variables, images_BHWC, train=train, rngs=rngs))


def assemble(plan: Plan, overrides: Iterable[str] = (), *, begun: bool = False) -> Assembly:
    """Builds the parts; checks, by tracing shapes only, that the model takes the data set's images and can be trained.

    Args:
      plan: what to build.
      overrides: config keys set on the command line; a model's attribute among them must have an effect.
      begun: whether the run has begun, so that the weights of `init.from` may be gone.

    Raises:
      UsageError: the model's attributes do not fit together or do not fit the images; or a model of the user's own is
        not what a model must be.
    """
    shape = plan.input_shape
    try:
        model = create_model(plan.model.name, **dict(plan.model.attributes))
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UsageError(f"config.model: {first_line(error)}") from None
    own = ":" in plan.model.name
    if own and not own_code.takes(model, None, train=True):
        raise UsageError(
            f"config.model.name='{plan.model.name}': must take train=, as in def __call__(self, images, *, train)"
        )

    idle = model.idle_attributes() if hasattr(model, "idle_attributes") else {}
    for key in overrides:
        if (name := key.removeprefix("model.")) in idle and key.startswith("model."):
            raise UsageError(f"--config.{key}: this key has no effect in this run: model.{idle[name]}")

    optimizer = make_optimizer(plan.optim)
    try:
        abstract = jax.eval_shape(
            lambda: create_state(
                partial(_init, plan, model), optimizer, derive_key(plan.seed, "init"), ema=plan.ema_decay > 0
            )
        )
        images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        logits = jax.eval_shape(lambda v, x: _apply(plan, model, v, x, False), abstract.variables, images)
        # Also traces with train=True and batch size 2, to catch models that hard-code batch size 1.
        key = jax.eval_shape(lambda: jax.random.key(0))
        images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
        in_training = jax.eval_shape(
            lambda v, x, k: _apply(plan, model, v, x, True, k), abstract.variables, images, key
        )
    except UsageError:
        raise
    except Exception as error:
        # A model of the user's own may raise anything; in one of ours anything else is a mistake of ours.
        if not (own or isinstance(error, ValueError | TypeError | ArithmeticError | FlaxError)):
            raise
        raise UsageError(_why_it_fails(plan, error)) from error
    _check_optimizer_fits(plan, optimizer, abstract)
    _check_scores(plan, logits, (1, None))
    _check_scores(plan, in_training, (2, logits.shape[1]))
    initial = initial_values(plan, model)
    if initial:
        loaded = initial.load() if plan.init.source and not begun else None
        jax.eval_shape(initial, abstract.variables, key, None, loaded)

    def outputs() -> jax.Array:
        one = jnp.zeros((1, *shape), jnp.float32)
        return _apply(plan, model, _init(plan, model, jax.random.key(0)), one, False)

    teacher = teacher_of(plan, outputs)
    return Assembly(
        plan,
        model,
        optimizer,
        make_schedule(plan.optim),
        abstract,
        logits.shape[-1],
        initial,
        teacher,
        elastic_models(plan, model),
    )


def refuse_beyond_memory(plan: Plan, assembly: Assembly) -> None:
    """Refuses sizes that no device here can hold, before XLA, which ends the process at some of them, sees them.

    Raises:
      UsageError: the state alone, or the images of a batch alone, take more than all of a device's memory.
    """
    room = memory_of_device()
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(assembly.abstract_state))
    stored, seen = math.prod(plan.data.image_shape), 4 * math.prod(plan.input_shape)  # bytes: uint8, float32
    train = plan.train
    batch = train.per_device_batch * (stored + seen // train.accumulate)
    evaluated = train.eval_batch_size // train.devices * (stored + seen)
    parameters = count_params(assembly.abstract_state.variables)
    for size, what, remedy in (
        (
            state // train.fsdp,
            f"config.model: {parameters:,} parameters with their optimizer's state",
            "a smaller model, or config.train.fsdp over more devices",
        ),
        (
            batch,
            f"config.train.batch_size={train.batch_size}: the images of a batch",
            "a smaller one, or a larger config.train.accumulate",
        ),
        (evaluated, f"config.eval.batch_size={train.eval_batch_size}: the images of a batch", "a smaller one"),
    ):
        if room and size > room:
            gigabytes = f"{size / 2**30:,.1f} GiB of memory on a device that has {room / 2**30:,.1f} GiB"
            raise UsageError(f"{what} take {gigabytes}; what helps: {remedy}")


def _why_it_fails(plan: Plan, error: Exception) -> str:
    """The one line for a model that cannot be traced."""
    name, size = plan.model.name, "×".join(map(str, plan.input_shape))
    if ":" not in name:
        return f"config.model: {name} does not work on images of {size}: {first_line(error)}"
    if isinstance(error, ModifyScopeVariableError):
        kind = re.search(r'collection "(\w+)"', str(error))
        return (
            f"config.model.name='{name}': keeps state that training would have to update"
            f"{f' ({kind[1]})' if kind else ''}, which is not supported; nn.LayerNorm and nn.GroupNorm keep none"
        )
    return f"config.model.name='{name}': does not work on images of {size}: {own_code.explain(error)}"


def _check_scores(plan: Plan, found: object, expected: tuple[int, int | None]) -> None:
    """Raises UsageError where a model's output is not an array of scores.

    `expected` is its shape: images, and the number of scores, None = at least as many as there are classes.
    """
    where, classes = f"config.model.name: {plan.model.name}", len(plan.data.class_names)
    images, scores = expected
    if not isinstance(found, jax.ShapeDtypeStruct):
        what = "nothing" if found is None else f"a {type(found).__name__}"
        raise UsageError(f"{where} returns {what}; it must return the scores alone, an array [images, classes]")
    fits = found.ndim == 2 and found.shape[0] == images
    if not fits or (found.shape[1] < classes if scores is None else found.shape[1] != scores):
        many = "one image" if images == 1 else f"{images} images in training"
        raise UsageError(
            f"{where} gives outputs of shape {found.shape} for {many}, and {plan.data.name} has {classes} classes: it "
            "must give one score for each"
        )
    if not jnp.issubdtype(found.dtype, jnp.floating):
        raise UsageError(f"{where} gives scores of {found.dtype}, which cannot be trained; they must be float32")


def _check_optimizer_fits(plan: Plan, optimizer: optax.GradientTransformation, state: TrainState) -> None:
    """Raises UsageError where the optimizer goes by names that this model's parameters do not have, or is none."""
    optim, params = plan.optim, state.params
    check_frozen(params, optim.freeze, optim.head_first_steps)
    if optim.layer_decay != 1.0:
        layer_factors(params, optim.layer_decay)
    if optim.name == "muon":
        check_patterns(params, optim)
    if ":" in optim.name:
        jax.eval_shape(optimizer.update, params, state.opt_state, params)  # one of the user's own checks itself
    elif optim.weight_decay and not any(jax.tree.leaves(decay_mask(params, optim.decay_mask))):
        lacks = "is named 'kernel'" if optim.decay_mask == "kernels" else "has two axes and is no bias"
        raise UsageError(
            f"config.optim.decay_mask='{optim.decay_mask}': no parameter of {plan.model.name} {lacks}, so "
            "nothing decays; set it to 'all', or config.optim.weight_decay to 0"
        )
