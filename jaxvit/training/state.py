"""What training changes: step, parameters, optimizer state. Randomness is derived from the seed and the step."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxvit.ops.trees import Params, Variables


@struct.dataclass
class TrainState:
    """A pytree.

    Attributes:
      step: int32 scalar; how many updates have been made.
      params: parameter tree, float32.
      constants: the model's other collections: stored with it, never trained.
      opt_state: optax state.
      ema: average of the parameters; an empty dict when none is kept.
    """

    step: jax.Array
    params: Params
    constants: Variables
    opt_state: optax.OptState
    ema: Params = struct.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Params]:
        """What the model's `apply` takes."""
        return {"params": self.params, **self.constants}

    @property
    def chosen_variables(self) -> dict[str, Params]:
        """Those that are judged and tested: the averaged ones where an average is kept."""
        return self.ema_variables if self.ema else self.variables

    @property
    def ema_variables(self) -> dict[str, Params]:
        """The same with the averaged parameters."""
        return {"params": self.ema, **self.constants}


def create_state(
    init: Callable[[jax.Array], Variables],
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    *,
    ema: bool = False,
) -> TrainState:
    """The state before the first step; `init(key)` makes the variables, 'params' and any others."""
    constants = dict(init(key))
    params = constants.pop("params")
    # A copy: the two must not share a buffer that a step gives away.
    average = jax.tree.map(jnp.copy, params) if ema else {}
    return TrainState(jnp.int32(0), params, constants, optimizer.init(params), average)


def derive_key(seed: int, name: str) -> jax.Array:
    """The root key of one use of randomness ('init', 'step'): a function of the seed and the name."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
