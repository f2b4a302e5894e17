"""The user's own schedule or optimizer, named 'package.module:function'. docs/extend.md has an example of each.

schedule: ``function(settings) -> schedule``; ``schedule(step)`` is the learning rate at a step, int32 from 0.
optimizer: ``function(learning_rate, settings) -> optax.GradientTransformation``; `learning_rate` is a schedule.

`settings` is a `jaxvit.training.settings.OptimizerSettings`: the keys of ``config.optim``, with lengths in steps.
``optim.clip_norm`` clips the gradients before the optimizer, and ``optim.layer_decay`` scales its updates before they
are added to the parameters. The optimizer does everything else itself, including weight decay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import KeyPath
from jax.typing import ArrayLike

from jaxvit import own_code
from jaxvit.errors import UsageError
from jaxvit.training.settings import OptimizerSettings

T = TypeVar("T")


def own_schedule(settings: OptimizerSettings) -> optax.Schedule:
    """Calls the function named by `settings.schedule` and returns its schedule, in float32.

    Raises:
      UsageError: the function does not exist or fails. The schedule raises it too, if it fails at a step.
    """
    where = f"config.optim.schedule='{settings.schedule}'"
    function = own_code.load_function(settings.schedule, "optim.schedule")
    if not own_code.takes(function, None):
        raise UsageError(f"{where}: must take (settings); it takes {own_code.parameter_names(function)}")
    schedule = _called(f"{where}: fails as function(settings)", function, settings)
    if not callable(schedule):
        raise UsageError(
            f"{where}: returns {_kind(schedule)}; it must return a function of the step, such as "
            "optax.constant_schedule(settings.peak_lr)"
        )

    def rate(step: ArrayLike) -> jax.Array:
        found = _called(f"{where}: the schedule that it returns fails at a step", schedule, step)
        shape = getattr(found, "shape", () if isinstance(found, int | float) else None)
        if shape != ():
            what = _kind(found) if shape is None else f"an array of shape {shape}"
            raise UsageError(f"{where}: gives {what} for a step; it must give one number")
        return jnp.asarray(found, jnp.float32)

    return rate


def own_optimizer(settings: OptimizerSettings, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """Calls the function named by `settings.name` and returns its optimizer.

    Raises:
      UsageError: the function does not exist, fails, or does not return an optimizer. The optimizer's `init` and
        `update` raise it at trace time, if they fail or change the shape or dtype of updates or state.
    """
    where = f"config.optim.name='{settings.name}'"
    function = own_code.load_function(settings.name, "optim.name")
    if not own_code.takes(function, None, None):
        found = own_code.parameter_names(function)
        raise UsageError(f"{where}: must take (learning_rate, settings); it takes {found}")
    inner = _called(f"{where}: fails as function(learning_rate, settings)", function, learning_rate, settings)
    if not (callable(getattr(inner, "init", None)) and callable(getattr(inner, "update", None))):
        raise UsageError(f"{where}: returns {_kind(inner)}; it must return an optax.GradientTransformation")

    def init(params: optax.Params) -> optax.OptState:
        return _called(f"{where}: its init fails on this model's parameters", inner.init, params)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        fails = f"{where}: its update fails as update(gradients, state, params)"
        found = _called(fails, inner.update, updates, state, params)
        if not (isinstance(found, tuple) and len(found) == 2):
            raise UsageError(f"{where}: its update returns {_kind(found)}; it must return (updates, state)")
        _compare(f"{where}: its update gives updates that differ from the gradients", found[0], updates)
        _compare(f"{where}: its update gives a state that differs from the one before", found[1], state)
        return found

    return optax.GradientTransformation(init, update)


def check_own(settings: OptimizerSettings, steps: int) -> frozenset[str]:
    """Tries the user's own schedule and optimizer without a model's parameters.

    Args:
      settings: settings of the run.
      steps: number of training steps.

    Returns:
      The names of the settings that the functions read.

    Raises:
      UsageError: see `own_schedule` and `own_optimizer`; or a learning rate is negative or not finite.
    """
    read: set[str] = set()
    noting = _noting(settings, read)
    schedule = optax.constant_schedule(settings.peak_lr)
    if ":" in settings.schedule:
        schedule = own_schedule(noting)
        rates = np.asarray(jax.jit(jax.vmap(schedule))(np.arange(steps, dtype=np.int32)))
        wrong = np.flatnonzero(~(np.isfinite(rates) & (rates >= 0)))
        if wrong.size:
            raise UsageError(
                f"config.optim.schedule='{settings.schedule}': gives {rates[wrong[0]]:.4g} at step {wrong[0]} of "
                f"{steps}; a learning rate is a number from 0 up"
            )
    if ":" in settings.name:
        own_optimizer(noting, schedule)
    return frozenset(read)


def _noting(settings: OptimizerSettings, read: set[str]) -> OptimizerSettings:
    """Returns equal settings that add the name of each field that is read to `read`."""

    class Noting(OptimizerSettings):
        def __getattribute__(self, name: str) -> object:
            read.add(name)
            return super().__getattribute__(name)

    return Noting(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)})


def _called(fails: str, function: Callable[..., T], *args: object) -> T:
    try:
        return function(*args)
    except UsageError:
        raise
    except Exception as error:  # user code may raise anything
        raise UsageError(f"{fails}: {own_code.explain(error)}") from error


def _compare(what: str, found: object, expected: object) -> None:
    there, wanted = (
        {_join(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)} for tree in (found, expected)
    )
    for path in dict.fromkeys([*wanted, *there]):
        a, b = (_form(leaves.get(path)) for leaves in (there, wanted))
        if a != b:
            raise UsageError(f"{what}: {path or 'the array'} is {a} and should be {b}")
    if jax.tree.structure(found) != jax.tree.structure(expected):
        raise UsageError(f"{what}: the tree is built of other nodes")


def _form(leaf: ArrayLike | None) -> str:
    if leaf is None:
        return "absent"
    return f"{getattr(leaf, 'dtype', None) or jnp.result_type(leaf)} {np.shape(leaf)}"


def _join(path: KeyPath) -> str:
    return "/".join(str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path)


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
