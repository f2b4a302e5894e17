"""The block factory of ViT and CCT, and how models pass their attributes to layers.

If a model and a layer have an attribute of the same name, it means the same, and the layer takes the model's value.
"""

import dataclasses
from functools import partial
from typing import TypeVar

import jax
from flax import linen as nn

from jaxvit.layers.encoder import EncoderBlock
from jaxvit.layers.reduction import TokenReduction, parse_reduction
from jaxvit.ops.reduction import Reduced, unmerge_tokens

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


def reduction_of(model: nn.Module, learner_at: tuple[int, ...] = (), *, fuse: bool = False) -> TokenReduction | None:
    """The reduction of tokens that a ViT's or CCT's attribute `reduce` describes; None = 'none', or nothing to do.

    Args:
      model: the model.
      learner_at: the blocks that a TokenLearner precedes.
      fuse: whether a TokenFuser follows each of these.

    Raises:
      ValueError: the text is wrong, or does not fit the model.

    Example:
      >>> from jaxvit.models import ViT
      >>> reduction_of(ViT(reduce="merge:r=8,at=1")).at
      (1,)
    """
    if model.reduce == "none":
        return None
    try:
        reduction = parse_reduction(model.reduce)
        blocks = reduction.blocks(model.depth, learner_at, fuse=fuse)
    except ValueError as error:
        raise ValueError(f"reduce={model.reduce!r}: {error}") from None
    if reduction.kind == "prune" and model.pool == "flatten":
        raise ValueError(
            f"reduce={model.reduce!r}: pool='flatten' needs every place of the map, and prune removes some"
        )
    if reduction.kind == "prune" and any(i < j for i in blocks for j in learner_at):
        raise ValueError(f"reduce={model.reduce!r}: a TokenLearner pools a whole map, and prune removes places of it")
    return None if reduction.nothing else reduction


def encoded(found: jax.Array | Reduced, *, flatten: bool) -> tuple[jax.Array, jax.Array | None]:
    """Splits an encoder's output into (tokens, sizes), where sizes are None if no tokens were merged or removed.

    Args:
      found: what `jaxvit.layers.Encoder` returns.
      flatten: whether the pooling needs every place: then merged tokens are copied back.
    """
    if not isinstance(found, Reduced):
        return found, None
    if flatten:
        return unmerge_tokens(found.tokens, found.places), None
    return found.tokens, found.sizes


def inherited(rate: float, dropout: float) -> float:
    """A dropout rate, where -1 stands for the model's `dropout`."""
    return dropout if rate < 0 else rate
