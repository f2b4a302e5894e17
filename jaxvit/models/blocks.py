"""The block factory of ViT and CCT, and how models pass their attributes to layers.

If a model and a layer have an attribute of the same name, it means the same, and the layer takes the model's value.
"""

import dataclasses
from functools import partial
from typing import TypeVar

from flax import linen as nn

from jaxvit.layers.encoder import EncoderBlock

Layer = TypeVar("Layer", bound=nn.Module)


def layer_of(model: nn.Module, layer: type[Layer], prefix: str = "", /, **values) -> "partial[Layer]":
    """Returns a function that makes `layer` with the model's attributes.

    Args:
      model: where the attributes come from.
      layer: class of the layer.
      prefix: start of the model's names: with 'learner_', the model's `learner_tokens` becomes the layer's `tokens`.
        `norm_eps`, `initialiser` and `dtype` have no prefix.
      **values: attributes of the layer that the model names or computes differently.

    Returns:
      A `functools.partial`. An attribute of the layer that is neither in `values` nor an attribute of the model keeps
      its default.

    Example:
      >>> from jaxvit.models import ViT
      >>> layer_of(ViT(heads=2), EncoderBlock, mlp_dim=64).keywords["heads"]
      2
    """
    given = {field.name for field in dataclasses.fields(model)} - {"parent", "name"}
    for field in dataclasses.fields(layer):
        name = field.name if field.name in ("norm_eps", "initialiser", "dtype") else prefix + field.name
        if name in given and field.name not in values:
            values[field.name] = getattr(model, name)
    return partial(layer, **values)


def mlp_dim(model: nn.Module) -> int:
    """Channels of the hidden layer of a block's MLP: the model's `mlp_dim`, or else `mlp_ratio` times `dim`."""
    return getattr(model, "mlp_dim", 0) or int(model.dim * model.mlp_ratio)


def encoder_block(model: nn.Module) -> "partial[EncoderBlock]":
    """Returns the block factory of a ViT or CCT: `encoder_block(model)(name='block_0')` is an `EncoderBlock`."""
    return layer_of(
        model,
        EncoderBlock,
        mlp_dim=mlp_dim(model),
        mlp_dropout=model.dropout,
        projection_dropout=inherited(model.projection_dropout, model.dropout),
    )


def inherited(rate: float, dropout: float) -> float:
    """A dropout rate, where -1 stands for the model's `dropout`."""
    return dropout if rate < 0 else rate
