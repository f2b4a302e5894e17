"""Checks the values of a model's attributes at construction, by name; a name means the same in all families."""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn

from jaxvit.layers.stack import REMAT
from jaxvit.ops.arguments import DTYPES

# 1 or more.
COUNTS = ("num_classes", "patch", "dim", "depth", "heads", "kernel", "conv_layers", "conv_width", "divisions",
          "learner_tokens", "learner_convs", "learner_groups", "learner_hidden")  # fmt: skip
# 0 or more; 0 has a special meaning.
AMOUNTS = ("head_dim", "mlp_dim", "registers", "rep_size", "stride", "pixels", "layer_scale")
# Rates of dropout and drop path. For an inherited rate, -1 means the model's `dropout`.
RATES = ("dropout", "attention_dropout", "drop_path", "head_dropout", "head_input_dropout")
INHERITED_RATES = ("embed_dropout", "projection_dropout")


def check_attributes(model: nn.Module) -> None:
    """Raises ValueError, which names the attribute, for a value that no model can have.

    A `dtype` that is a type, such as `jnp.bfloat16`, is replaced by its name.
    """
    names = {field.name for field in dataclasses.fields(model)}

    def check(name: str, fine: bool, range_: str) -> None:
        if not fine:
            raise ValueError(f"{name}={getattr(model, name)!r} must be {range_}")

    for name in names & {*COUNTS}:
        check(name, getattr(model, name) >= 1, "1 or more")
    for name in names & {*AMOUNTS}:
        check(name, getattr(model, name) >= 0, "0 or more")
    for name in names & {*RATES}:
        check(name, 0 <= getattr(model, name) < 1, "at least 0 and below 1")
    for name in names & {*INHERITED_RATES}:
        check(name, getattr(model, name) == -1 or 0 <= getattr(model, name) < 1, "-1, or at least 0 and below 1")
    for name in names & {"mlp_ratio", "norm_eps"}:
        check(name, getattr(model, name) > 0, "above 0")
    if "remat" in names:
        check("remat", model.remat in REMAT, f"one of {', '.join(REMAT)}")
    if not isinstance(model.dtype, str):
        object.__setattr__(model, "dtype", jnp.dtype(model.dtype).name)
    check("dtype", model.dtype in DTYPES, f"one of {', '.join(DTYPES)}")
