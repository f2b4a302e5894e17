"""The vision transformer, plain or with TokenLearner: patches, positions, a stack of blocks, pooling, class scores.

Papers: Dosovitskiy et al. 2020 (arXiv:2010.11929). Mean pooling, sine-cosine positions and the representation layer of
the small models follow Beyer et al. 2022 (arXiv:2205.01580). TokenLearner: Ryoo et al. 2021 (arXiv:2106.11297).

Departures from google-research/vision_transformer; the parameter counts are equal:

- gelu is exact, as in the paper. Theirs, big_vision's and Scenic's is the tanh approximation, which differs by less than
  1e-3 per value. Use `activation='gelu_tanh'` (and `learner_activation`) with their weights and recipes.
- `vit_l16_224` has no dropout. Their configuration has .1 for this size alone; the published recipes choose the rate per
  run. Set `dropout`.
- The learned position table starts with a standard deviation of .02. big_vision's starts with 1 / √dim:
  `initialiser='big_vision'`.
- The final norm precedes the mean. timm's `global_pool='avg'` normalises after it: `norm_after_pool=True`. Registers are
  an addition. A class token that attends but is not read, as in MAE's fine-tuned models, is one more register with its
  position added.
- With TokenLearner, the departures from google-research/scenic that `jaxvit.layers.token_learner` lists. A class token
  may be combined with it, which theirs documents but does not implement. `drop_path` works; theirs ignores it.
- Logits are float32 under bfloat16 too, because the loss needs them.

Departures of the tutorials. Each is an attribute, so you can go from a tutorial to the paper one step at a time:

| tutorial | attribute | paper |
|---|---|---|
| Fashion-MNIST: norm after the residual connection, and one norm used twice per block | `norm_order='post_shared'` | `'pre'` |
| Fashion-MNIST: patches of 5 drop 3 of 28 rows and columns | `crop_to_patches=True` | a patch that divides the image |
| Fashion-MNIST: normalises raw patches first | `stem_norm=True` | `False` |
| Fashion-MNIST: builds a dropout of .5 in the head without connecting it | `head_dropout=0.0` | `0.5` was meant |
| Fashion-MNIST: five convolutions and no norm in TokenLearner | `learner_convs=5`, `learner_norm=False` | `4`, `True` |
| both TokenLearner tutorials: mean instead of sum | `learner_reduce='mean'` | `'sum'` |
| CIFAR tutorials: gelu and dropout after both dense layers | `activate_twice=True` | `False` |
| all: heads wider than dim // heads | `head_dim` | `0` |
| all: Keras's initial values, which take attention kernels for convolutions | `initialiser='keras_3d'` | `'keras'`, `'vit'` |
| CIFAR-100: flattens all tokens into a wide head | `pool='flatten'` | `'cls'`, `'mean'` |

The tutorials end in a softmax. These models return logits, which the loss takes.
"""  # noqa: E501

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxvit.layers.embed import POSITIONS, PatchEmbed, PositionEmbed, PrefixTokens
from jaxvit.layers.encoder import Encoder, check_learner_at
from jaxvit.layers.norm import Norm
from jaxvit.layers.pool import POOLS, Classifier, Pool
from jaxvit.layers.token_learner import LEARNERS, TokenFuser, TokenLearner
from jaxvit.models.attributes import check_attributes
from jaxvit.models.blocks import encoded, encoder_block, inherited, layer_of, mlp_dim, reduction_of
from jaxvit.ops.stochastic import dropout


class ViT(nn.Module):
    """A vision transformer, optionally with TokenLearner, for images of any size.

    The forward pass of `tutorial_mini_vit_tl8` for B images; each name is a submodule, in the order of execution:

        images                        (B, 48, 48, 3)   float32, normalized
        embed                         (B, 8, 8, 128)   6x6 patches, each projected to dim=128 channels
                                      (B, 64, 128)     flattened in row order; a class token would come first
        position_embed                (B, 64, 128)     adds a learned vector per place, then dropout
        encoder/block_0               (B, 64, 128)
          norm_attention              (B, 64, 128)
          attention                   (B, 64, 128)     4 heads; x = x + attention(norm_attention(x))
          norm_mlp                    (B, 64, 128)
          mlp                         (B, 64, 128)     hidden layer of 256; x = x + mlp(norm_mlp(x))
        encoder/block_1               (B, 64, 128)
        encoder/block_2               (B, 64, 128)
        encoder/token_learner_3       (B, 8, 128)      8 weight maps over the 64 places; 8 weighted means
        encoder/block_3               (B, 8, 128)      the same block on 8 tokens
        norm                          (B, 8, 128)      `features` returns this
        pooling                       (B, 128)         the mean of the tokens
        head                          (B, 10)          logits, float32

    With `fuse=True`, a token_fuser_i after block_i mixes the learned tokens back into the map of 64 places.

    Attributes:
      num_classes: number of classes K.
      patch: side of a patch in pixels.
      dim: channels C of a token.
      depth: number of blocks.
      heads: number of attention heads.
      head_dim: channels per head; 0 = dim // heads.
      mlp_ratio: channels of the MLP's hidden layer as a multiple of dim.
      mlp_dim: the same as a number of channels; 0 = by mlp_ratio.
      pool: 'cls' (class token), 'cls_register' (class token and first register side by side, as in a distilled DeiT),
        'mean', 'sequence' (as CCT), 'attention' (MAP head) or 'flatten'.
      registers: number of learned tokens that have no place in the image and that the head does not read.
      positions: 'learned', 'sincos' (2-D, fixed), 'sine' (1-D, fixed) or 'none'.
      stem: kernel of the patch embedding, 'conv' or 'dense'.
      stem_norm: normalise the raw values of each patch ('dense' only).
      crop_to_patches: drop rows and columns that do not fill a patch; False = such an image is an error.
      takes_patches: also accept patches (B, h, w, patch² C) that are already cut ('dense' only).
      norm_order: 'pre', 'post', 'post_shared' or 'cct'; see `jaxvit.layers.encoder`.
      norm_eps: epsilon of the norms.
      final_norm: apply a norm after the last block.
      norm_after_pool: apply the final norm after the mean over the tokens instead of before ('mean' only), as timm's
        `fc_norm`.
      activation: 'gelu' (exact), 'gelu_tanh' or 'relu'.
      activate_twice: apply activation and dropout after both dense layers of the MLP.
      qkv_bias: whether query, key and value have biases.
      qk_norm: normalise queries and keys per head.
      layer_scale: initial value of a learned factor per channel on each branch; 0 = no such factor.
      dropout: dropout rate in the MLP, and where the next two are -1.
      embed_dropout: dropout rate after the positions; -1 = `dropout`.
      projection_dropout: dropout rate after the attention's output; -1 = `dropout`.
      attention_dropout: dropout rate of the attention weights.
      drop_path: drop-path rate of the last block; rises linearly from 0 at the first.
      learner: kind of TokenLearner, 'v1', 'v11_mlp' or 'v11_conv'; 'none' = no TokenLearner.
      learner_at: indices of the blocks that follow a TokenLearner; more than one needs `fuse`.
      learner_tokens, learner_reduce, learner_convs, learner_groups, learner_hidden, learner_norm, learner_activation,
        learner_keep, learner_start: attributes of `jaxvit.layers.TokenLearner`, without the prefix.
      fuse: apply a TokenFuser after each of those blocks.
      rep_size: size of a tanh layer before the classifier; 0 = none.
      head_hidden: sizes of hidden layers of the classifier.
      head_activation: activation of these layers.
      head_dropout: dropout rate after each of them.
      head_input_dropout: dropout rate before the first of them.
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
      >>> model = ViT(depth=2, learner="v11_mlp", learner_at=(1,))
      >>> images = jnp.ones((2, 32, 32, 3))
      >>> logits, variables = model.init_with_output(jax.random.key(0), images, train=False)
      >>> logits.shape, model.apply(variables, images, train=False, method="features").shape
      ((2, 10), (2, 8, 128))
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
    learner_keep: int = 0
    learner_start: str = "random"
    fuse: bool = False
    rep_size: int = 0
    head_hidden: tuple[int, ...] = ()
    head_activation: str = "gelu"
    head_dropout: float = 0.0
    head_input_dropout: float = 0.0
    initialiser: str = "vit"
    remat: str = "none"
    scan: bool = False
    reduce: str = "none"
    dtype: str = "float32"

    def __call__(self, images_BHWC: jax.Array, *, train: bool) -> jax.Array:
        """Computes logits (B, K), float32, of normalized float images (B, H, W, C); `train` turns on dropout."""
        x_BNC, sizes_BN = self._tokens(images_BHWC, train=train)
        x_BC = self.pooling(x_BNC, train=train, sizes_BN=sizes_BN)
        if self.norm_after_pool:
            x_BC = self.norm(x_BC)
        if self.rep_size:
            x_BC = jnp.tanh(self.representation(x_BC))
        return self.head(x_BC, train=train)

    def features(self, images_BHWC: jax.Array, *, train: bool) -> jax.Array:
        """Computes the tokens after the last block and norm: (B, prefix + h * w, dim).

        The class token is first, then the registers. After a TokenLearner without a fuser there are prefix +
        learner_tokens tokens, and with `reduce` fewer. With `norm_after_pool` they are not normalised.
        """
        return self._tokens(images_BHWC, train=train)[0]

    def _tokens(self, images_BHWC: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array | None]:
        """Computes `features`, and how many merged tokens each of them stands for; None = one each."""
        x_BHWC = self.embed(images_BHWC.astype(self.dtype))
        grid = (x_BHWC.shape[1], x_BHWC.shape[2])
        x_BNC = x_BHWC.reshape(x_BHWC.shape[0], -1, self.dim)
        if self._has_class_token:
            x_BNC = self.class_token(x_BNC)
        x_BNC = self.position_embed(x_BNC, grid=grid)
        if self.registers:
            head, rest = x_BNC[:, : self.prefix - self.registers], x_BNC[:, self.prefix - self.registers :]
            x_BNC = jnp.concatenate([head, self.register_tokens(rest)], axis=1)
        rate = inherited(self.embed_dropout, self.dropout)
        if train and rate > 0:
            x_BNC = dropout(x_BNC, rate, self.make_rng("dropout"))
        found = self.encoder(x_BNC, train=train, grid=grid)
        x_BNC, sizes_BN = encoded(found, flatten=self.pool == "flatten")
        return self.norm(x_BNC) if self.final_norm and not self.norm_after_pool else x_BNC, sizes_BN

    def setup(self):
        """Creates the submodules; a submodule's attribute is its name in the parameter tree."""
        self.embed = layer_of(self, PatchEmbed, kind=self.stem, norm=self.stem_norm, crop=self.crop_to_patches)()
        if self._has_class_token:
            self.class_token = PrefixTokens(1)
        self.position_embed = layer_of(self, PositionEmbed, kind=self.positions)()
        if self.registers:
            self.register_tokens = PrefixTokens(self.registers, stddev=0.02)
        learner = layer_of(self, TokenLearner, "learner_", kind=self.learner, dropout=self.dropout)
        fuser = layer_of(self, TokenFuser, hidden=self.learner_hidden, activation=self.learner_activation)
        self.encoder = Encoder(
            encoder_block(self),
            self.depth,
            drop_path=self.drop_path,
            learner=None if self.learner == "none" else learner,
            learner_at=self.learner_at,
            fuser=fuser if self.fuse else None,
            remat=self.remat,
            scan=self.scan,
            reduce=reduction_of(self, self.learner_at, fuse=self.fuse),
            class_token=self._has_class_token,
        )
        if self.final_norm:
            self.norm = Norm(epsilon=self.norm_eps, dtype=self.dtype)
        self.pooling = layer_of(self, Pool, kind=self.pool, prefix=self.prefix, mlp_dim=mlp_dim(self))()
        if self.rep_size:
            self.representation = nn.Dense(self.rep_size, dtype=self.dtype)
        self.head = layer_of(self, Classifier, "head_", num_classes=self.num_classes)()

    @property
    def prefix(self) -> int:
        """Number of leading tokens without a place in the image: the class token and the registers."""
        return self._has_class_token + self.registers

    @property
    def _has_class_token(self) -> bool:
        return self.pool in ("cls", "cls_register")

    def __post_init__(self):
        super().__post_init__()
        check_attributes(self)
        if not self.head_dim and self.dim % self.heads:
            raise ValueError(f"heads={self.heads} does not divide dim={self.dim}: change one, or set head_dim")
        if self.pool not in POOLS:
            raise ValueError(f"pool={self.pool!r} is not one of {', '.join(POOLS)}")
        if self.pool == "cls_register" and not self.registers:
            raise ValueError("pool='cls_register' reads a register: set registers=1 or more")
        if self.positions not in POSITIONS:
            raise ValueError(f"positions={self.positions!r} is not one of {', '.join(POSITIONS)}")
        if (self.stem_norm or self.takes_patches) and self.stem != "dense":
            raise ValueError("stem_norm and takes_patches need whole patches as vectors: set stem='dense'")
        if self.norm_after_pool and not (self.final_norm and self.pool == "mean"):
            raise ValueError("norm_after_pool moves the final norm after the mean: set final_norm=True and pool='mean'")
        if self.learner not in ("none", *LEARNERS):
            raise ValueError(f"learner={self.learner!r} is not one of none, {', '.join(LEARNERS)}")
        check_learner_at(self.learner_at, self.depth, fuse=self.fuse)
        if (self.learner == "none") != (not self.learner_at):
            raise ValueError(f"learner={self.learner!r} with learner_at={self.learner_at}: set both or neither")
        if self.fuse and self.learner == "none":
            raise ValueError("fuse=True has no learned tokens to spread: set learner and learner_at, or fuse=False")
        if not 0 <= self.learner_keep <= self.learner_tokens:
            raise ValueError(f"learner_keep={self.learner_keep} must be from 0 to learner_tokens={self.learner_tokens}")
        if self.learner_keep and self.fuse:
            raise ValueError("learner_keep leaves learned tokens out, and a TokenFuser needs all: set fuse=False")
        reduction_of(self, self.learner_at, fuse=self.fuse)

    def idle_attributes(self) -> dict[str, str]:
        """Returns {attribute: reason} of the attributes that have no effect, given the values of the others."""
        idle = {}
        if self.learner == "none":
            learner = ("tokens", "reduce", "convs", "groups", "hidden", "norm", "activation", "keep", "start")
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
