"""Flax linen building blocks, each usable alone.

Every layer keeps float32 parameters, computes in its `dtype`, and draws its noise from the 'dropout' stream.
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
