"""Parameters that are not trained (`optim.freeze`), or only after the head (`optim.head_first`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import KeyPath

from jaxvit.errors import UsageError
from jaxvit.ops.paths import matches_any, split_patterns, without_match
from jaxvit.ops.trees import Params

HEAD = "head/"


def is_frozen(path: KeyPath, freeze: str) -> bool:
    """Whether a parameter is frozen: one of the patterns in `freeze`, which '|' separates, matches its path."""
    return matches_any(_join(path), split_patterns(freeze))


def groups_of(params: optax.Params, freeze: str, *, head_first: bool = False) -> Mapping[str, object]:
    """Returns the group of each parameter: 'frozen', 'trained', or, with `head_first`, 'later'."""

    def group(path: KeyPath, _: object) -> str:
        if is_frozen(path, freeze):
            return "frozen"
        return "later" if head_first and not _join(path).startswith(HEAD) else "trained"

    return jax.tree_util.tree_map_with_path(group, params)


def check_frozen(params: Params, freeze: str, head_first_steps: int = 0) -> None:
    """Checks `optim.freeze` and `optim.head_first` against the parameters of a model.

    Raises:
      UsageError: a pattern matches no parameter; all parameters are frozen; or the model has no trained head.
    """
    paths = [_join(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    if freeze and not split_patterns(freeze):
        raise UsageError(f"config.optim.freeze='{freeze}': holds no pattern; write one such as 'embed/*'")
    if pattern := without_match(split_patterns(freeze), paths):
        raise UsageError(
            f"config.optim.freeze='{freeze}': '{pattern}' matches no parameter of this model, such as '{paths[0]}'; "
            "--dry_run shows its parts"
        )
    groups = jax.tree.leaves(groups_of(params, freeze, head_first=head_first_steps > 0))
    if "trained" not in groups and not head_first_steps:
        raise UsageError(f"config.optim.freeze='{freeze}': matches every parameter, so there is nothing to train")
    if head_first_steps and "trained" not in groups:
        raise UsageError(
            "config.optim.head_first: this model has no trained parameter whose name begins with 'head/'; set it to "
            "'0 steps'"
        )


def describe_frozen(params: Params, freeze: str) -> str:
    """One line: how many arrays and numbers are frozen; `params` may be abstract."""
    pairs = jax.tree_util.tree_leaves_with_path(params)
    held = [leaf.size for path, leaf in pairs if is_frozen(path, freeze)]
    total = sum(leaf.size for _, leaf in pairs)
    return (
        f"frozen: {len(held):,} of {len(pairs):,} arrays, {sum(held):,} of {total:,} parameters; they have no moments"
    )


def hold(params: Params, freeze: str) -> Params:
    """Stops the gradients of frozen parameters, so that no work is done for them."""
    if not freeze:
        return params
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jax.lax.stop_gradient(x) if is_frozen(path, freeze) else x, params
    )


class ClipState(NamedTuple):
    """The state of `clip_active`: the number of updates so far, int32."""

    count: jax.Array


def clip_active(norm: float, freeze: str, head_first_steps: int) -> optax.GradientTransformation:
    """Scales gradients down to a global norm, which counts only the parameters that this step changes.

    Args:
      norm: the largest norm.
      freeze: patterns of frozen parameters.
      head_first_steps: the step from which parameters other than the head's count.
    """

    def init(params: optax.Params) -> ClipState:
        del params
        return ClipState(jnp.zeros((), jnp.int32))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        del params
        state = cast(ClipState, state)
        groups = groups_of(updates, freeze, head_first=head_first_steps > 0)
        pairs = list(zip(jax.tree.leaves(groups), jax.tree.leaves(updates), strict=True))
        squares = {"trained": jnp.float32(0.0), "later": jnp.float32(0.0), "frozen": jnp.float32(0.0)}
        for group, leaf in pairs:
            squares[group] += jnp.sum(jnp.square(leaf.astype(jnp.float32)))
        begun = (state.count >= head_first_steps).astype(jnp.float32)
        found = jnp.sqrt(squares["trained"] + begun * squares["later"])
        factor = jnp.where(found < norm, 1.0, norm / jnp.maximum(found, 1e-30))
        return jax.tree.map(lambda u: u * factor.astype(u.dtype), updates), ClipState(state.count + 1)

    return optax.GradientTransformation(init, update)


class LaterState(NamedTuple):
    """The state of `starts_at`.

    Attributes:
      count: number of updates so far, int32.
      inner: state of the transformation that begins later.
    """

    count: jax.Array
    inner: optax.OptState


def starts_at(inner: optax.GradientTransformation, steps: int) -> optax.GradientTransformation:
    """Begins a transformation at a step: before it the updates are 0 and its state is the initial one.

    So moments and their bias correction begin with the first gradient that is used. One program serves both phases.
    """

    def init(params: optax.Params) -> LaterState:
        return LaterState(jnp.zeros((), jnp.int32), inner.init(params))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        state = cast(LaterState, state)
        begun = state.count >= steps
        found, after = inner.update(updates, state.inner, params)
        kept = jax.tree.map(lambda new, old: jnp.where(begun, new, old), after, state.inner)
        updates = jax.tree.map(lambda u: jnp.where(begun, u, jnp.zeros_like(u)), found)
        return updates, LaterState(state.count + 1, kept)

    return optax.GradientTransformation(init, update)


def _join(path: KeyPath) -> str:
    return "/".join(str(getattr(part, "key", getattr(part, "name", part))) for part in path)
