"""Layers that turn images into tokens, add positions, and prepend learned tokens."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from jaxvit.layers.arguments import check_layer
from jaxvit.layers.initialisers import scheme
from jaxvit.layers.norm import Norm
from jaxvit.ops.arguments import NOT_NEGATIVE, PAIR, check, check_array, one_of, whole
from jaxvit.ops.patches import image_to_patches, patch_grid
from jaxvit.ops.pool import max_pool
from jaxvit.ops.positions import sincos_positions, sine_positions

POSITIONS = ("learned", "sincos", "sine", "none")


class PatchEmbed(nn.Module):
    """Projects square patches that do not overlap: images (B, H, W, C) to tokens (B, H // patch, W // patch, dim).

    Attributes:
      dim: channels of a token, 1 or more.
      patch: side of a patch in pixels, 1 or more.
      kind: 'conv' keeps the kernel as a convolution, (patch, patch, C, dim); 'dense' keeps it as a matrix,
        (patch² C, dim). Both compute the same function.
      norm: normalise the values of each patch before the projection ('dense' only).
      crop: drop the pixels at the bottom and right that do not fill a patch instead of raising an error.
      takes_patches: accept a grid of flat patches (B, h, w, patch² C) as well as images ('dense' only). The layer takes
        an array for patches if its last axis is a multiple of patch².
      norm_eps: epsilon of the norm, 0 or more.
      initialiser: initial values, 'vit', 'big_vision', 'keras_3.15' (or 'keras'), 'keras_3.14' (or 'keras_3d'),
        'shiftvit' or 'cct'; see `jaxvit.layers.initialisers`.
      dtype: dtype of the computation, 'float32', 'bfloat16' or 'float16', as a name or a type. Parameters are float32.

    Raises:
      ValueError: an attribute is not allowed; or at the call, the input is not a batch of images, or the patch does not
        fit the image.

    Example:
      >>> layer = PatchEmbed(dim=8, patch=4)
      >>> x, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 16, 16, 3)))
      >>> x.shape, variables["params"]["projection"]["kernel"].shape
      ((2, 4, 4, 8), (4, 4, 3, 8))
    """

    dim: int
    patch: int
    kind: str = "conv"
    norm: bool = False
    crop: bool = False
    takes_patches: bool = False
    norm_eps: float = 1e-6
    initialiser: str = "vit"
    dtype: DTypeLike = "float32"

    def __post_init__(self) -> None:
        check_layer(self, patch=whole(1), kind=one_of(("conv", "dense")))
        super().__post_init__()

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        """Embeds images (B, H, W, C)."""
        check_array("PatchEmbed", "x_BHWC", x_BHWC, "B H W C")
        named, area = scheme(self.initialiser), self.patch**2
        values = x_BHWC.shape[-1]
        cut = self.takes_patches and values >= area and values % area == 0
        if self.kind == "conv":
            patch_grid(x_BHWC.shape[1], x_BHWC.shape[2], self.patch, crop=self.crop)
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
    """The tokenizer of CCT (Hassani et al. 2021, arXiv:2104.05704): images (B, H, W, C) to tokens (B, h, w, dim).

    Each layer is a convolution without bias, relu, and max-pooling with window 3 and stride 2.

    Attributes:
      dim: channels of a token, 1 or more.
      layers: number of layers, 1 or more.
      width: channels of all layers but the last, 1 or more.
      kernel: side of the convolutions' windows, 1 or more.
      stride: stride of the convolutions; 0 = max(1, kernel // 2 - 1), the authors' rule.
      pad_after_conv: pad the result of each convolution by kernel // 2 zeros on all sides, as the tutorial does,
        instead of its input, as the authors do. At stride 1 the sizes are the same.
      same_pooling: pool with TensorFlow's SAME padding instead of one pixel on all sides. If the side is even, the
        windows lie one pixel further right and down, so weights do not transfer between the two.
      initialiser: initial values, 'vit', 'big_vision', 'keras_3.15' (or 'keras'), 'keras_3.14' (or 'keras_3d'),
        'shiftvit' or 'cct'; see `jaxvit.layers.initialisers`.
      dtype: dtype of the computation, 'float32', 'bfloat16' or 'float16', as a name or a type. Parameters are float32.

    Raises:
      ValueError: an attribute is not allowed; or at the call, the input is not a batch of images, or the image is too
        small.

    Example:
      >>> layer = ConvTokenizer(dim=8, layers=1)
      >>> x, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 8, 8, 3)))
      >>> x.shape
      (2, 4, 4, 8)
    """

    dim: int
    layers: int = 2
    width: int = 64
    kernel: int = 3
    stride: int = 0
    pad_after_conv: bool = False
    same_pooling: bool = False
    initialiser: str = "cct"
    dtype: DTypeLike = "float32"

    def __post_init__(self) -> None:
        check_layer(self, layers=whole(1), width=whole(1), stride=whole(0))
        super().__post_init__()

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        """Tokenizes images (B, H, W, C)."""
        check_array("ConvTokenizer", "x_BHWC", x_BHWC, "B H W C")
        around = (self.kernel // 2, self.kernel // 2)
        stride = self.stride or max(1, self.kernel // 2 - 1)
        for i in range(self.layers):
            if self.pad_after_conv and min(x_BHWC.shape[1:3]) < self.kernel:
                raise ValueError(
                    f"ConvTokenizer: kernel={self.kernel} does not fit a map of {x_BHWC.shape[1]}x{x_BHWC.shape[2]}"
                )
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
    """Adds a position table to tokens (B, N, C).

    Attributes:
      kind: 'learned' (a parameter `table` (N, C)), 'sincos' (fixed, two-dimensional; leading tokens get zeros), 'sine'
        (fixed, one-dimensional; leading tokens count as positions) or 'none' (adds nothing).
      frozen: with 'learned', use a constant random table, equal in all runs, instead of a parameter.
      initialiser: initial values, 'vit', 'big_vision', 'keras_3.15' (or 'keras'), 'keras_3.14' (or 'keras_3d'),
        'shiftvit' or 'cct'; see `jaxvit.layers.initialisers`.
      dtype: accepted as in other layers, without effect: the result has the dtype of the tokens.

    Raises:
      ValueError: an attribute is not allowed; or at the call, there are fewer tokens than grid cells.

    Example:
      >>> layer = PositionEmbed(kind="learned")
      >>> x, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 1 + 16, 8)), grid=(4, 4))
      >>> x.shape, variables["params"]["table"].shape
      ((2, 17, 8), (17, 8))
    """

    kind: str = "learned"
    frozen: bool = False
    initialiser: str = "vit"
    dtype: DTypeLike = "float32"

    def __post_init__(self) -> None:
        check_layer(self, kind=one_of(POSITIONS))
        super().__post_init__()

    @nn.compact
    def __call__(self, x_BNC: jax.Array, *, grid: tuple[int, int]) -> jax.Array:
        """Adds the table.

        Args:
          x_BNC: tokens (B, prefix + rows * columns, C): leading tokens without a place in the grid, then the grid row
          by
            row.
          grid: (rows, columns).
        """
        check("PositionEmbed", "grid", grid, PAIR)
        check_array("PositionEmbed", "x_BNC", x_BNC, "B N C")
        _, tokens, channels = x_BNC.shape
        prefix = tokens - grid[0] * grid[1]
        if prefix < 0:
            raise ValueError(f"PositionEmbed: {tokens} tokens do not fill a grid of {grid[0]}x{grid[1]}")
        draw = scheme(self.initialiser).positions
        if self.kind == "none":
            return x_BNC
        if self.kind == "sincos":
            table = jnp.pad(sincos_positions(grid, channels), ((prefix, 0), (0, 0)))
        elif self.kind == "sine":
            table = jnp.asarray(sine_positions(tokens, channels))
        elif self.frozen:
            # Drawn at trace time: exported programs contain the table, because ONNX has no random generator of JAX's.
            with jax.ensure_compile_time_eval():
                fixed = np.asarray(draw(jax.random.key(0), (tokens, channels), jnp.float32))
            table = jnp.asarray(fixed)
        else:
            table = self.param("table", draw, (tokens, channels))
        return x_BNC + table.astype(x_BNC.dtype)[None]


class PrefixTokens(nn.Module):
    """Prepends learned tokens: (B, N, C) to (B, tokens + N, C).

    A class token is one; registers are several (Darcet et al. 2023, arXiv:2309.16588).

    Attributes:
      tokens: number of learned tokens, 1 or more.
      stddev: standard deviation of their initial values, 0 or more. ViT's class token starts at 0.

    Raises:
      ValueError: an attribute is not allowed.

    Example:
      >>> layer = PrefixTokens(tokens=2)
      >>> x, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 16, 8)))
      >>> x.shape, variables["params"]["table"].shape
      ((2, 18, 8), (2, 8))
    """

    tokens: int = 1
    stddev: float = 0.0

    def __post_init__(self) -> None:
        check_layer(self, stddev=NOT_NEGATIVE)
        super().__post_init__()

    @nn.compact
    def __call__(self, x_BNC: jax.Array) -> jax.Array:
        """Prepends the tokens to x (B, N, C)."""
        check_array("PrefixTokens", "x_BNC", x_BNC, "B N C")
        start = nn.initializers.normal(self.stddev) if self.stddev else nn.initializers.zeros
        table = self.param("table", start, (self.tokens, x_BNC.shape[-1])).astype(x_BNC.dtype)
        prefix = jnp.broadcast_to(table[None], (x_BNC.shape[0], *table.shape))
        return jnp.concatenate([prefix, x_BNC], axis=1)
