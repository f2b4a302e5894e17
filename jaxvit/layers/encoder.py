"""The transformer block and the encoder made of it.

Paper: Dosovitskiy et al. 2020 (arXiv:2010.11929). The orders of norm and shortcut, h the value of a branch:

| `norm_order` | attention | MLP | whose |
|---|---|---|---|
| `pre` | x + h(norm(x)) | x + h(norm(x)) | ViT |
| `post` | norm(x + h(x)) | norm(x + h(x)) | Vaswani et al. 2017 |
| `post_shared` | as `post` | as `post`, with the same norm's parameters | the Fashion-MNIST tutorial |
| `cct` | x + h(norm(x)) | x = norm(x); x + h(x) | Compact Transformers: the shortcut carries the normalised value |
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxvit.layers.attention import Attention
from jaxvit.layers.initialisers import scheme
from jaxvit.layers.norm import Norm
from jaxvit.layers.stack import block_keys, run_blocks
from jaxvit.ops.stochastic import drop_path, drop_path_rates, dropout
from jaxvit.ops.ways import way


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x Φ(x) (Hendrycks and Gimpel 2016, arXiv:1606.08415), of any floating dtype.

    By erf in float32, as PyTorch and TensorFlow do, or as `jaxvit.ops.ways` says. `jax.nn.gelu` goes by erfc, which is
    exact further into the left tail, where the value is below 1e-6, and takes longer on CPU.
    """
    if way("gelu") == "erfc":
        return jax.nn.gelu(x, approximate=False)
    return _gelu_by_erf(x)


@jax.custom_jvp
def _gelu_by_erf(x: jax.Array) -> jax.Array:
    wide, share = _cumulative(x)
    return (wide * share).astype(x.dtype)


@_gelu_by_erf.defjvp
def _gelu_by_erf_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """By hand, so that for the gradient one array of x's own dtype is kept, and not three of float32."""
    ((x,), (dx,)) = primals, tangents
    wide, share = _cumulative(x)
    slope = share + wide * jnp.exp(-0.5 * wide * wide) * np.asarray((2 * np.pi) ** -0.5, wide.dtype)
    return (wide * share).astype(x.dtype), dx * slope.astype(x.dtype)


def _cumulative(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x in at least float32, and the normal distribution's cumulative function of it."""
    wide = x.astype(jnp.float32) if x.dtype.itemsize < 4 else x
    erf = _rational_erf if way("gelu") == "rational" else jax.lax.erf
    return wide, 0.5 * (1.0 + erf(wide * np.asarray(0.5**0.5, wide.dtype)))


# Of Eigen's generic_fast_erf (Eigen/src/SpecialFunctions), which XLA uses too: x p(x²) / q(x²), exact to float32 within
# ±4, where it is clamped. The highest powers first.
_ERF_P = (-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05)
_ERF_P += (-7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02)
_ERF_Q = (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03)
_ERF_Q += (-1.42647390514189e-02,)


def _rational_erf(x: jax.Array) -> jax.Array:
    """erf by multiplying and adding, for programs that others read whose erf is another one."""
    x = jnp.clip(x, -4.0, 4.0)
    square = x * x
    p, q = (jnp.polyval(np.asarray(each, np.float32), square, unroll=16) for each in (_ERF_P, _ERF_Q))
    return x * p / q


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
}
NORM_ORDERS = ("pre", "post", "post_shared", "cct")


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The named activation: 'gelu' is the exact one (erf), 'gelu_tanh' its usual approximation."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation={name!r} is not one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class Mlp(nn.Module):
    """Dense, activation, dense, on the last axis.

    Attributes:
      hidden: channels between.
      out: channels of the result; 0 = as many as came in.
      activation: a name of `ACTIVATIONS`.
      activate_twice: activation and dropout after both dense layers, as the Keras tutorials write it. What the
        residual stream then gets is never below -0.17: effect on their models not measured by their authors.
      dropout: rate after the activation and after the second dense layer.
      last_dropout: whether there is dropout after the second dense layer.
      initialiser, dtype: as everywhere in this package.
    """

    hidden: int
    out: int = 0
    activation: str = "gelu"
    activate_twice: bool = False
    dropout: float = 0.0
    last_dropout: bool = True
    initialiser: str = "vit"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, key: jax.Array | None = None) -> jax.Array:
        named, act = scheme(self.initialiser), activation(self.activation)
        noisy = train and self.dropout > 0
        first = last = None
        if noisy:
            first, last = jax.random.split(self.make_rng("dropout") if key is None else key)
        sizes = {"dense_0": self.hidden, "dense_1": self.out or x.shape[-1]}
        dense_0, dense_1 = (
            nn.Dense(size, kernel_init=named.kernel, bias_init=named.mlp_bias, dtype=self.dtype, name=name)
            for name, size in sizes.items()
        )
        x = act(dense_0(x))
        x = dropout(x, self.dropout, first) if noisy else x
        x = dense_1(x)
        x = act(x) if self.activate_twice else x
        return dropout(x, self.dropout, last) if noisy and self.last_dropout else x


class EncoderBlock(nn.Module):
    """Attention and MLP, each on a residual branch.

    Attributes:
      heads, head_dim, qkv_bias, qk_norm, attention_dropout: of the attention.
      mlp_dim: channels inside the MLP; 0 = four times the channels.
      activation, activate_twice, mlp_dropout: of the MLP.
      norm_order: see the table at the top of this file.
      norm_eps: epsilon of the norms.
      projection_dropout: rate after the attention's output.
      layer_scale: initial factor of a learned scale per channel on each branch; 0 = no such scale (Touvron et al.
        2021, arXiv:2103.17239).
      initialiser, dtype: as everywhere in this package.
    """

    heads: int
    head_dim: int = 0
    mlp_dim: int = 0
    norm_order: str = "pre"
    norm_eps: float = 1e-6
    activation: str = "gelu"
    activate_twice: bool = False
    qkv_bias: bool = True
    qk_norm: bool = False
    layer_scale: float = 0.0
    attention_dropout: float = 0.0
    projection_dropout: float = 0.0
    mlp_dropout: float = 0.0
    initialiser: str = "vit"
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x_BNC: jax.Array,
        *,
        train: bool,
        key: jax.Array | None = None,
        path_key: jax.Array | None = None,
        drop_path: float | jax.Array = 0.0,
    ) -> jax.Array:
        """Runs the block.

        Args:
          x_BNC: tokens.
          train: whether to make noise.
          key: for dropout; None = from the module's 'dropout' stream.
          path_key: for drop path; None = derived from `key`.
          drop_path: rate of dropping each branch of a sample.
        """
        if self.norm_order not in NORM_ORDERS:
            raise ValueError(f"norm_order={self.norm_order!r} is not one of {', '.join(NORM_ORDERS)}")
        if train and key is None and self.has_rng("dropout"):
            key = self.make_rng("dropout")
        attention_key = projection_key = mlp_key = None
        if train and key is not None:
            attention_key, projection_key, mlp_key, own_path_key = jax.random.split(key, 4)
            path_key = own_path_key if path_key is None else path_key
        path_keys = (None, None) if path_key is None or not train else jax.random.split(path_key)

        x_BNC = x_BNC.astype(self.dtype)
        channels = x_BNC.shape[-1]
        attention = Attention(
            heads=self.heads,
            head_dim=self.head_dim,
            qkv_bias=self.qkv_bias,
            qk_norm=self.qk_norm,
            dropout=self.attention_dropout,
            norm_eps=self.norm_eps,
            initialiser=self.initialiser,
            dtype=self.dtype,
            name="attention",
        )
        mlp = Mlp(
            hidden=self.mlp_dim or 4 * channels,
            activation=self.activation,
            activate_twice=self.activate_twice,
            dropout=self.mlp_dropout,
            initialiser=self.initialiser,
            dtype=self.dtype,
            name="mlp",
        )

        def norm(name: str) -> Norm:
            return Norm(epsilon=self.norm_eps, dtype=self.dtype, name=name)

        def attend(x_BNC: jax.Array) -> jax.Array:
            x_BNC = attention(x_BNC, train=train, key=attention_key)
            x_BNC = dropout(x_BNC, self.projection_dropout, projection_key) if train else x_BNC
            return self._finish("scale_attention", x_BNC, drop_path, path_keys[0], train)

        def think(x_BNC: jax.Array) -> jax.Array:
            return self._finish("scale_mlp", mlp(x_BNC, train=train, key=mlp_key), drop_path, path_keys[1], train)

        if self.norm_order == "pre":
            x_BNC = x_BNC + attend(norm("norm_attention")(x_BNC))
            return x_BNC + think(norm("norm_mlp")(x_BNC))
        if self.norm_order == "cct":
            x_BNC = norm("norm_mlp")(x_BNC + attend(norm("norm_attention")(x_BNC)))
            return x_BNC + think(x_BNC)
        norm_1 = norm_2 = norm("norm_shared" if self.norm_order == "post_shared" else "norm_attention")
        if self.norm_order == "post":
            norm_2 = norm("norm_mlp")
        x_BNC = norm_1(x_BNC + attend(x_BNC))
        return norm_2(x_BNC + think(x_BNC))

    def _finish(self, name: str, x_BNC: jax.Array, rate: float | jax.Array, key: jax.Array | None, train: bool):
        """LayerScale and drop path, the end of every branch."""
        if self.layer_scale:
            scale = self.param(name, nn.initializers.constant(self.layer_scale), (x_BNC.shape[-1],))
            x_BNC = x_BNC * scale.astype(x_BNC.dtype)[None, None]
        return drop_path(x_BNC, rate, key) if train else x_BNC


class Encoder(nn.Module):
    """A stack of equal blocks, some of which may work on learned tokens.

    Attributes:
      block: makes a block, e.g. `functools.partial(EncoderBlock, heads=4)`.
      depth: number of blocks.
      drop_path: rate at the last block; it rises linearly from 0 at the first.
      learner: makes a layer that learns tokens (`TokenLearner`), None = no such layer.
      learner_at: blocks, counted from 0, that the learner stands before.
      fuser: makes a layer that spreads tokens (`TokenFuser`). With one, each block of `learner_at` alone works on
        learned tokens, and what it makes of them is spread over the map and added to it. Without, the map is left for
        good, which can happen once.
      remat, scan: ways to run, see `jaxvit.layers.stack`.

    Raises:
      ValueError: learner_at names a block that is not there, or several without a fuser.
    """

    block: Callable[..., nn.Module]
    depth: int
    drop_path: float = 0.0
    learner: Callable[..., nn.Module] | None = None
    learner_at: tuple[int, ...] = ()
    fuser: Callable[..., nn.Module] | None = None
    remat: str = "none"
    scan: bool = False

    @nn.compact
    def __call__(self, x_BNC: jax.Array, *, train: bool, grid: tuple[int, int] | None = None) -> jax.Array:
        """Runs the stack.

        Args:
          x_BNC: tokens, a prefix without a place first.
          train: whether to make noise.
          grid: (rows, columns) of the others; None = there is no prefix.
        """
        places = () if self.learner is None else tuple(self.learner_at)
        check_learner_at(places, self.depth, fuse=self.fuser is not None)
        prefix = 0 if grid is None else x_BNC.shape[1] - grid[0] * grid[1]
        keys = block_keys(self, self.depth, train)
        rates = drop_path_rates(self.drop_path, self.depth)

        def run(x_BNC: jax.Array, start: int, stop: int) -> jax.Array:
            return run_blocks(
                self,
                self.block,
                [f"block_{i}" for i in range(start, stop)],
                x_BNC,
                train=train,
                keys=None if keys is None else keys[start:stop],
                path_keys=None,
                rates=rates[start:stop],
                remat=self.remat,
                scan=self.scan,
            )

        done = 0
        for i in places:
            x_BNC = run(x_BNC, done, i)
            original_BNC, done = x_BNC[:, prefix:], i
            x_BNC = self.learner(name=f"token_learner_{i}")(x_BNC, train=train, grid=grid, prefix=prefix)
            if self.fuser is not None:
                x_BNC, done = run(x_BNC, i, i + 1), i + 1
                spread_BNC = self.fuser(name=f"token_fuser_{i}")(x_BNC[:, prefix:], original_BNC, train=train)
                x_BNC = jnp.concatenate([x_BNC[:, :prefix], original_BNC + spread_BNC], axis=1)
        return run(x_BNC, done, self.depth)


def check_learner_at(learner_at: tuple[int, ...], depth: int, *, fuse: bool) -> None:
    """Refuses places for token learners that a stack of `depth` blocks does not have."""
    if list(learner_at) != sorted(set(learner_at)) or any(not 0 <= i < depth for i in learner_at):
        raise ValueError(f"learner_at={learner_at} is not a rising list of blocks from 0 to {depth - 1}")
    if len(learner_at) > 1 and not fuse:
        raise ValueError(f"learner_at={learner_at}: tokens can be learned several times only with a fuser (fuse=True)")
