"""The training state: step, parameters, optimizer state. Random keys are derived from the seed and the step."""

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
    """Everything that training changes, as a pytree.

    Attributes:
      step: number of updates so far, int32 scalar.
      params: parameter tree, float32.
      constants: the model's other variable collections; stored, but never trained.
      opt_state: optax state.
      ema: EMA of the parameters; {} if none is kept.
    """

    step: jax.Array
    params: Params
    constants: Variables
    opt_state: optax.OptState
    ema: Params = struct.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Params]:
        """Variables of the model with the raw weights."""
        return {"params": self.params, **self.constants}

    @property
    def chosen_variables(self) -> dict[str, Params]:
        """Variables used for evaluation: the EMA weights if kept, else the raw ones."""
        return self.ema_variables if self.ema else self.variables

    @property
    def ema_variables(self) -> dict[str, Params]:
        """Variables of the model with the EMA weights."""
        return {"params": self.ema, **self.constants}


def create_state(
    init: Callable[[jax.Array], Variables],
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    *,
    ema: bool = False,
) -> TrainState:
    """Creates the state before the first step.

    Args:
      init: function from a random key to the variables: 'params', and any other collections.
      optimizer: optax transformation.
      key: random key of the initial parameters.
      ema: whether to keep an EMA of the parameters.
    """
    constants = dict(init(key))
    params = constants.pop("params")
    # A copy: the step donates the parameters' buffers.
    average = jax.tree.map(jnp.copy, params) if ema else {}
    return TrainState(jnp.int32(0), params, constants, optimizer.init(params), average)


def derive_key(seed: int, name: str) -> jax.Array:
    """Derives the root key of one use of randomness, such as 'init' or 'step', from the seed and the name."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
