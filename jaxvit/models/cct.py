"""Compact transformers: CCT, CVT and ViT-Lite.

Paper: Hassani et al. 2021 (arXiv:2104.05704); authors' code SHI-Labs/Compact-Transformers. One model, two choices:

| | tokenizer | pool |
|---|---|---|
| CCT | 'conv' | 'sequence' |
| CVT | 'patch' | 'sequence' |
| ViT-Lite | 'patch' | 'cls' |

Their block is not the plain pre-norm one: the MLP's shortcut carries the normalised value (`norm_order='cct'`).

Departures from the authors' code: `positions='sine'` gives the sine table it says; theirs takes the argument, does not
pass it on, and makes a learned table.

Departures of the Keras tutorial from the authors, each an attribute:

| tutorial | attribute | authors | effect |
|---|---|---|---|
| the position table is drawn outside of the graph: never trained, never saved | `frozen_positions=True` | `False` | 8,192 parameters fewer |
| pads after the convolution, not before | `pad_after_conv=True` | `False` | border tokens |
| TensorFlow's SAME pooling | `same_pooling=True` | `False` | windows one pixel off: weights do not transfer |
| plain pre-norm block | `norm_order='pre'` | `'cct'` | |
| gelu and dropout after both dense layers of the MLP | `activate_twice=True` | `False` | |
| heads of 128 channels where dim // heads is 64 | `head_dim=128` | `0` | 46.7 % more parameters in all |
| biases on query, key and value | `qkv_bias=True` | `False` | 1,536 more parameters |

`tutorial_cct` has a trained table, as its text means it to; `frozen_positions=True` is the tutorial as it ran. That the
table was frozen is inferred from its code and its count of parameters.
"""  # noqa: E501

from functools import partial

import jax
from flax import linen as nn

from jaxvit.layers.embed import POSITIONS, ConvTokenizer, PatchEmbed, PositionEmbed, PrefixTokens
from jaxvit.layers.encoder import Encoder, EncoderBlock
from jaxvit.layers.norm import Norm
from jaxvit.layers.pool import POOLS, Classifier, Pool
from jaxvit.models.attributes import check_attributes
from jaxvit.ops.stochastic import dropout


class CCT(nn.Module):
    """A compact transformer for images of any size.

    Attributes:
      num_classes: K.
      tokenizer: 'conv' or 'patch'.
      conv_layers, conv_width, kernel, stride, pad_after_conv, same_pooling: of the 'conv' tokenizer, see
        `jaxvit.layers.ConvTokenizer`; stride 0 = by the authors' rule.
      patch: side of a patch of the 'patch' tokenizer.
      crop_to_patches: drop the rows and columns that do not fill such a patch, instead of refusing the image.
      dim: channels of a token.
      depth: number of blocks.
      heads: attention heads.
      head_dim: channels per head; 0 = dim // heads.
      mlp_ratio: channels inside the MLP, as a multiple of dim.
      pool: 'sequence', 'cls', 'mean', 'attention' or 'flatten'.
      positions: 'learned', 'sine' (1-D, fixed), 'sincos' (2-D, fixed) or 'none'.
      frozen_positions: keep the 'learned' table at one fixed random draw.
      norm_order: 'cct', 'pre', 'post' or 'post_shared'.
      norm_eps: epsilon of the norms.
      activation: 'gelu' (exact), 'gelu_tanh' or 'relu'.
      activate_twice: activation and dropout after both dense layers of the MLP.
      qkv_bias: biases on query, key and value.
      dropout: rate wherever the next two say nothing else, and in the MLP.
      embed_dropout: rate after the positions; -1 = as dropout.
      projection_dropout: rate after the attention's output; -1 = as dropout.
      attention_dropout: rate on the attention weights.
      drop_path: rate of dropping a branch, at the last block; rises linearly from 0.
      initialiser: a name of `jaxvit.layers.initialisers`.
      remat: what each block keeps for the backward pass, which computes the rest again: 'none' = keep everything,
        'full' = its input only, 'dots' = matrix products too, 'dots_no_batch' = those of dense layers.
      scan: compile one block and loop.
      dtype: of the computation; parameters, statistics, softmax and logits stay float32.

    Raises:
      ValueError: attributes that do not go together, at construction; an image that does not suit, at the call.
    """

    num_classes: int = 10
    tokenizer: str = "conv"
    conv_layers: int = 2
    conv_width: int = 64
    kernel: int = 3
    stride: int = 0
    pad_after_conv: bool = False
    same_pooling: bool = False
    patch: int = 4
    crop_to_patches: bool = False
    dim: int = 128
    depth: int = 2
    heads: int = 2
    head_dim: int = 0
    mlp_ratio: float = 1.0
    pool: str = "sequence"
    positions: str = "learned"
    frozen_positions: bool = False
    norm_order: str = "cct"
    norm_eps: float = 1e-5
    activation: str = "gelu"
    activate_twice: bool = False
    qkv_bias: bool = False
    dropout: float = 0.0
    embed_dropout: float = -1.0
    projection_dropout: float = -1.0
    attention_dropout: float = 0.1
    drop_path: float = 0.1
    initialiser: str = "cct"
    remat: str = "none"
    scan: bool = False
    dtype: str = "float32"

    def __post_init__(self):
        super().__post_init__()
        check_attributes(self)
        if not self.head_dim and self.dim % self.heads:
            raise ValueError(f"heads={self.heads} does not divide dim={self.dim}: change one, or set head_dim")
        if self.tokenizer not in ("conv", "patch"):
            raise ValueError(f"tokenizer={self.tokenizer!r} is neither 'conv' nor 'patch'")
        if self.pool not in POOLS:
            raise ValueError(f"pool={self.pool!r} is not one of {', '.join(POOLS)}")
        if self.positions not in POSITIONS:
            raise ValueError(f"positions={self.positions!r} is not one of {', '.join(POSITIONS)}")
        if self.frozen_positions and self.positions != "learned":
            raise ValueError(f"frozen_positions freezes a learned table, and positions={self.positions!r} has none")

    def idle_attributes(self) -> dict[str, str]:
        """Attributes without effect beside the others' values, each with the one that makes it so."""
        idle = {}
        if self.tokenizer == "conv":
            idle |= dict.fromkeys(("patch", "crop_to_patches"), "tokenizer='conv'")
        else:
            convolutional = ("conv_layers", "conv_width", "kernel", "stride", "pad_after_conv", "same_pooling")
            idle |= dict.fromkeys(convolutional, "tokenizer='patch'")
        if self.tokenizer == "conv" and self.conv_layers == 1:
            idle["conv_width"] = "conv_layers=1"
        if self.positions != "learned":
            idle["frozen_positions"] = f"positions={self.positions!r}"
        return idle

    @property
    def prefix(self) -> int:
        """Leading tokens that have no place in the image."""
        return int(self.pool == "cls")

    def setup(self):
        shared = {"initialiser": self.initialiser, "dtype": self.dtype}
        mlp_dim = int(self.dim * self.mlp_ratio)
        if self.tokenizer == "conv":
            self.embed = ConvTokenizer(
                dim=self.dim,
                layers=self.conv_layers,
                width=self.conv_width,
                kernel=self.kernel,
                stride=self.stride,
                pad_after_conv=self.pad_after_conv,
                same_pooling=self.same_pooling,
                **shared,
            )
        else:
            self.embed = PatchEmbed(dim=self.dim, patch=self.patch, crop=self.crop_to_patches, **shared)
        if self.prefix:
            self.class_token = PrefixTokens(1)
        self.position_embed = PositionEmbed(kind=self.positions, frozen=self.frozen_positions, **shared)
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
            attention_dropout=self.attention_dropout,
            projection_dropout=self.dropout if self.projection_dropout < 0 else self.projection_dropout,
            mlp_dropout=self.dropout,
            **shared,
        )
        self.encoder = Encoder(block, self.depth, drop_path=self.drop_path, remat=self.remat, scan=self.scan)
        self.norm = Norm(epsilon=self.norm_eps, dtype=self.dtype)
        self.pooling = Pool(
            kind=self.pool, prefix=self.prefix, heads=self.heads, mlp_dim=mlp_dim, norm_eps=self.norm_eps, **shared
        )
        self.head = Classifier(num_classes=self.num_classes, **shared)

    def features(self, images_BHWC: jax.Array, *, train: bool) -> jax.Array:
        """Tokens after the last block and norm: (B, prefix + h * w, dim), a class token first."""
        x_BHWC = self.embed(images_BHWC.astype(self.dtype))
        grid = x_BHWC.shape[1:3]
        x_BNC = x_BHWC.reshape(x_BHWC.shape[0], -1, self.dim)
        x_BNC = self.class_token(x_BNC) if self.prefix else x_BNC
        x_BNC = self.position_embed(x_BNC, grid=grid)
        rate = self.dropout if self.embed_dropout < 0 else self.embed_dropout
        if train and rate > 0:
            x_BNC = dropout(x_BNC, rate, self.make_rng("dropout"))
        return self.norm(self.encoder(x_BNC, train=train, grid=grid))

    def __call__(self, images_BHWC: jax.Array, *, train: bool) -> jax.Array:
        """Images, floats already normalised, to float32 logits (B, K)."""
        x_BC = self.pooling(self.features(images_BHWC, train=train), train=train)
        return self.head(x_BC, train=train)


_SMALL = {"heads": 2, "mlp_ratio": 1.0, "dim": 128}
_MEDIUM = {"heads": 4, "mlp_ratio": 2.0, "dim": 256}
_LARGE = {"depth": 14, "heads": 6, "mlp_ratio": 3.0, "dim": 384, "kernel": 7, "num_classes": 1000}


def _cct(depth: int, size: dict, conv_layers: int) -> dict:
    return {"input": (32, 32, 3), **size, "depth": depth, "conv_layers": conv_layers}


def _patches(depth: int, size: dict, pool: str) -> dict:
    return {"input": (32, 32, 3), **size, "depth": depth, "tokenizer": "patch", "pool": pool}


SIZES: dict[str, dict] = {
    "tutorial_cct": {
        "input": (32, 32, 3), **_SMALL, "depth": 2, "head_dim": 128, "pad_after_conv": True, "same_pooling": True,
        "norm_order": "pre", "activate_twice": True, "qkv_bias": True, "dropout": 0.1, "embed_dropout": 0.0,
        "projection_dropout": 0.0, "attention_dropout": 0.1, "drop_path": 0.1, "initialiser": "keras_3d",
    },
    "cct_2_3x2_32": _cct(2, _SMALL, 2),
    "cct_4_3x2_32": _cct(4, _SMALL, 2),
    "cct_6_3x1_32": _cct(6, _MEDIUM, 1),
    "cct_6_3x2_32": _cct(6, _MEDIUM, 2),
    "cct_7_3x1_32": _cct(7, _MEDIUM, 1),
    "cct_7_3x2_32": _cct(7, _MEDIUM, 2),
    "cct_7_7x2_224": {"input": (224, 224, 3), **_MEDIUM, "depth": 7, "kernel": 7, "num_classes": 102},
    "cct_14_7x2_224": {"input": (224, 224, 3), **_LARGE},
    "cct_14_7x2_384": {"input": (384, 384, 3), **_LARGE},
    "cvt_2_4_32": _patches(2, _SMALL, "sequence"),
    "cvt_4_4_32": _patches(4, _SMALL, "sequence"),
    "cvt_6_4_32": _patches(6, _MEDIUM, "sequence"),
    "cvt_7_4_32": _patches(7, _MEDIUM, "sequence"),
    "vit_lite_2_4_32": _patches(2, _SMALL, "cls"),
    "vit_lite_4_4_32": _patches(4, _SMALL, "cls"),
    "vit_lite_6_4_32": _patches(6, _MEDIUM, "cls"),
    "vit_lite_7_4_32": _patches(7, _MEDIUM, "cls"),
}  # fmt: skip
