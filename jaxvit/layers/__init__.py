"""Flax linen building blocks, each usable alone.

Every layer keeps float32 parameters, computes in its `dtype`, and draws its noise from the 'dropout' stream.
"""

from jaxvit.layers.attention import Attention
from jaxvit.layers.embed import PatchEmbed, PositionEmbed, PrefixTokens
from jaxvit.layers.encoder import Encoder, EncoderBlock, Mlp
from jaxvit.layers.norm import Norm
from jaxvit.layers.pool import AttentionPool, Classifier, Pool

__all__ = [
    "Attention",
    "AttentionPool",
    "Classifier",
    "Encoder",
    "EncoderBlock",
    "Mlp",
    "Norm",
    "PatchEmbed",
    "Pool",
    "PositionEmbed",
    "PrefixTokens",
]
