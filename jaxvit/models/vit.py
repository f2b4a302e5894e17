"""The vision transformer, plain or with learned tokens: patches, positions, equal blocks, one vector, class scores.

Papers: Dosovitskiy et al. 2020 (arXiv:2010.11929); mean pooling, sine-cosine positions and the representation layer of
the small models after Beyer et al. 2022 (arXiv:2205.01580); TokenLearner Ryoo et al. 2021 (arXiv:2106.11297).

Departures from google-research/vision_transformer, whose numbers of parameters these models have:

- exact gelu, where theirs, big_vision's and Scenic's approximate with tanh: the paper's function. Below 1e-3 per value;
  `activation='gelu_tanh'` is theirs, to be taken with their weights and recipes (`learner_activation` as well).
- no dropout in `vit_l16_224`, where their configuration has .1 (the other sizes have none there either): the published
  recipes choose it per run. Set `dropout`.
- big_vision starts its learned position table at a standard deviation of 1 / √dim, the others at .02:
  `initialiser='big_vision'`.
- timm's `global_pool='avg'` normalises after the mean: `norm_after_pool=True`. Its registers are ours; a class token
  that takes part and is not read, as in MAE's fine-tuned models, is one register more, its position added to it.
- with learned tokens, from google-research/scenic: what `jaxvit.layers.token_learner` lists; a class token may go with
  them, which theirs documents and does not do; their configuration's stochastic depth, which nothing reads, is
  `drop_path` here.
- logits in float32 under bfloat16 too, because the loss needs them. Nothing changes in float32.

Departures of the tutorials, each an attribute, so that one can walk from the tutorial to the paper a step at a time:

| tutorial | attribute | paper |
|---|---|---|
| Fashion-MNIST: norm after the shortcut, one norm used twice in a block | `norm_order='post_shared'` | `'pre'` |
| Fashion-MNIST: patches of 5 drop 3 of 28 rows and columns | `crop_to_patches=True` | a patch that divides |
| Fashion-MNIST: raw patches are normalised first | `stem_norm=True` | `False` |
| Fashion-MNIST: a dropout of .5 in the head is built and not connected | `head_dropout=0.0` | `0.5` was meant |
| Fashion-MNIST: five convolutions and no norm in TokenLearner | `learner_convs=5`, `learner_norm=False` | `4`, `True` |
| both TokenLearner tutorials: mean in place of sum | `learner_reduce='mean'` | `'sum'` |
| CIFAR ones: gelu and dropout after both dense layers | `activate_twice=True` | `False` |
| all: heads wider than dim // heads | `head_dim` | `0` |
| all: Keras's reading of attention kernels as convolutions | `initialiser='keras_3d'` | `'keras'`, `'vit'` |
| CIFAR-100: all tokens flattened into a wide head | `pool='flatten'` | `'cls'`, `'mean'` |

Their last softmax is not part of these models: they give logits, and the loss takes logits.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxvit.layers.embed import POSITIONS, PatchEmbed, PositionEmbed, PrefixTokens
from jaxvit.layers.encoder import Encoder, EncoderBlock, check_learner_at
from jaxvit.layers.norm import Norm
from jaxvit.layers.pool import POOLS, Classifier, Pool
from jaxvit.layers.token_learner import LEARNERS, TokenFuser, TokenLearner
from jaxvit.models.attributes import check_attributes
from jaxvit.ops.stochastic import dropout


class ViT(nn.Module):
    """A vision transformer for images of any size.

    Attributes:
      num_classes: K.
      patch: side of a patch in pixels.
      dim: channels of a token.
      depth: number of blocks.
      heads: attention heads.
      head_dim: channels per head; 0 = dim // heads.
      mlp_ratio: channels inside the MLP, as a multiple of dim.
      mlp_dim: the same as a number; 0 = by mlp_ratio.
      pool: 'cls' (a class token), 'mean', 'sequence' (as CCT), 'attention' (MAP head) or 'flatten'.
      registers: learned tokens without a place that no head reads.
      positions: 'learned', 'sincos' (2-D, fixed), 'sine' (1-D, fixed) or 'none'.
      stem: 'conv' or 'dense', the form of the patch embedding's kernel.
      stem_norm: normalise the raw values of each patch ('dense' only).
      crop_to_patches: drop the rows and columns that do not fill a patch, instead of refusing the image.
      takes_patches: also take (B, h, w, patch² C) patches cut beforehand ('dense' only).
      norm_order: 'pre', 'post', 'post_shared' or 'cct'.
      norm_eps: epsilon of the norms.
      final_norm: a norm after the last block.
      norm_after_pool: the final norm stands after the mean over the tokens, not before it ('mean' only); timm's
        `fc_norm`.
      activation: 'gelu' (exact), 'gelu_tanh' or 'relu'.
      activate_twice: activation and dropout after both dense layers of the MLP.
      qkv_bias, qk_norm: of the attention.
      layer_scale: initial factor of the learned scale on each branch; 0 = none.
      dropout: rate wherever the next two say nothing else, and in the MLP.
      embed_dropout: rate after the positions; -1 = as dropout.
      projection_dropout: rate after the attention's output; -1 = as dropout.
      attention_dropout: rate on the attention weights.
      drop_path: rate of dropping a branch, at the last block; rises linearly from 0.
      learner: kind of TokenLearner, 'v1', 'v11_mlp' or 'v11_conv'; 'none' = keep all tokens.
      learner_at: blocks, counted from 0, that it stands before; several need fuse.
      learner_tokens: tokens it learns.
      learner_reduce, learner_convs, learner_groups, learner_hidden, learner_norm, learner_activation: see
        `jaxvit.layers.TokenLearner`.
      fuse: after each of those blocks, a TokenFuser spreads the tokens over the map again.
      rep_size: size of a tanh layer before the classifier; 0 = none.
      head_hidden: sizes of hidden layers before the classifier.
      head_activation: their activation.
      head_dropout: rate after each of them.
      head_input_dropout: rate before the first of them.
      initialiser: a name of `jaxvit.layers.initialisers`.
      remat: what each block keeps for the backward pass, which computes the rest again: 'none' = keep everything,
        'full' = its input only, 'dots' = matrix products too, 'dots_no_batch' = those of dense layers.
      scan: compile one block and loop.
      dtype: of the computation; parameters, statistics, softmax and logits stay float32.

    Raises:
      ValueError: attributes that do not go together, at construction; an image that does not suit, at the call.
    """

    num_classes: int = 10
    patch: int = 4
    dim: int = 128
    depth: int = 6
    heads: int = 4
    head_dim: int = 0
    mlp_ratio: float = 4.0
    mlp_dim: int = 0
    pool: str = "mean"
    registers: int = 0
    positions: str = "learned"
    stem: str = "conv"
    stem_norm: bool = False
    crop_to_patches: bool = False
    takes_patches: bool = False
    norm_order: str = "pre"
    norm_eps: float = 1e-6
    final_norm: bool = True
    norm_after_pool: bool = False
    activation: str = "gelu"
    activate_twice: bool = False
    qkv_bias: bool = True
    qk_norm: bool = False
    layer_scale: float = 0.0
    dropout: float = 0.0
    embed_dropout: float = -1.0
    projection_dropout: float = -1.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    learner: str = "none"
    learner_at: tuple[int, ...] = ()
    learner_tokens: int = 8
    learner_reduce: str = "sum"
    learner_convs: int = 4
    learner_groups: int = 4
    learner_hidden: int = 64
    learner_norm: bool = True
    learner_activation: str = "gelu"
    fuse: bool = False
    rep_size: int = 0
    head_hidden: tuple[int, ...] = ()
    head_activation: str = "gelu"
    head_dropout: float = 0.0
    head_input_dropout: float = 0.0
    initialiser: str = "vit"
    remat: str = "none"
    scan: bool = False
    dtype: str = "float32"

    def __post_init__(self):
        super().__post_init__()
        check_attributes(self)
        if not self.head_dim and self.dim % self.heads:
            raise ValueError(f"heads={self.heads} does not divide dim={self.dim}: change one, or set head_dim")
        if self.pool not in POOLS:
            raise ValueError(f"pool={self.pool!r} is not one of {', '.join(POOLS)}")
        if self.positions not in POSITIONS:
            raise ValueError(f"positions={self.positions!r} is not one of {', '.join(POSITIONS)}")
        if (self.stem_norm or self.takes_patches) and self.stem != "dense":
            raise ValueError("stem_norm and takes_patches need whole patches as vectors: set stem='dense'")
        if self.norm_after_pool and not (self.final_norm and self.pool == "mean"):
            raise ValueError(
                "norm_after_pool moves the final norm behind the mean: set final_norm=True and pool='mean'"
            )
        if self.learner not in ("none", *LEARNERS):
            raise ValueError(f"learner={self.learner!r} is not one of none, {', '.join(LEARNERS)}")
        check_learner_at(self.learner_at, self.depth, fuse=self.fuse)
        if (self.learner == "none") != (not self.learner_at):
            raise ValueError(f"learner={self.learner!r} with learner_at={self.learner_at}: set both or neither")
        if self.fuse and self.learner == "none":
            raise ValueError("fuse=True has no learned tokens to spread: set learner and learner_at, or fuse=False")

    @property
    def prefix(self) -> int:
        """Leading tokens that have no place in the image."""
        return (self.pool == "cls") + self.registers

    def setup(self):
        shared = {"initialiser": self.initialiser, "dtype": self.dtype}
        mlp_dim = self.mlp_dim or int(self.dim * self.mlp_ratio)
        self.embed = PatchEmbed(
            dim=self.dim,
            patch=self.patch,
            kind=self.stem,
            norm=self.stem_norm,
            crop=self.crop_to_patches,
            takes_patches=self.takes_patches,
            norm_eps=self.norm_eps,
            **shared,
        )
        if self.pool == "cls":
            self.class_token = PrefixTokens(1)
        self.position_embed = PositionEmbed(kind=self.positions, **shared)
        if self.registers:
            self.register_tokens = PrefixTokens(self.registers, stddev=0.02)
        block = partial(
            EncoderBlock,
            heads=self.heads,
            head_dim=self.head_dim,
            mlp_dim=mlp_dim,
            norm_order=self.norm_order,
            norm_eps=self.norm_eps,
            activation=self.activation,
            activate_twice=self.activate_twice,
            qkv_bias=self.qkv_bias,
            qk_norm=self.qk_norm,
            layer_scale=self.layer_scale,
            attention_dropout=self.attention_dropout,
            projection_dropout=self.dropout if self.projection_dropout < 0 else self.projection_dropout,
            mlp_dropout=self.dropout,
            **shared,
        )
        learner = partial(
            TokenLearner,
            tokens=self.learner_tokens,
            kind=self.learner,
            reduce=self.learner_reduce,
            convs=self.learner_convs,
            groups=self.learner_groups,
            hidden=self.learner_hidden,
            norm=self.learner_norm,
            dropout=self.dropout,
            norm_eps=self.norm_eps,
            activation=self.learner_activation,
            **shared,
        )
        fuser = partial(
            TokenFuser,
            hidden=self.learner_hidden,
            dropout=self.dropout,
            norm_eps=self.norm_eps,
            activation=self.learner_activation,
            **shared,
        )
        self.encoder = Encoder(
            block,
            self.depth,
            drop_path=self.drop_path,
            learner=None if self.learner == "none" else learner,
            learner_at=self.learner_at,
            fuser=fuser if self.fuse else None,
            remat=self.remat,
            scan=self.scan,
        )
        if self.final_norm:
            self.norm = Norm(epsilon=self.norm_eps, dtype=self.dtype)
        self.pooling = Pool(
            kind=self.pool,
            prefix=self.prefix,
            heads=self.heads,
            mlp_dim=mlp_dim,
            activation=self.activation,
            norm_eps=self.norm_eps,
            **shared,
        )
        if self.rep_size:
            self.representation = nn.Dense(self.rep_size, dtype=self.dtype)
        self.head = Classifier(
            num_classes=self.num_classes,
            hidden=self.head_hidden,
            activation=self.head_activation,
            dropout=self.head_dropout,
            input_dropout=self.head_input_dropout,
            **shared,
        )

    def features(self, images_BHWC: jax.Array, *, train: bool) -> jax.Array:
        """Tokens after the last block and norm: (B, prefix + h * w, dim), the class token first, registers next.

        After a TokenLearner without a fuser there are prefix + learner_tokens of them. With `norm_after_pool` they are
        not normalised.
        """
        x_BHWC = self.embed(images_BHWC.astype(self.dtype))
        grid = x_BHWC.shape[1:3]
        x_BNC = x_BHWC.reshape(x_BHWC.shape[0], -1, self.dim)
        if self.pool == "cls":
            x_BNC = self.class_token(x_BNC)
        x_BNC = self.position_embed(x_BNC, grid=grid)
        if self.registers:
            head, rest = x_BNC[:, : self.prefix - self.registers], x_BNC[:, self.prefix - self.registers :]
            x_BNC = jnp.concatenate([head, self.register_tokens(rest)], axis=1)
        rate = self.dropout if self.embed_dropout < 0 else self.embed_dropout
        if train and rate > 0:
            x_BNC = dropout(x_BNC, rate, self.make_rng("dropout"))
        x_BNC = self.encoder(x_BNC, train=train, grid=grid)
        return self.norm(x_BNC) if self.final_norm and not self.norm_after_pool else x_BNC

    def __call__(self, images_BHWC: jax.Array, *, train: bool) -> jax.Array:
        """Images, floats already normalised, to float32 logits (B, K)."""
        x_BC = self.pooling(self.features(images_BHWC, train=train), train=train)
        if self.norm_after_pool:
            x_BC = self.norm(x_BC)
        if self.rep_size:
            x_BC = jnp.tanh(self.representation(x_BC))
        return self.head(x_BC, train=train)

    def idle_attributes(self) -> dict[str, str]:
        """Attributes without effect beside the others' values, each with the one that makes it so."""
        idle = {}
        if self.learner == "none":
            learner = ("tokens", "reduce", "convs", "groups", "hidden", "norm", "activation")
            idle |= {f"learner_{name}": "learner='none'" for name in learner}
        else:
            used = {"v1": ("convs",), "v11_mlp": ("hidden",), "v11_conv": ("groups",)}[self.learner]
            every = ("convs", "groups", "hidden")
            idle |= {f"learner_{name}": f"learner={self.learner!r}" for name in every if name not in used}
        if self.mlp_dim:
            idle["mlp_ratio"] = f"mlp_dim={self.mlp_dim}"
        if not self.head_hidden:
            idle |= {"head_activation": "head_hidden=()", "head_dropout": "head_hidden=()"}
        return idle


def _imagenet(patch: int, dim: int, depth: int, heads: int) -> dict:
    return {
        "input": (224, 224, 3), "num_classes": 1000, "pool": "cls",
        "patch": patch, "dim": dim, "depth": depth, "heads": heads,
    }  # fmt: skip


_B16 = _imagenet(16, 768, 12, 12)
_FASHION = {
    "input": (28, 28, 1), "num_classes": 4, "patch": 5, "dim": 128, "depth": 4, "heads": 3, "head_dim": 128,
    "mlp_dim": 100, "stem": "dense", "stem_norm": True, "crop_to_patches": True, "takes_patches": True,
    "norm_order": "post_shared", "norm_eps": 1e-3, "final_norm": False, "activation": "relu",
    "head_hidden": (150,), "head_activation": "relu", "initialiser": "keras_3d",
}  # fmt: skip
_MINI = {
    "input": (48, 48, 3), "num_classes": 10, "patch": 6, "dim": 128, "depth": 4, "heads": 4, "head_dim": 128,
    "mlp_dim": 256, "activation": "gelu_tanh", "activate_twice": True, "dropout": 0.1, "projection_dropout": 0.0,
    "attention_dropout": 0.1, "learner_activation": "gelu_tanh", "initialiser": "keras_3d",
}  # fmt: skip
_CIFAR100 = {
    "input": (72, 72, 3), "num_classes": 100, "patch": 6, "dim": 64, "depth": 8, "heads": 4, "head_dim": 64,
    "mlp_dim": 128, "stem": "dense", "activate_twice": True, "dropout": 0.1, "embed_dropout": 0.0,
    "projection_dropout": 0.0, "attention_dropout": 0.1, "head_hidden": (2048, 1024), "head_dropout": 0.5,
    "head_input_dropout": 0.5, "initialiser": "keras_3d",
}  # fmt: skip


def _learned(kind: str, tokens: int, groups: int = 4) -> dict:
    reduce = "mean" if kind == "v1" else "sum"
    return {
        "learner": kind, "learner_at": (3,), "learner_tokens": tokens, "learner_reduce": reduce,
        "learner_groups": groups,
    }  # fmt: skip


SIZES: dict[str, dict] = {
    "tutorial_fashion_vit": _FASHION,
    "tutorial_fashion_fast_vit": {
        **_FASHION, "learner": "v1", "learner_at": (2,), "learner_tokens": 4, "learner_reduce": "mean",
        "learner_convs": 5, "learner_norm": False,
    },
    "tutorial_mini_vit": _MINI,
    "tutorial_mini_vit_8l": {**_MINI, "depth": 8},
    "tutorial_mini_vit_tl4": {**_MINI, **_learned("v1", 4)},
    "tutorial_mini_vit_tl8": {**_MINI, **_learned("v1", 8)},
    "tutorial_mini_vit_v11_g4t4": {**_MINI, **_learned("v11_conv", 4, 4)},
    "tutorial_mini_vit_v11_g8t8": {**_MINI, **_learned("v11_conv", 8, 8)},
    "tutorial_mini_vit_v11_g4t8": {**_MINI, **_learned("v11_conv", 8, 4)},
    "tutorial_vit_cifar100": {**_CIFAR100, "pool": "flatten"},
    "tutorial_vit_cifar100_gap": {**_CIFAR100, "pool": "mean"},
    "vit_ti16_224": _imagenet(16, 192, 12, 3),
    "vit_s16_224": _imagenet(16, 384, 12, 6),
    "vit_s32_224": _imagenet(32, 384, 12, 6),
    "vit_b16_224": _imagenet(16, 768, 12, 12),
    "vit_b32_224": _imagenet(32, 768, 12, 12),
    "vit_l16_224": _imagenet(16, 1024, 24, 16),
    "token_learner_vit_b16_224": {
        **_B16, "pool": "mean", "learner": "v11_mlp", "learner_at": (9,), "learner_tokens": 16,
    },
    "token_learner_fuser_vit_b16_224": {
        **_B16, "pool": "mean", "learner": "v11_mlp", "learner_at": (9, 10, 11), "learner_tokens": 16, "fuse": True,
    },
}  # fmt: skip
