"""The layers of ShiftViT (Wang et al. 2022, arXiv:2201.10801), which shifts channels instead of computing attention.

The defaults follow microsoft/SPACH. `shift='border'` and `groups='width'` follow the Keras tutorial; see
`jaxvit.models.shiftvit`. The authors' 1x1 convolutions are dense layers here, which compute the same numbers.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxvit.layers.arguments import check_layer
from jaxvit.layers.initialisers import scheme
from jaxvit.layers.mlp import Mlp
from jaxvit.layers.norm import NORMS, Norm
from jaxvit.layers.stack import REMAT, block_keys, run_blocks
from jaxvit.ops import stochastic
from jaxvit.ops.arguments import CALLABLE, PATH_RATE, check_array, each, one_of, whole
from jaxvit.ops.shift import mask_borders, shift_channels

SHIFTS = ("true", "border", "none")


class ShiftBlock(nn.Module):
    """A shift, then an MLP on a residual branch: maps (B, H, W, C) to maps (B, H, W, C).

    The residual connection starts after the shift, as in the authors' code.

    Attributes:
      mlp_ratio: channels of the MLP's hidden layer as a multiple of C, above 0.
      shift: 'true' (the paper's shift), 'border' (the tutorial's mask of border pixels) or 'none'.
      groups: 'count' (`divisions` groups of channels) or 'width' (groups of `divisions` channels, as in the tutorial).
      divisions: 1 or more. With 'count', C // divisions channels move in each of the four directions; with 'width',
        `divisions` channels.
      pixels: distance of the shift, 0 or more.
      norm: 'sample' (GroupNorm with one group in PyTorch) or 'channels' (LayerNorm).
      mlp_dropout: dropout rate after both dense layers of the MLP, 0 to 1.
      norm_eps: epsilon of the norm, 0 or more.
      activation: 'gelu' (exact), 'gelu_tanh', 'relu' or 'tanh'.
      initialiser: initial values, 'vit', 'big_vision', 'keras_3.15' (or 'keras'), 'keras_3.14' (or 'keras_3d'),
        'shiftvit' or 'cct'; see `jaxvit.layers.initialisers`.
      dtype: dtype of the computation, 'float32', 'bfloat16' or 'float16', as a name or a type. Parameters are float32.

    Raises:
      ValueError: an attribute is not allowed; or at the call, there are too few channels for the groups.

    Example:
      >>> layer = ShiftBlock(divisions=4)
      >>> x, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 4, 4, 8)), train=False)
      >>> x.shape
      (2, 4, 4, 8)
    """

    mlp_ratio: float = 2.0
    shift: str = "true"
    groups: str = "count"
    divisions: int = 12
    pixels: int = 1
    norm: str = "sample"
    mlp_dropout: float = 0.0
    norm_eps: float = 1e-5
    activation: str = "gelu"
    initialiser: str = "shiftvit"
    dtype: DTypeLike = "float32"

    def __post_init__(self) -> None:
        check_layer(
            self,
            shift=one_of(SHIFTS),
            groups=one_of(("count", "width")),
            divisions=whole(1),
            pixels=whole(0),
            norm=one_of(NORMS),
        )
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x_BHWC: jax.Array,
        *,
        train: bool,
        key: jax.Array | None = None,
        path_key: jax.Array | None = None,
        drop_path: float | jax.Array = 0.0,
    ) -> jax.Array:
        """Applies the block.

        Args:
          x_BHWC: maps (B, H, W, C).
          train: whether to apply dropout and drop path.
          key: JAX random key for dropout; None = one of the 'dropout' stream.
          path_key: JAX random key for drop path; None = derived from `key`.
          drop_path: probability of dropping the branch for a sample, at least 0 and below 1.
        """
        check_array("ShiftBlock", "x_BHWC", x_BHWC, "B H W C")
        if train and key is None and self.has_rng("dropout"):
            key = self.make_rng("dropout")
        mlp_key = None
        if train and key is not None:
            mlp_key, own_path_key = jax.random.split(key)
            path_key = own_path_key if path_key is None else path_key
        x_BHWC = self._shift(x_BHWC.astype(self.dtype))
        channels = x_BHWC.shape[-1]
        y_BHWC = Norm(over=self.norm, epsilon=self.norm_eps, dtype=self.dtype, name="norm")(x_BHWC)
        y_BHWC = Mlp(
            hidden=int(channels * self.mlp_ratio),
            activation=self.activation,
            dropout=self.mlp_dropout,
            initialiser=self.initialiser,
            dtype=self.dtype,
            name="mlp",
        )(y_BHWC, train=train, key=mlp_key)
        return x_BHWC + (stochastic.drop_path(y_BHWC, drop_path, path_key) if train else y_BHWC)

    def _shift(self, x_BHWC: jax.Array) -> jax.Array:
        if self.shift == "none":
            return x_BHWC
        channels, groups = x_BHWC.shape[-1], self.divisions
        if self.groups == "width":
            if channels % self.divisions or channels < 4 * self.divisions:
                raise ValueError(
                    f"ShiftBlock: groups='width' needs at least {4 * self.divisions} channels and a multiple of "
                    f"divisions={self.divisions}, not {channels}: change dim or set groups='count'"
                )
            groups = channels // self.divisions
        move = shift_channels if self.shift == "true" else mask_borders
        return move(x_BHWC, groups=groups, pixels=self.pixels)


class ShiftStage(nn.Module):
    """A stack of blocks with equal attributes on maps of one size: (B, H, W, C) to (B, H, W, C).

    Attributes:
      block: function that makes a block, such as `partial(ShiftBlock, mlp_ratio=2.0)`.
      drop_path: drop-path rate of each block, at least 0 and below 1. Its length is the number of blocks.
      remat: what each block keeps for the backward pass, which computes the rest again: 'none' (keep everything),
        'full' (its input only), 'dots' (also matrix products) or 'dots_no_batch' (also those of dense layers).
      scan: compile one block and loop over it.

    Raises:
      ValueError: an attribute is not allowed.

    Example:
      >>> layer = ShiftStage(partial(ShiftBlock, divisions=4), drop_path=(0.0, 0.1))
      >>> x, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 4, 4, 8)), train=False)
      >>> x.shape, sorted(variables["params"])
      ((2, 4, 4, 8), ['block_0', 'block_1'])
    """

    block: Callable[..., nn.Module]
    drop_path: tuple[float, ...]
    remat: str = "none"
    scan: bool = False

    def __post_init__(self) -> None:
        check_layer(self, block=CALLABLE, drop_path=each(PATH_RATE), remat=one_of(REMAT))
        super().__post_init__()

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, *, train: bool, path_key: jax.Array | None = None) -> jax.Array:
        """Applies the blocks.

        Args:
          x_BHWC: maps (B, H, W, C).
          train: whether to apply dropout and drop path.
          path_key: JAX random key that all blocks use for drop path, so a sample that one block drops is also dropped
          by
            every block of a higher rate; None = a key for each block.
        """
        depth = len(self.drop_path)
        return run_blocks(
            self,
            self.block,
            [f"block_{i}" for i in range(depth)],
            x_BHWC,
            train=train,
            keys=block_keys(self, depth, train),
            path_keys=jnp.stack([path_key] * depth) if train and path_key is not None else None,
            rates=self.drop_path,
            remat=self.remat,
            scan=self.scan,
        )


class Downsample(nn.Module):
    """Norm, then a 2x2 convolution with stride 2 and no bias: maps (B, H, W, C) to maps (B, H // 2, W // 2, 2 C).

    Attributes:
      padding: 'VALID' drops the last row or column of an odd side, 'SAME' pads it.
      norm: 'sample' (GroupNorm with one group in PyTorch) or 'channels' (LayerNorm).
      norm_eps: epsilon of the norm, 0 or more.
      initialiser: initial values, 'vit', 'big_vision', 'keras_3.15' (or 'keras'), 'keras_3.14' (or 'keras_3d'),
        'shiftvit' or 'cct'; see `jaxvit.layers.initialisers`.
      dtype: dtype of the computation, 'float32', 'bfloat16' or 'float16', as a name or a type. Parameters are float32.

    Raises:
      ValueError: an attribute is not allowed; or at the call, a side of the map is below 2.

    Example:
      >>> layer = Downsample()
      >>> x, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 4, 4, 8)))
      >>> x.shape
      (2, 2, 2, 16)
    """

    padding: str = "VALID"
    norm: str = "sample"
    norm_eps: float = 1e-5
    initialiser: str = "shiftvit"
    dtype: DTypeLike = "float32"

    def __post_init__(self) -> None:
        check_layer(self, padding=one_of(("VALID", "SAME")), norm=one_of(NORMS))
        super().__post_init__()

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        """Halves the sides of maps (B, H, W, C)."""
        check_array("Downsample", "x_BHWC", x_BHWC, "B H W C")
        if self.padding == "VALID" and min(x_BHWC.shape[1:3]) < 2:
            raise ValueError(
                f"Downsample: a map of {x_BHWC.shape[1]}x{x_BHWC.shape[2]} cannot be halved: use a "
                "larger image, fewer stages, or merge_padding='SAME'"
            )
        x_BHWC = Norm(over=self.norm, epsilon=self.norm_eps, dtype=self.dtype, name="norm")(x_BHWC)
        return nn.Conv(
            2 * x_BHWC.shape[-1],
            (2, 2),
            strides=(2, 2),
            padding=self.padding,
            use_bias=False,
            kernel_init=scheme(self.initialiser).conv,
            dtype=self.dtype,
            name="merge",
        )(x_BHWC)
