"""Checks a layer's attributes when the layer is made."""

import dataclasses

from flax import linen as nn

from jaxvit.layers.initialisers import SCHEMES
from jaxvit.ops import arguments
from jaxvit.ops.activations import ACTIVATIONS
from jaxvit.ops.arguments import FLAG, NOT_NEGATIVE, POSITIVE, RATE, Rule, one_of, whole

# The rule of each attribute that several layers have. A layer may replace it.
RULES: dict[str, Rule] = {
    "activation": one_of(ACTIVATIONS),
    "attention_dropout": RATE,
    "depth": whole(0),
    "dim": whole(1),
    "dropout": RATE,
    "epsilon": NOT_NEGATIVE,
    "head_dim": whole(0),
    "heads": whole(1),
    "hidden": whole(1),
    "initialiser": one_of(SCHEMES),
    "input_dropout": RATE,
    "kernel": whole(1),
    "layer_scale": NOT_NEGATIVE,
    "mlp_dim": whole(0),
    "mlp_dropout": RATE,
    "norm_eps": NOT_NEGATIVE,
    "projection_dropout": RATE,
    "tokens": whole(1),
    "mlp_ratio": POSITIVE,
}


def check_layer(layer: nn.Module, **rules: Rule) -> None:
    """Checks the attributes of a layer, and replaces its `dtype` by the dtype's name.

    A layer calls it first in `__post_init__`.

    Args:
      layer: the layer.
      **rules: rules of attributes that `RULES` lacks. An attribute with a default of True or False needs none.

    Raises:
      ValueError: names the layer, the attribute, its value and the allowed values.
    """
    owner = type(layer).__name__
    for field in dataclasses.fields(layer):
        name, value = field.name, getattr(layer, field.name)
        if name == "dtype":
            object.__setattr__(layer, "dtype", arguments.dtype_name(owner, value))
        elif rule := rules.get(name) or RULES.get(name) or (FLAG if isinstance(field.default, bool) else None):
            arguments.check(owner, name, value, rule)
