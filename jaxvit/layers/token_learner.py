"""TokenLearner pools a map to a few tokens, and TokenFuser spreads tokens over a map (Ryoo et al. 2021,
arXiv:2106.11297).

The kinds of TokenLearner compute weights of S tokens at N places with C channels as follows:

- `v1`: 3x3 convolutions C -> S -> … -> S with gelu between them and no biases, then sigmoid. This is the paper's.
- `v11_mlp`: dense layers C -> hidden -> S with gelu between them, then softmax. This is version 1.1 in the authors'
  code today.
- `v11_conv`: a grouped 1x1 convolution C -> C and a 1x1 convolution C -> S, without biases, then softmax. The weights
  pool a second grouped 1x1 convolution of the input. This is version 1.1 as the authors first described it and as the
  Keras tutorial has it.

Departures from google-research/scenic, `projects/token_learner`:

- Theirs takes square maps. Ours also takes other maps, leading class tokens, a mask, and video. On square maps the two
  agree.
- `v1` can have 5 convolutions, no norm, and a mean instead of a sum. The Fashion-MNIST tutorial has all three, the
  Keras tutorial has the mean. The mean makes tokens N times smaller.
- `TokenFuser` returns the rank of its input. Theirs tests the rank after flattening, so it returns a map as tokens.
- gelu is exact by default. Theirs is the tanh approximation: `activation='gelu_tanh'`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from jaxvit.layers.arguments import check_layer
from jaxvit.layers.initialisers import scheme
from jaxvit.layers.mlp import Mlp
from jaxvit.layers.norm import Norm
from jaxvit.ops.activations import activation
from jaxvit.ops.arguments import Rule, check, one_of, whole
from jaxvit.ops.stochastic import dropout
from jaxvit.ops.tokens import fuse_tokens, pool_tokens, token_weights

STARTS = ("random", "grid")
OUTSIDE = -8.0  # score of the places outside a token's cell, at first: each has e^-8 of the weight of one inside
LEARNERS = ("v1", "v11_mlp", "v11_conv")


class TokenLearner(nn.Module):
    """Learns to pool a map to a few tokens: (B, H, W, C) to (B, tokens, C).

    If the collection `intermediates` is mutable, the layer sows the pooling weights as `token_maps` (B, tokens, H * W).

    Attributes:
      tokens: number of tokens S, 1 or more.
      kind: 'v1', 'v11_mlp' or 'v11_conv'; the docstring of `jaxvit.layers.token_learner` compares them.
      reduce: 'sum' or 'mean' over the places.
      convs: number of convolutions of 'v1', 1 or more.
      groups: groups of the grouped convolutions of 'v11_conv', 1 or more; must divide C.
      hidden: channels of the hidden layer of the MLP of 'v11_mlp', 1 or more.
      norm: normalise the input of the weights. The pooled values are never normalised.
      dropout: dropout rate in the MLP of 'v11_mlp', 0 to 1.
      norm_eps: epsilon of the norm, 0 or more.
      activation: 'gelu' (exact), 'gelu_tanh', 'relu' or 'tanh'.
      initialiser: initial values, 'vit', 'big_vision', 'keras_3.15' (or 'keras'), 'keras_3.14' (or 'keras_3d'),
        'shiftvit' or 'cct'; see `jaxvit.layers.initialisers`.
      dtype: dtype of the computation, 'float32', 'bfloat16' or 'float16', as a name or a type. Parameters are float32.

      keep: number of learned tokens to make, the first ones; 0 = all. A model that was trained with several numbers
        (`train.elastic`) works with each of them. Parameters do not depend on it.

      start: 'random', or 'grid' ('v11_mlp' only): at first each learned token is the mean of one cell of a grid, so a
        layer that is put into a trained model begins as average pooling. A learned score per token and place, and a
        factor of the layer's own scores that starts at 0 (Bachlechner et al. 2020, ReZero, arXiv:2003.04887), make it
        so. The map then has a fixed size.

    Raises:
      ValueError: an attribute is not allowed; or at the call, the shapes do not fit, or `groups` does not divide C.

    Example:
      >>> layer = TokenLearner(tokens=3)
      >>> x, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 4, 4, 8)), train=False)
      >>> x.shape
      (2, 3, 8)
    """

    tokens: int = 8
    kind: str = "v11_mlp"
    reduce: str = "sum"
    convs: int = 4
    groups: int = 4
    hidden: int = 64
    norm: bool = True
    dropout: float = 0.0
    norm_eps: float = 1e-6
    activation: str = "gelu"
    initialiser: str = "vit"
    dtype: DTypeLike = "float32"
    keep: int = 0
    start: str = "random"

    def __post_init__(self) -> None:
        check_layer(
            self,
            kind=one_of(LEARNERS),
            reduce=one_of(("sum", "mean")),
            convs=whole(1),
            groups=whole(1),
            start=one_of(STARTS),
            keep=Rule(lambda value: whole(0).allows(value) and value <= self.tokens, "a whole number up to tokens"),
        )
        if self.start == "grid" and (self.kind != "v11_mlp" or self.reduce != "sum"):
            raise ValueError(
                "TokenLearner: start='grid' needs weighted means of the tokens: kind='v11_mlp', reduce='sum'"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool,
        grid: tuple[int, int] | None = None,
        prefix: int = 0,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """Learns tokens.

        Args:
          x: maps (B, H, W, C), videos (B, T, H, W, C), or tokens (B, prefix + N, C) in row order.
          train: whether to apply dropout.
          grid: (H, W) of tokens; 'v1' needs it if the tokens do not form a square. Maps and videos have their own.
          prefix: number of leading tokens, such as a class token and registers. They pass through in front of the
            learned tokens.
          mask: true for valid places, (B, H, W), (B, T, H, W) or (B, N); None = all. Other places have no influence.

        Returns:
          (B, S, C) for maps, (B, T, S, C) for videos, (B, prefix + S, C) for tokens.
        """
        if x.ndim not in (3, 4, 5):
            raise ValueError(f"TokenLearner: x must be tokens, maps or videos, of rank 3, 4 or 5, not shape {x.shape}")
        check("TokenLearner", "prefix", prefix, whole(0))
        if prefix and x.ndim != 3:
            raise ValueError(f"TokenLearner: prefix={prefix} needs tokens (B, N, C): maps have no leading tokens")
        x = x.astype(self.dtype)
        kept, x = (x[:, :prefix], x[:, prefix:]) if prefix else (None, x)
        shape, channels = x.shape, x.shape[-1]
        if x.ndim > 3:
            grid = (shape[-3], shape[-2])
            x = x.reshape(-1, grid[0] * grid[1], channels)
        mask_BN = None if mask is None else mask.reshape(x.shape[:2])

        features_BNC = Norm(epsilon=self.norm_eps, dtype=self.dtype, name="norm")(x) if self.norm else x
        logits_BSN = self._logits(features_BNC, grid, mask_BN, train).swapaxes(1, 2)
        if self.start == "grid":
            logits_BSN = self._from_grid(logits_BSN, grid)
        learned = self.keep or self.tokens
        logits_BSN = logits_BSN[:, :learned] if self.keep else logits_BSN
        weighting = "sigmoid" if self.kind == "v1" else "softmax"
        if self.is_mutable_collection("intermediates"):
            self.sow("intermediates", "token_maps", token_weights(logits_BSN, weighting=weighting, mask_BN=mask_BN))
        if self.kind == "v11_conv":
            x = self._pointwise("value", channels, self.groups)(x)
        x_BSC = pool_tokens(x, logits_BSN, weighting=weighting, reduce=self.reduce, mask_BN=mask_BN)
        if kept is not None:
            return jnp.concatenate([kept, x_BSC], axis=1)
        return x_BSC.reshape(*shape[:-3], learned, channels) if len(shape) == 5 else x_BSC

    def _from_grid(self, logits_BSN: jax.Array, grid: tuple[int, int] | None) -> jax.Array:
        """Adds learned scores of the places, which start at the cells of a grid, to logits that start at zero."""
        places = logits_BSN.shape[-1]
        rows, columns = grid or (math.isqrt(places), math.isqrt(places))
        if rows * columns != places:
            raise ValueError(f"TokenLearner: start='grid' needs a map, and {places} tokens are not {rows}x{columns}")
        cells_SN = grid_cells(self.tokens, (rows, columns))
        scores_SN = self.param("places", lambda _: jnp.where(cells_SN, 0.0, OUTSIDE))
        scale_S = self.param("scale", nn.initializers.zeros, (self.tokens,))
        return scores_SN[None] + scale_S[None, :, None] * logits_BSN.astype(jnp.float32)

    def _pointwise(self, name: str, out: int, groups: int = 1) -> nn.Conv:
        init = scheme(self.initialiser).conv
        return nn.Conv(
            out, (1,), feature_group_count=groups, use_bias=False, kernel_init=init, dtype=self.dtype, name=name
        )

    def _logits(
        self, x_BNC: jax.Array, grid: tuple[int, int] | None, mask_BN: jax.Array | None, train: bool
    ) -> jax.Array:
        """Scores of all places for all tokens, (B, N, S)."""
        batch, places, channels = x_BNC.shape
        if self.kind == "v11_mlp":
            return Mlp(
                hidden=self.hidden,
                out=self.tokens,
                activation=self.activation,
                dropout=self.dropout,
                initialiser=self.initialiser,
                dtype=self.dtype,
                name="mlp",
            )(x_BNC, train=train)
        if self.kind == "v11_conv":
            if channels % self.groups:
                raise ValueError(f"TokenLearner: groups={self.groups} does not divide {channels} channels")
            x_BNC = self._pointwise("mix", channels, self.groups)(x_BNC)
            return self._pointwise("maps", self.tokens)(x_BNC)
        if grid is None:
            grid = (math.isqrt(places), math.isqrt(places))
        if grid[0] * grid[1] != places:
            raise ValueError(
                f"TokenLearner: {places} tokens do not fill a grid of {grid[0]}x{grid[1]}: pass grid=(rows, columns)"
            )
        x_BHWS = x_BNC.reshape(batch, *grid, channels)
        for i in range(self.convs):
            if mask_BN is not None:  # a convolution reads neighbours, so masked places are zero, like the padding
                x_BHWS = jnp.where(mask_BN.reshape(batch, *grid, 1), x_BHWS, jnp.zeros_like(x_BHWS))
            x_BHWS = nn.Conv(
                self.tokens,
                (3, 3),
                use_bias=False,
                kernel_init=scheme(self.initialiser).conv,
                dtype=self.dtype,
                name=f"conv_{i}",
            )(x_BHWS)
            if i < self.convs - 1:
                x_BHWS = activation(self.activation)(x_BHWS)
        return x_BHWS.reshape(batch, places, self.tokens)


def grid_cells(tokens: int, grid: tuple[int, int]) -> np.ndarray:
    """Divides a map into as many cells as there are tokens, as square as possible.

    Args:
      tokens: S.
      grid: (rows, columns) of the map.

    Returns:
      bool (S, rows * columns): the places of each cell, in row order.

    Raises:
      ValueError: no division has at least one place in every cell.

    Example:
      >>> grid_cells(2, (2, 4)).astype(int)
      array([[1, 1, 0, 0, 1, 1, 0, 0],
             [0, 0, 1, 1, 0, 0, 1, 1]])
    """
    rows, columns = grid
    fits = [(a, tokens // a) for a in range(1, rows + 1) if tokens % a == 0 and tokens // a <= columns]
    if not fits:
        raise ValueError(f"TokenLearner: {tokens} tokens do not divide a map of {rows}x{columns} into cells")
    down, across = min(fits, key=lambda cell: abs(math.log(rows / cell[0]) - math.log(columns / cell[1])))
    row_cell, column_cell = np.arange(rows) * down // rows, np.arange(columns) * across // columns
    cell_N = (row_cell[:, None] * across + column_cell[None]).reshape(-1)
    return cell_N[None] == np.arange(tokens)[:, None]


class TokenFuser(nn.Module):
    """Spreads learned tokens (B, S, C) over the map that they were pooled from: (B, H, W, C). Add the result to the
    map.

    The kernel that mixes the tokens starts at zero, as in the authors' code, so at first the result is zero. If the
    collection `intermediates` is mutable, the layer sows the weights of the tokens as `mix` (B, H * W, S).

    Attributes:
      hidden: channels of the hidden layer of the MLP that computes the weights, 1 or more.
      norm: normalise the tokens before and after they are mixed. Use it after a TokenLearner with `reduce='sum'`.
      dropout: dropout rate in that MLP and of the result, 0 to 1.
      norm_eps: epsilon of the norms, 0 or more.
      activation: 'gelu' (exact), 'gelu_tanh', 'relu' or 'tanh'.
      initialiser: initial values, 'vit', 'big_vision', 'keras_3.15' (or 'keras'), 'keras_3.14' (or 'keras_3d'),
        'shiftvit' or 'cct'; see `jaxvit.layers.initialisers`.
      dtype: dtype of the computation, 'float32', 'bfloat16' or 'float16', as a name or a type. Parameters are float32.

    Raises:
      ValueError: an attribute is not allowed; or at the call, the shapes do not match.

    Example:
      >>> layer = TokenFuser()
      >>> tokens, original = jnp.ones((2, 3, 8)), jnp.ones((2, 4, 4, 8))
      >>> x, variables = layer.init_with_output(jax.random.key(0), tokens, original, train=False)
      >>> x.shape
      (2, 4, 4, 8)
    """

    hidden: int = 64
    norm: bool = True
    dropout: float = 0.0
    norm_eps: float = 1e-6
    activation: str = "gelu"
    initialiser: str = "vit"
    dtype: DTypeLike = "float32"

    def __post_init__(self) -> None:
        check_layer(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, tokens: jax.Array, original: jax.Array, *, train: bool) -> jax.Array:
        """Spreads tokens.

        Args:
          tokens: (B, S, C), or (B, T, S, C) for videos.
          original: tokens (B, N, C), maps (B, H, W, C) or videos (B, T, H, W, C).
          train: whether to apply dropout.

        Returns:
          An array of the shape of `original`.
        """
        fits = original.ndim in (3, 4, 5) and tokens.ndim == (4 if original.ndim == 5 else 3)
        if not fits or (tokens.shape[0], tokens.shape[-1]) != (original.shape[0], original.shape[-1]):
            raise ValueError(
                f"TokenFuser: tokens of shape {tokens.shape} do not belong to an original of shape {original.shape}"
            )
        shape, channels, learned = original.shape, original.shape[-1], tokens.shape[-2]
        places = math.prod(shape[-3:-1]) if original.ndim > 3 else shape[1]
        x_BSC = tokens.astype(self.dtype).reshape(-1, learned, channels)
        x_BNC = original.astype(self.dtype).reshape(-1, places, channels)

        def norm(name: str, x: jax.Array) -> jax.Array:
            return Norm(epsilon=self.norm_eps, dtype=self.dtype, name=name)(x)

        x_BSC = norm("norm_in", x_BSC) if self.norm else x_BSC
        between = nn.Dense(learned, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="between")
        x_BSC = between(x_BSC.swapaxes(1, 2)).swapaxes(1, 2)
        x_BSC = norm("norm_out", x_BSC) if self.norm else x_BSC
        mix_BNS = Mlp(
            hidden=self.hidden,
            out=learned,
            activation=self.activation,
            dropout=self.dropout,
            initialiser=self.initialiser,
            dtype=self.dtype,
            name="mlp",
        )(norm("norm_original", x_BNC), train=train)
        mix_BNS = jax.nn.sigmoid(mix_BNS.astype(jnp.float32))
        self.sow("intermediates", "mix", mix_BNS)
        x_BNC = fuse_tokens(x_BSC, mix_BNS)
        if train and self.dropout > 0:
            x_BNC = dropout(x_BNC, self.dropout, self.make_rng("dropout"))
        return x_BNC.reshape(shape)
