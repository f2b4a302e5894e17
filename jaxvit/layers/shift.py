"""The parts of ShiftViT (Wang et al. 2022, arXiv:2201.10801): a shift in place of attention.

Departures from microsoft/SPACH are attributes, off by default: `shift='border'` and `groups='width'` are the Keras
tutorial's, see `jaxvit.models.shiftvit`. The authors' 1x1 convolutions are dense layers here: the same numbers.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxvit.layers.initialisers import scheme
from jaxvit.layers.mlp import Mlp
from jaxvit.layers.norm import Norm
from jaxvit.layers.stack import block_keys, run_blocks
from jaxvit.ops import stochastic
from jaxvit.ops.shift import mask_borders, shift_channels

SHIFTS = ("true", "border", "none")


class ShiftBlock(nn.Module):
    """Shift, then an MLP on a residual branch; the shortcut starts after the shift, as the authors have it.

    Attributes:
      mlp_ratio: channels inside the MLP, as a multiple of the channels.
      shift: 'true' = the paper's; 'border' = the tutorial's mask of border pixels; 'none'.
      groups: 'count' = `divisions` groups of channels; 'width' = groups of `divisions` channels, as the tutorial's.
      divisions: with 'count', 4 / divisions of the channels move; with 'width', 4 * divisions channels do.
      pixels: how far.
      norm: 'sample' (PyTorch's GroupNorm(1)) or 'channels' (LayerNorm).
      mlp_dropout: rate after the activation and after the second dense layer.
      norm_eps, activation, initialiser, dtype: as everywhere in this package.
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
    dtype: str = "float32"

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
        """Runs the block; arguments as `EncoderBlock`."""
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
        if self.shift not in SHIFTS:
            raise ValueError(f"shift={self.shift!r} is not one of {', '.join(SHIFTS)}")
        if self.groups not in ("count", "width"):
            raise ValueError(f"groups={self.groups!r} is neither 'count' nor 'width'")
        if self.shift == "none":
            return x_BHWC
        channels, groups = x_BHWC.shape[-1], self.divisions
        if self.groups == "width":
            if channels % self.divisions or channels < 4 * self.divisions:
                raise ValueError(
                    f"groups='width' needs at least {4 * self.divisions} channels and a multiple of "
                    f"divisions={self.divisions}, not {channels}: change dim or set groups='count'"
                )
            groups = channels // self.divisions
        move = shift_channels if self.shift == "true" else mask_borders
        return move(x_BHWC, groups=groups, pixels=self.pixels)


class ShiftStage(nn.Module):
    """Equal blocks on one size of map.

    Attributes:
      block: makes a block, e.g. `functools.partial(ShiftBlock, mlp_ratio=2.0)`.
      drop_path: the rate of each block; its length is the number of blocks.
      remat, scan: ways to run, see `jaxvit.layers.stack`.
    """

    block: Callable[..., nn.Module]
    drop_path: tuple[float, ...]
    remat: str = "none"
    scan: bool = False

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, *, train: bool, path_key: jax.Array | None = None) -> jax.Array:
        """Runs the blocks; with a `path_key` all of them draw their drop path from it, so the drops are nested."""
        depth = len(self.drop_path)
        shared = path_key is not None and train
        return run_blocks(
            self,
            self.block,
            [f"block_{i}" for i in range(depth)],
            x_BHWC,
            train=train,
            keys=block_keys(self, depth, train),
            path_keys=jnp.stack([path_key] * depth) if shared else None,
            rates=self.drop_path,
            remat=self.remat,
            scan=self.scan,
        )


class Downsample(nn.Module):
    """Norm, then a 2x2 convolution of stride 2 without bias: half the sides, twice the channels.

    Attributes:
      padding: 'VALID' (an odd last row or column is dropped) or 'SAME' (it is kept).
      norm, norm_eps, initialiser, dtype: as `ShiftBlock`.
    """

    padding: str = "VALID"
    norm: str = "sample"
    norm_eps: float = 1e-5
    initialiser: str = "shiftvit"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        if self.padding not in ("VALID", "SAME"):
            raise ValueError(f"padding={self.padding!r} of a downsampling is neither 'VALID' nor 'SAME'")
        if self.padding == "VALID" and min(x_BHWC.shape[1:3]) < 2:
            raise ValueError(
                f"a map of {x_BHWC.shape[1]}x{x_BHWC.shape[2]} cannot be halved: use a larger image, fewer stages, or "
                "merge_padding='SAME'"
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
