"""Compact transformers: CCT, CVT and ViT-Lite.

Paper: Hassani et al. 2021 (arXiv:2104.05704); authors' code SHI-Labs/Compact-Transformers. Two attributes choose among
them:

| | tokenizer | pool |
|---|---|---|
| CCT | 'conv' | 'sequence' |
| CVT | 'patch' | 'sequence' |
| ViT-Lite | 'patch' | 'cls' |

Their block is not the plain pre-norm block: the residual connection of the MLP carries the normalised value
(`norm_order='cct'`).

Departure from the authors' code: `positions='sine'` gives a sine table. Theirs accepts this argument, does not pass it
on, and makes a learned table.

Departures of the Keras tutorial from the authors. Each is an attribute:

| tutorial | attribute | authors | effect |
|---|---|---|---|
| draws the position table outside the graph: it is neither trained nor saved | `frozen_positions=True` | `False` | 8,192 parameters fewer |
| pads after the convolution, not before | `pad_after_conv=True` | `False` | border tokens |
| TensorFlow's SAME pooling | `same_pooling=True` | `False` | windows are off by one pixel: weights do not transfer |
| plain pre-norm block | `norm_order='pre'` | `'cct'` | |
| gelu and dropout after both dense layers of the MLP | `activate_twice=True` | `False` | |
| heads of 128 channels where dim // heads is 64 | `head_dim=128` | `0` | 46.7 % more parameters in all |
| biases on query, key and value | `qkv_bias=True` | `False` | 1,536 more parameters |

`tutorial_cct` has a trained table, as the tutorial's text describes; `frozen_positions=True` is the tutorial as it ran.
That its table was frozen is inferred from its code and its parameter count.
"""  # noqa: E501

import jax
from flax import linen as nn

from jaxvit.layers.embed import POSITIONS, ConvTokenizer, PatchEmbed, PositionEmbed, PrefixTokens
from jaxvit.layers.encoder import Encoder
from jaxvit.layers.norm import Norm
from jaxvit.layers.pool import POOLS, Classifier, Pool
from jaxvit.models.attributes import check_attributes
from jaxvit.models.blocks import encoded, encoder_block, inherited, layer_of, mlp_dim, reduction_of
from jaxvit.ops.stochastic import dropout

_POOLS = tuple(kind for kind in POOLS if kind != "cls_register")  # there are no registers


class CCT(nn.Module):
    """A compact transformer for images of any size.

    The forward pass of `cct_2_3x2_32` for B images; each name is a submodule, in the order of execution:

        images                        (B, 32, 32, 3)   float32, normalized
        embed                         (B, 8, 8, 128)   two 3x3 convolutions, relu, max-pooling of stride 2
                                      (B, 64, 128)     flattened in row order
        position_embed                (B, 64, 128)     adds a learned vector per place, then dropout
        encoder/block_0               (B, 64, 128)
          norm_attention              (B, 64, 128)
          attention                   (B, 64, 128)     2 heads; x = x + attention(norm_attention(x))
          norm_mlp                    (B, 64, 128)     x = norm_mlp(x)
          mlp                         (B, 64, 128)     hidden layer of 128; x = x + mlp(x)
        encoder/block_1               (B, 64, 128)
        norm                          (B, 64, 128)     `features` returns this
        pooling/sequence_pool         (B, 128)         softmax over the places of a learned score; the weighted mean
        head                          (B, 10)          logits, float32

    Attributes:
      num_classes: number of classes K.
      tokenizer: 'conv' or 'patch'.
      conv_layers, conv_width, kernel, stride, pad_after_conv, same_pooling: attributes of the 'conv' tokenizer, see
        `jaxvit.layers.ConvTokenizer`; stride 0 = the authors' rule.
      patch: side of a patch of the 'patch' tokenizer, in pixels.
      crop_to_patches: drop rows and columns that do not fill a patch; False = such an image is an error.
      dim: channels C of a token.
      depth: number of blocks.
      heads: number of attention heads.
      head_dim: channels per head; 0 = dim // heads.
      mlp_ratio: channels of the MLP's hidden layer as a multiple of dim.
      pool: 'sequence', 'cls', 'mean', 'attention' or 'flatten'.
      positions: 'learned', 'sine' (1-D, fixed), 'sincos' (2-D, fixed) or 'none'.
      frozen_positions: keep the 'learned' table at its random initial values.
      norm_order: 'cct', 'pre', 'post' or 'post_shared'; see `jaxvit.layers.encoder`.
      norm_eps: epsilon of the norms.
      activation: 'gelu' (exact), 'gelu_tanh' or 'relu'.
      activate_twice: apply activation and dropout after both dense layers of the MLP.
      qkv_bias: whether query, key and value have biases.
      dropout: dropout rate in the MLP, and where the next two are -1.
      embed_dropout: dropout rate after the positions; -1 = `dropout`.
      projection_dropout: dropout rate after the attention's output; -1 = `dropout`.
      attention_dropout: dropout rate of the attention weights.
      drop_path: drop-path rate of the last block; rises linearly from 0 at the first.
      initialiser: initial values; see `jaxvit.layers.initialisers`.
      remat: what each block keeps for the backward pass, which computes the rest again: 'none' (keep everything),
        'full' (its input only), 'dots' (also matrix products) or 'dots_no_batch' (also those of dense layers).
      scan: compile one block and loop over it.
      reduce: merge or remove tokens inside the encoder, such as 'merge:r=8' or 'prune:keep=.7'; 'none' = keep all. See
        `jaxvit.layers.reduction`. It needs no parameters, so any trained weights will do.
      dtype: dtype of the computation, 'float32', 'bfloat16' or 'float16'. Parameters, statistics of norms, softmax and
        logits are float32.

    Raises:
      ValueError: an attribute is not allowed, or two do not go together; at the call, the image does not fit.

    Example:
      >>> model = CCT(depth=2)
      >>> images = jnp.ones((2, 32, 32, 3))
      >>> logits, variables = model.init_with_output(jax.random.key(0), images, train=False)
      >>> logits.shape, model.apply(variables, images, train=False, method="features").shape
      ((2, 10), (2, 64, 128))
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
    reduce: str = "none"
    dtype: str = "float32"

    def __call__(self, images_BHWC: jax.Array, *, train: bool) -> jax.Array:
        """Computes logits (B, K), float32, of normalized float images (B, H, W, C); `train` turns on dropout."""
        x_BNC, sizes_BN = self._tokens(images_BHWC, train=train)
        x_BC = self.pooling(x_BNC, train=train, sizes_BN=sizes_BN)
        return self.head(x_BC, train=train)

    def features(self, images_BHWC: jax.Array, *, train: bool) -> jax.Array:
        """Computes the tokens after the last block and norm: (B, prefix + h * w, dim); a class token is first.

        With `reduce` there are fewer.
        """
        return self._tokens(images_BHWC, train=train)[0]

    def _tokens(self, images_BHWC: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array | None]:
        """Computes `features`, and how many merged tokens each of them stands for; None = one each."""
        x_BHWC = self.embed(images_BHWC.astype(self.dtype))
        grid = (x_BHWC.shape[1], x_BHWC.shape[2])
        x_BNC = x_BHWC.reshape(x_BHWC.shape[0], -1, self.dim)
        x_BNC = self.class_token(x_BNC) if self.prefix else x_BNC
        x_BNC = self.position_embed(x_BNC, grid=grid)
        rate = inherited(self.embed_dropout, self.dropout)
        if train and rate > 0:
            x_BNC = dropout(x_BNC, rate, self.make_rng("dropout"))
        found = self.encoder(x_BNC, train=train, grid=grid)
        x_BNC, sizes_BN = encoded(found, flatten=self.pool == "flatten")
        return self.norm(x_BNC), sizes_BN

    def setup(self):
        """Creates the submodules; a submodule's attribute is its name in the parameter tree."""
        if self.tokenizer == "conv":
            self.embed = layer_of(self, ConvTokenizer, layers=self.conv_layers, width=self.conv_width)()
        else:
            self.embed = layer_of(self, PatchEmbed, crop=self.crop_to_patches)()
        if self.prefix:
            self.class_token = PrefixTokens(1)
        self.position_embed = layer_of(self, PositionEmbed, kind=self.positions, frozen=self.frozen_positions)()
        self.encoder = Encoder(
            encoder_block(self),
            self.depth,
            drop_path=self.drop_path,
            remat=self.remat,
            scan=self.scan,
            reduce=reduction_of(self),
            class_token=self.pool == "cls",
        )
        self.norm = Norm(epsilon=self.norm_eps, dtype=self.dtype)
        self.pooling = layer_of(
            self, Pool, kind=self.pool, prefix=self.prefix, mlp_dim=mlp_dim(self), activation="gelu"
        )()
        self.head = Classifier(num_classes=self.num_classes, initialiser=self.initialiser, dtype=self.dtype)

    @property
    def prefix(self) -> int:
        """Number of leading tokens without a place in the image: 1 with a class token, else 0."""
        return int(self.pool == "cls")

    def __post_init__(self):
        super().__post_init__()
        check_attributes(self)
        if not self.head_dim and self.dim % self.heads:
            raise ValueError(f"heads={self.heads} does not divide dim={self.dim}: change one, or set head_dim")
        if self.tokenizer not in ("conv", "patch"):
            raise ValueError(f"tokenizer={self.tokenizer!r} is neither 'conv' nor 'patch'")
        if self.pool not in _POOLS:
            raise ValueError(f"pool={self.pool!r} is not one of {', '.join(_POOLS)}")
        if self.positions not in POSITIONS:
            raise ValueError(f"positions={self.positions!r} is not one of {', '.join(POSITIONS)}")
        if self.frozen_positions and self.positions != "learned":
            raise ValueError(f"frozen_positions freezes a learned table, and positions={self.positions!r} has none")
        reduction_of(self)

    def idle_attributes(self) -> dict[str, str]:
        """Returns {attribute: reason} of the attributes that have no effect, given the values of the others."""
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
