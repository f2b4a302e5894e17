"""Flax linen layers. Each can be used on its own.

Parameters are float32, the computation has the layer's `dtype`, and random numbers come from the 'dropout' stream of
`rngs`. A layer checks its attributes when it is made: a wrong value raises a ValueError that names the layer, the
attribute, the value and the allowed values.

An array's name ends in its axes: B batch, H height, W width, N tokens, C channels, S learned tokens, K classes.

The examples assume::

    from functools import partial
    import jax
    import jax.numpy as jnp
    from jaxvit.layers import *
"""

from jaxvit.layers.attention import Attention
from jaxvit.layers.embed import ConvTokenizer, PatchEmbed, PositionEmbed, PrefixTokens
from jaxvit.layers.encoder import Encoder, EncoderBlock
from jaxvit.layers.mlp import Mlp
from jaxvit.layers.norm import Norm
from jaxvit.layers.pool import AttentionPool, Classifier, Pool, SequencePool
from jaxvit.layers.shift import Downsample, ShiftBlock, ShiftStage
from jaxvit.layers.token_learner import TokenFuser, TokenLearner

__all__ = [
    "Attention",
    "AttentionPool",
    "Classifier",
    "ConvTokenizer",
    "Downsample",
    "Encoder",
    "EncoderBlock",
    "Mlp",
    "Norm",
    "PatchEmbed",
    "Pool",
    "PositionEmbed",
    "PrefixTokens",
    "SequencePool",
    "ShiftBlock",
    "ShiftStage",
    "TokenFuser",
    "TokenLearner",
]
