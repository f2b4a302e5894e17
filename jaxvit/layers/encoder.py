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
from flax import linen as nn

from jaxvit.layers.attention import Attention
from jaxvit.layers.mlp import Mlp
from jaxvit.layers.norm import Norm
from jaxvit.layers.stack import block_keys, run_blocks
from jaxvit.ops.stochastic import drop_path, drop_path_rates, dropout

NORM_ORDERS = ("pre", "post", "post_shared", "cct")


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

        def attention_branch(x_BNC: jax.Array) -> jax.Array:
            x_BNC = attention(x_BNC, train=train, key=attention_key)
            x_BNC = dropout(x_BNC, self.projection_dropout, projection_key) if train else x_BNC
            return self._finish("scale_attention", x_BNC, drop_path, path_keys[0], train)

        def mlp_branch(x_BNC: jax.Array) -> jax.Array:
            return self._finish("scale_mlp", mlp(x_BNC, train=train, key=mlp_key), drop_path, path_keys[1], train)

        if self.norm_order == "pre":
            x_BNC = x_BNC + attention_branch(norm("norm_attention")(x_BNC))
            return x_BNC + mlp_branch(norm("norm_mlp")(x_BNC))
        if self.norm_order == "cct":
            x_BNC = norm("norm_mlp")(x_BNC + attention_branch(norm("norm_attention")(x_BNC)))
            return x_BNC + mlp_branch(x_BNC)
        norm_1 = norm_2 = norm("norm_shared" if self.norm_order == "post_shared" else "norm_attention")
        if self.norm_order == "post":
            norm_2 = norm("norm_mlp")
        x_BNC = norm_1(x_BNC + attention_branch(x_BNC))
        return norm_2(x_BNC + mlp_branch(x_BNC))

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
