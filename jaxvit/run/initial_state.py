"""Initial values by `config.init`: checks them, measures the training images, reads weights, sets the parameters."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxvit.config.initial_weights import InitialWeights, read_weights
from jaxvit.config.plan_types import Plan
from jaxvit.data.augment import preprocess
from jaxvit.data.parts import Source, StreamedSource
from jaxvit.devices import processes
from jaxvit.errors import UsageError, first_line
from jaxvit.models.initial_sites import Stem, start_attention, start_positions, start_stem, stem_input, survey
from jaxvit.ops.initial_values import patches_of, whitening_filters
from jaxvit.ops.paths import split_patterns
from jaxvit.ops.trees import Params, Variables
from jaxvit.weights.adapt import FRESH, LOADED, RESIZED, UNUSED, AdaptError, Decision, Places, Rules, adapt

MOST_VALUES = 4096  # most values of a patch to be whitened: the cost grows with their cube
Pair = tuple[int, int]
_IMAGES = 64  # images per batch of a measurement


class InitialValues:
    """The initial values of a plan that follow a formula, or come from other weights.

    Args:
      plan: plan of the run; `plan.init` says which values.
      model: model of the plan.

    Raises:
      UsageError: the model has no layer that such a value applies to.
    """

    def __init__(self, plan: Plan, model: nn.Module):
        self._plan, self._init, self._model = plan, plan.init, model
        self._sites = survey(model, plan.input_shape)
        name, init, sites = plan.model.name, self._init, self._sites
        if init.attention and not sites.attention:
            raise UsageError(f"config.init.attention='{init.attention}': {name} has no self-attention; set it to ''")
        if init.positions and not sites.positions:
            raise UsageError(
                f"config.init.positions='{init.positions}': {name} has no trained position table with "
                "these attributes; set it to ''"
            )
        stem, where = sites.stem, f"config.init.stem='{init.stem}': the first layer of {name}"
        if init.stem and stem is None:
            raise UsageError(f"{where} is neither dense nor a plain convolution of images; set it to ''")
        if init.stem and stem is not None and stem.values > MOST_VALUES:
            many = f"takes patches of {stem.values} values, and at most {MOST_VALUES} can be whitened"
            raise UsageError(f"{where} {many}; set it to ''")

    def __call__(
        self,
        variables: Variables,
        key: jax.Array,
        filters: jax.Array | np.ndarray | None = None,
        loaded: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, Params]:
        """Returns the variables with these values; pure, can be jitted.

        Args:
          variables: variables from the model's own initializers.
          key: random key that they were initialized with.
          filters: result of `measure`; None leaves the stem as it is, where only shapes and speed count.
          loaded: result of `load`; None likewise.
        """
        init, sites, params = self._init, self._sites, variables["params"]
        if init.attention:
            params = start_attention(
                params,
                sites.attention,
                jax.random.fold_in(key, zlib.crc32(b"attention")),
                query_key=init.query_key,
                value_output=init.value_output,
                joint=init.attention == "mimetic_joint",
            )
        if init.positions:
            try:
                params = start_positions(params, sites.positions, scale=init.positions_scale)
            except ValueError as error:
                raise UsageError(f"config.init.positions='{init.positions}': {first_line(error)}") from None
        if filters is not None and sites.stem:
            params = start_stem(params, sites.stem, filters)
        variables = {**variables, "params": params}
        return _with_loaded(variables, loaded) if loaded else variables

    def measure(self, source: Source | StreamedSource) -> np.ndarray | None:
        """Computes filters (P, P) for the stem from images of the training split; None if the plan has none.

        They depend on the images and the config, not on the seed. Process 0 measures and broadcasts the result.
        """
        stem = self._sites.stem
        if not self._init.stem or stem is None:
            return None

        def work() -> str:
            moments_PP = self._moments(stem, source)
            return base64.b64encode(whitening_filters(moments_PP, self._init.stem_eps).tobytes()).decode()

        values = base64.b64decode(processes.broadcast_from_first(work))
        return np.frombuffer(values, np.float32).reshape(stem.values, stem.values)

    def _moments(self, stem: Stem, source: Source | StreamedSource) -> np.ndarray:
        """Computes the mean of x xᵀ (P, P) over the patches x that the stem reads from evenly spaced images.

        The images are preprocessed as in evaluation, without augmentation.
        """
        look = jax.jit(lambda images: stem_input(self._model, stem, preprocess(images, self._plan.augment)))
        count = min(self._init.stem_images, len(source))
        rows = np.unique(np.linspace(0, len(source) - 1, count).round().astype(int))
        total, patches = np.zeros((stem.values, stem.values)), 0
        for begin in range(0, len(rows), _IMAGES):
            images, _, good = source.batch(rows[begin : begin + _IMAGES])
            if not good.any():
                continue
            given = np.asarray(look(images[good]))
            if stem.window:
                x = patches_of(given, cast(Pair, stem.window), cast(Pair, stem.strides))
            else:
                x = given.reshape(-1, stem.values)
            x = x.astype(np.float64)
            total += x.T @ x
            patches += len(x)
        return total / max(patches, 1)

    def load(self) -> Arrays:
        """Reads the weights of `init.from`; {collection/path: array} of what is taken from them; {} without.

        Raises:
          UsageError: they cannot be read, do not fit the model, or are not those that the run began with.
        """
        return self._taken()[0] if self._init.source else {}

    def describe(self) -> list[str]:
        """A few lines on what is loaded, resized, fresh and unused; [] without `init.from`."""
        if not self._init.source:
            return []
        _, decisions, found = self._taken()
        guess = found.pretrained.guess
        size = "x".join(map(str, found.pretrained.input[:2]))
        lines = [
            f"starts from {found.where}: {guess.model} of {found.pretrained.origin.title} for {size}, {found.hash}"
        ]
        return lines + table(decisions)

    def _taken(self) -> tuple[Arrays, list[Decision], InitialWeights]:
        init, plan = self._init, self._plan
        found = read_weights(init.source, plan.model.name)
        if init.hash and init.hash != found.hash:
            raise UsageError(
                f"config.init.from: {found.where} has changed since this run began (hash {init.hash} then, "
                f"{found.hash} now); put it back, or use a new --workdir"
            )
        return (*take(found, self._model, plan), found)


Arrays = dict[str, np.ndarray]


def take(found: InitialWeights, model: nn.Module, plan: Plan) -> tuple[Arrays, list[Decision]]:
    """Chooses the parameters of a model from weights, see `jaxvit.weights.adapt.adapt`.

    Returns:
      {collection/path: array} of what is taken, and the decisions on all parameters.

    Raises:
      UsageError: they do not fit.
    """
    init, before = plan.init, found.pretrained
    images = jax.ShapeDtypeStruct((1, *plan.input_shape), jnp.float32)
    shapes = jax.eval_shape(lambda key, x: model.init(key, x, train=False), jax.random.key(0), images)
    fresh = {name: _flat(tree) for name, tree in shapes.items()}
    known = found.class_names
    names = plan.data.class_names
    same = known == names if known else before.guess.attributes.get("num_classes", 0) == len(names)
    keep, skip, allow = map(split_patterns, (init.keep, init.skip, init.allow))
    rules = Rules(keep, skip, allow, init.channels, before.positions)
    try:
        arrays, decisions = adapt(
            found.params,
            fresh["params"],
            rules,
            source=_places(before.model, before.input, found.params),
            target=_places(model, plan.input_shape, fresh["params"]),
            same_classes=same,
            dense_stem=_patches(before.model, model),
        )
    except AdaptError as error:
        raise UsageError(f"config.init.from: {error}") from None
    decisions += [Decision(name, UNUSED, "the file's model has no such part") for name in before.unused]
    taken = {d.path for d in decisions if d.outcome in (LOADED, RESIZED)}
    chosen = {f"params/{path}": array for path, array in arrays.items() if path in taken}
    there = {f"{name}/{path}": leaf for name, tree in fresh.items() if name != "params" for path, leaf in tree.items()}
    for path, leaf in there.items():
        fits = path in found.constants and found.constants[path].shape == leaf.shape
        decisions.append(Decision(path, LOADED if fits else FRESH, "" if fits else "the weights have none that fits"))
        if fits:
            chosen[path] = found.constants[path]
    return chosen, decisions


def table(decisions: Sequence[Decision]) -> list[str]:
    """Lines on what was done with each group of parameters: how many arrays and numbers, and why.

    Example:
      >>> table([Decision("head/logits/bias", "fresh", "other classes")])
      ['  fresh    head/* (1 array): other classes']
    """
    groups: dict[tuple[str, str], dict[str, int]] = {}
    for one in decisions:
        first, slash, _ = one.path.partition("/")
        part = f"{first}/*" if slash else first
        inside = groups.setdefault((one.outcome, one.note), {})
        inside[part] = inside.get(part, 0) + 1
    order = {LOADED: 0, RESIZED: 1, FRESH: 2}
    lines = []
    for (outcome, note), parts in sorted(groups.items(), key=lambda item: order.get(item[0][0], 3)):
        count, few = sum(parts.values()), list(parts)[:6]
        names = ", ".join(few) + ", …" * (len(parts) > len(few))
        why = f": {note}" if note else ""
        lines.append(f"  {outcome:<8} {names} ({count:,} array{'s' * (count != 1)}){why}")
    return lines


def _with_loaded(variables: Variables, loaded: Mapping[str, np.ndarray]) -> dict[str, Params]:
    flat = {"/".join(path): cast(jax.Array, leaf) for path, leaf in flatten_dict(dict(variables)).items()}
    merged = {path: jnp.asarray(loaded[path], leaf.dtype) if path in loaded else leaf for path, leaf in flat.items()}
    return cast(dict[str, Params], unflatten_dict({tuple(path.split("/")): leaf for path, leaf in merged.items()}))


def _flat(tree: Variables) -> Arrays:
    """Stand-ins of the leaves' shapes, which take no memory."""
    flat = flatten_dict(dict(tree)).items()
    return {"/".join(path): np.broadcast_to(np.float32(0), cast(jax.Array, leaf).shape) for path, leaf in flat}


def _places(model: nn.Module, shape: tuple[int, ...], params: Mapping[str, np.ndarray]) -> Places | None:
    for path, grid in survey(model, shape).positions:
        if (rows := params.get("/".join((*path, "table")))) is not None:
            return Places(grid, len(rows) - grid[0] * grid[1])
    return None


def _patches(before: nn.Module, model: nn.Module) -> tuple[int, int] | None:
    one, other = getattr(before, "patch", 0), getattr(model, "patch", 0)
    return (one, other) if isinstance(one, int) and isinstance(other, int) and one and other else None


def initial_values(plan: Plan, model: nn.Module) -> InitialValues | None:
    """Returns the `InitialValues` of a plan; None if the model's own initializers suffice."""
    return None if plan.init.is_empty else InitialValues(plan, model)
