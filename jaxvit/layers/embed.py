"""From images to tokens, and from tokens to tokens that know their place."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxvit.layers.initialisers import scheme
from jaxvit.layers.norm import Norm
from jaxvit.ops.patches import image_to_patches, patch_grid
from jaxvit.ops.pool import max_pool
from jaxvit.ops.positions import sincos_positions, sine_positions

POSITIONS = ("learned", "sincos", "sine", "none")


class PatchEmbed(nn.Module):
    """Projects square patches that do not overlap: images (B, H, W, C) to a grid of tokens (B, h, w, dim).

    Attributes:
      dim: channels of a token.
      patch: side of a patch in pixels.
      kind: 'conv' = a convolution whose stride is its window (kernel (patch, patch, C, dim)); 'dense' = cut, flatten,
        then a dense layer (kernel (patch² C, dim)). The same function, two ways to keep the kernel.
      norm: normalise the raw values of each patch first ('dense' only).
      crop: allow a patch that does not divide the image; the rest at the bottom and right is dropped.
      takes_patches: also take a grid of patches already cut, recognised by a last axis that is a multiple of patch²
        ('dense' only).
      norm_eps, initialiser, dtype: as everywhere in this package.
    """

    dim: int
    patch: int
    kind: str = "conv"
    norm: bool = False
    crop: bool = False
    takes_patches: bool = False
    norm_eps: float = 1e-6
    initialiser: str = "vit"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        if self.kind not in ("conv", "dense"):
            raise ValueError(f"kind={self.kind!r} of a patch embedding is neither 'conv' nor 'dense'")
        if x_BHWC.ndim != 4:
            raise ValueError(f"a patch embedding takes images (B, H, W, C), not shape {x_BHWC.shape}")
        named, area = scheme(self.initialiser), self.patch**2
        values = x_BHWC.shape[-1]
        cut = self.takes_patches and values >= area and values % area == 0
        if self.kind == "conv":
            patch_grid(*x_BHWC.shape[1:3], self.patch, crop=self.crop)
            return nn.Conv(
                self.dim,
                (self.patch, self.patch),
                strides=(self.patch, self.patch),
                padding="VALID",
                kernel_init=named.conv,
                bias_init=named.patch_bias(area * values),
                dtype=self.dtype,
                name="projection",
            )(x_BHWC)
        x_BHWC = x_BHWC if cut else image_to_patches(x_BHWC, patch=self.patch, crop=self.crop)
        if self.norm:
            x_BHWC = Norm(epsilon=self.norm_eps, dtype=self.dtype, name="norm")(x_BHWC)
        bias_init = named.patch_bias(x_BHWC.shape[-1])
        return nn.Dense(self.dim, kernel_init=named.conv, bias_init=bias_init, dtype=self.dtype, name="projection")(
            x_BHWC
        )


class ConvTokenizer(nn.Module):
    """Convolution, relu and max-pooling, a few times: images (B, H, W, C) to a grid of tokens (B, h, w, dim).

    The tokenizer of CCT (Hassani et al. 2021, arXiv:2104.05704). Convolutions have no biases.

    Attributes:
      dim: channels of a token.
      layers: how many times.
      width: channels of all layers but the last.
      kernel, stride: of the convolutions; stride 0 = the authors' rule, max(1, kernel // 2 - 1).
      pad_after_conv: pad the result of each convolution by kernel // 2 zeros on all sides, as the tutorial does, and
        not its input, as the authors do. Same sizes at stride 1, but border tokens see no padding in the convolution.
      same_pooling: pool as TensorFlow's SAME and not with one pixel of padding on all sides. On an even side the
        windows lie one pixel further right and down, so weights do not transfer.
      initialiser, dtype: as everywhere in this package.
    """

    dim: int
    layers: int = 2
    width: int = 64
    kernel: int = 3
    stride: int = 0
    pad_after_conv: bool = False
    same_pooling: bool = False
    initialiser: str = "cct"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        if x_BHWC.ndim != 4:
            raise ValueError(f"a tokenizer takes images (B, H, W, C), not shape {x_BHWC.shape}")
        around = (self.kernel // 2, self.kernel // 2)
        stride = self.stride or max(1, self.kernel // 2 - 1)
        for i in range(self.layers):
            if self.pad_after_conv and min(x_BHWC.shape[1:3]) < self.kernel:
                raise ValueError(f"kernel={self.kernel} does not fit a map of {x_BHWC.shape[1]}x{x_BHWC.shape[2]}")
            x_BHWC = nn.Conv(
                self.dim if i == self.layers - 1 else self.width,
                (self.kernel, self.kernel),
                strides=(stride, stride),
                padding="VALID" if self.pad_after_conv else (around, around),
                use_bias=False,
                kernel_init=scheme(self.initialiser).tokenizer,
                dtype=self.dtype,
                name=f"conv_{i}",
            )(x_BHWC)
            x_BHWC = jax.nn.relu(x_BHWC)
            if self.pad_after_conv:
                x_BHWC = jnp.pad(x_BHWC, ((0, 0), around, around, (0, 0)))
            padding = "SAME" if self.same_pooling else ((1, 1), (1, 1))
            x_BHWC = max_pool(x_BHWC, window=3, stride=2, padding=padding)
        return x_BHWC


class PositionEmbed(nn.Module):
    """Adds a position table to tokens.

    Attributes:
      kind: 'learned' = a trained table of the size seen at init; 'sincos' = fixed, two-dimensional, the prefix gets
        zeros; 'sine' = fixed, one-dimensional, the prefix counted in; 'none' = nothing.
      frozen: keep the 'learned' table at one fixed random draw: neither trained nor saved, the same in every run.
      initialiser, dtype: as everywhere in this package.
    """

    kind: str = "learned"
    frozen: bool = False
    initialiser: str = "vit"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BNC: jax.Array, *, grid: tuple[int, int]) -> jax.Array:
        """Adds the table.

        Args:
          x_BNC: tokens in row order, after any number of leading tokens that have no place (the prefix).
          grid: (rows, columns).
        """
        if self.kind not in POSITIONS:
            raise ValueError(f"positions={self.kind!r} is not one of {', '.join(POSITIONS)}")
        _, tokens, channels = x_BNC.shape
        prefix = tokens - grid[0] * grid[1]
        if prefix < 0:
            raise ValueError(f"{tokens} tokens do not fill a grid of {grid[0]}x{grid[1]}")
        draw = scheme(self.initialiser).positions
        if self.kind == "none":
            return x_BNC
        if self.kind == "sincos":
            table = jnp.pad(sincos_positions(grid, channels), ((prefix, 0), (0, 0)))
        elif self.kind == "sine":
            table = jnp.asarray(sine_positions(tokens, channels))
        elif self.frozen:
            # A constant, of no device: what draws it cannot be put into an ONNX file.
            with jax.ensure_compile_time_eval():
                fixed = np.asarray(draw(jax.random.key(0), (tokens, channels), jnp.float32))
            table = jnp.asarray(fixed)
        else:
            table = self.param("table", draw, (tokens, channels))
        return x_BNC + table.astype(x_BNC.dtype)[None]


class PrefixTokens(nn.Module):
    """Puts learned tokens before the others: a class token, or registers (Darcet et al. 2023, arXiv:2309.16588).

    Attributes:
      tokens: how many.
      stddev: of the normal initialiser; 0 = zeros, as ViT starts its class token.
    """

    tokens: int = 1
    stddev: float = 0.0

    @nn.compact
    def __call__(self, x_BNC: jax.Array) -> jax.Array:
        start = nn.initializers.normal(self.stddev) if self.stddev else nn.initializers.zeros
        table = self.param("table", start, (self.tokens, x_BNC.shape[-1])).astype(x_BNC.dtype)
        prefix = jnp.broadcast_to(table[None], (x_BNC.shape[0], *table.shape))
        return jnp.concatenate([prefix, x_BNC], axis=1)
