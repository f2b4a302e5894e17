"""TokenLearner and TokenFuser: few tokens out of many, and back (Ryoo et al. 2021, arXiv:2106.11297).

Kinds of TokenLearner, S tokens out of N places with C channels:

- `v1`: 3x3 convolutions C -> S -> … -> S with gelu between, no biases; sigmoid. The paper's.
- `v11_mlp`: dense C -> hidden -> S with gelu between; softmax. Version 1.1 as the authors' code has it today.
- `v11_conv`: grouped 1x1 convolution C -> C, 1x1 convolution C -> S, softmax; what is pooled is a second grouped 1x1
  convolution of the input. Version 1.1 as the authors described it first and the Keras tutorial has it; without biases.

Departures from google-research/scenic, `projects/token_learner`:

- non-square maps, leading class tokens, a token mask, and video: theirs takes square maps. None for square maps.
- `v1` takes 5 convolutions, no norm, and a mean in place of the sum: the Fashion-MNIST tutorial has all three, the
  Keras one the mean. The mean makes tokens N times smaller.
- `TokenFuser` gives back the rank it was given: theirs tests the rank after flattening, so a map comes back flat.
- gelu is exact by default, theirs approximates with tanh: `activation='gelu_tanh'`.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxvit.layers.initialisers import scheme
from jaxvit.layers.mlp import Mlp
from jaxvit.layers.norm import Norm
from jaxvit.ops.activations import activation
from jaxvit.ops.stochastic import dropout
from jaxvit.ops.tokens import fuse_tokens, pool_tokens, token_weights

LEARNERS = ("v1", "v11_mlp", "v11_conv")


class TokenLearner(nn.Module):
    """Learns S tokens from a map: (B, H, W, C) to (B, S, C).

    The weights are sown as `token_maps` (B, S, N), N = H W, when `intermediates` is mutable.

    Attributes:
      tokens: S.
      kind: 'v1', 'v11_mlp' or 'v11_conv', see above.
      reduce: 'sum' or 'mean' over the places.
      convs: convolutions of 'v1', the last one included.
      groups: of the grouped convolutions of 'v11_conv'.
      hidden: channels inside the MLP of 'v11_mlp'.
      norm: normalise what the weights are computed from. What is pooled is never normalised.
      dropout: rate in the MLP of 'v11_mlp'.
      norm_eps, activation, initialiser, dtype: as everywhere in this package.
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
    dtype: str = "float32"

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
          x: a map (B, H, W, C), video (B, T, H, W, C), or tokens (B, prefix + N, C).
          train: whether to make noise.
          grid: (H, W) of tokens; 'v1' needs it where they do not form a square.
          prefix: leading tokens (class token, registers) that are passed on in front of the learned ones.
          mask: true where a place counts: (B, H, W), (B, T, H, W) or (B, N). What stands elsewhere has no influence.

        Returns:
          (B, S, C); for video (B, T, S, C), frame by frame; for tokens (B, prefix + S, C).
        """
        if self.kind not in LEARNERS:
            raise ValueError(f"kind={self.kind!r} of a token learner is not one of {', '.join(LEARNERS)}")
        if x.ndim not in (3, 4, 5):
            raise ValueError(f"a token learner takes tokens, a map or video of rank 3, 4 or 5, not shape {x.shape}")
        if prefix and x.ndim != 3:
            raise ValueError("prefix is for tokens (B, N, C): a map has no leading tokens")
        x = x.astype(self.dtype)
        kept, x = (x[:, :prefix], x[:, prefix:]) if prefix else (None, x)
        shape, channels = x.shape, x.shape[-1]
        if x.ndim > 3:
            grid = shape[-3:-1]
            x = x.reshape(-1, grid[0] * grid[1], channels)
        mask_BN = None if mask is None else mask.reshape(x.shape[:2])

        features_BNC = Norm(epsilon=self.norm_eps, dtype=self.dtype, name="norm")(x) if self.norm else x
        logits_BSN = self._logits(features_BNC, grid, mask_BN, train).swapaxes(1, 2)
        weighting = "sigmoid" if self.kind == "v1" else "softmax"
        if self.is_mutable_collection("intermediates"):
            self.sow("intermediates", "token_maps", token_weights(logits_BSN, weighting=weighting, mask_BN=mask_BN))
        if self.kind == "v11_conv":
            x = self._pointwise("value", channels, self.groups)(x)
        x_BSC = pool_tokens(x, logits_BSN, weighting=weighting, reduce=self.reduce, mask_BN=mask_BN)
        if kept is not None:
            return jnp.concatenate([kept, x_BSC], axis=1)
        return x_BSC.reshape(*shape[:-3], self.tokens, channels) if len(shape) == 5 else x_BSC

    def _pointwise(self, name: str, out: int, groups: int = 1) -> nn.Conv:
        init = scheme(self.initialiser).conv
        return nn.Conv(
            out, (1,), feature_group_count=groups, use_bias=False, kernel_init=init, dtype=self.dtype, name=name
        )

    def _logits(
        self, x_BNC: jax.Array, grid: tuple[int, int] | None, mask_BN: jax.Array | None, train: bool
    ) -> jax.Array:
        """(B, N, S) scores of every place."""
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
                raise ValueError(f"groups={self.groups} of a token learner does not divide {channels} channels")
            x_BNC = self._pointwise("mix", channels, self.groups)(x_BNC)
            return self._pointwise("maps", self.tokens)(x_BNC)
        if grid is None:
            grid = (math.isqrt(places),) * 2
        if grid[0] * grid[1] != places:
            raise ValueError(f"{places} tokens do not fill a grid of {grid[0]}x{grid[1]}: pass grid=(rows, columns)")
        x_BHWS = x_BNC.reshape(batch, *grid, channels)
        for i in range(self.convs):
            if mask_BN is not None:  # a convolution sees neighbours: what does not count is as blank as the padding
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


class TokenFuser(nn.Module):
    """Spreads learned tokens over the map they came from; the result is to be added to that map.

    The mixing kernel between tokens starts at zero, as the authors': at first the result is zero everywhere.
    The weights are sown as `mix` (B, N, S) when `intermediates` is mutable.

    Attributes:
      hidden: channels inside the MLP that finds the mix.
      norm: normalise the tokens before and after they are mixed; needed after a TokenLearner that sums.
      dropout: rate in that MLP and on the result.
      norm_eps, activation, initialiser, dtype: as everywhere in this package.
    """

    hidden: int = 64
    norm: bool = True
    dropout: float = 0.0
    norm_eps: float = 1e-6
    activation: str = "gelu"
    initialiser: str = "vit"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, tokens: jax.Array, original: jax.Array, *, train: bool) -> jax.Array:
        """Spreads tokens.

        Args:
          tokens: (B, S, C), or (B, T, S, C) with video.
          original: tokens (B, N, C), a map (B, H, W, C) or video (B, T, H, W, C).
          train: whether to make noise.

        Returns:
          An array of the shape of `original`.
        """
        if original.ndim not in (3, 4, 5) or tokens.ndim != (4 if original.ndim == 5 else 3):
            raise ValueError(f"tokens {tokens.shape} do not belong to an original of shape {original.shape}")
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
