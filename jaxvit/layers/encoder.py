"""The transformer block, and the encoder, which is a stack of blocks (Dosovitskiy et al. 2020, arXiv:2010.11929).

A block has four orders of norm and residual connection. h is a branch, attention or MLP:

| `norm_order` | attention | MLP | source |
|---|---|---|---|
| `pre` | x + h(norm(x)) | x + h(norm(x)) | ViT |
| `post` | norm(x + h(x)) | norm(x + h(x)) | Vaswani et al. 2017 |
| `post_shared` | norm(x + h(x)) | norm(x + h(x)), with the same parameters | the Fashion-MNIST tutorial |
| `cct` | x + h(norm(x)) | x = norm(x); x + h(x) | Compact Transformers |
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxvit.layers.arguments import check_layer
from jaxvit.layers.attention import Attention
from jaxvit.layers.mlp import Mlp
from jaxvit.layers.norm import Norm
from jaxvit.layers.reducing import Reducing, ReducingBlocks
from jaxvit.layers.reduction import TokenReduction
from jaxvit.layers.stack import REMAT, block_keys, run_blocks
from jaxvit.ops.arguments import CALLABLE, PATH_RATE, check, check_array, each, one_of, whole
from jaxvit.ops.reduction import Reduced
from jaxvit.ops.stochastic import drop_path, drop_path_rates, dropout

NORM_ORDERS = ("pre", "post", "post_shared", "cct")


class EncoderBlock(nn.Module):
    """Self-attention and MLP, each on a residual branch: tokens (B, N, C) to tokens (B, N, C).

    Attributes:
      heads: number of attention heads, 1 or more.
      head_dim: channels per head; 0 = C // heads.
      mlp_dim: channels of the MLP's hidden layer; 0 = 4 * C.
      norm_order: 'pre', 'post', 'post_shared' or 'cct'; the docstring of `jaxvit.layers.encoder` compares them.
      norm_eps: epsilon of the norms, 0 or more.
      activation: 'gelu' (exact), 'gelu_tanh', 'relu' or 'tanh'.
      activate_twice: apply the activation after both dense layers of the MLP; see `Mlp`.
      qkv_bias: whether query, key and value have biases.
      qk_norm: normalise queries and keys per head.
      layer_scale: initial value of a learned factor per channel on each branch (Touvron et al. 2021, arXiv:2103.17239);
        0 = no such factor.
      attention_dropout: dropout rate of the attention weights, 0 to 1.
      projection_dropout: dropout rate after the attention's output, 0 to 1.
      mlp_dropout: dropout rate after both dense layers of the MLP, 0 to 1.
      initialiser: initial values, 'vit', 'big_vision', 'keras_3.15' (or 'keras'), 'keras_3.14' (or 'keras_3d'),
        'shiftvit' or 'cct'; see `jaxvit.layers.initialisers`.
      dtype: dtype of the computation, 'float32', 'bfloat16' or 'float16', as a name or a type. Parameters are float32.

    Raises:
      ValueError: an attribute is not allowed; or at the call, `head_dim` is 0 and `heads` does not divide C.

    Example:
      >>> layer = EncoderBlock(heads=2, mlp_dim=16)
      >>> x, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 16, 8)), train=False)
      >>> x.shape, sorted(variables["params"])
      ((2, 16, 8), ['attention', 'mlp', 'norm_attention', 'norm_mlp'])
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
    dtype: DTypeLike = "float32"

    def __post_init__(self) -> None:
        check_layer(self, norm_order=one_of(NORM_ORDERS))
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x_BNC: jax.Array,
        *,
        train: bool,
        key: jax.Array | None = None,
        path_key: jax.Array | None = None,
        drop_path: float | jax.Array = 0.0,
        reducing: Reducing | None = None,
    ) -> jax.Array:
        """Applies the block.

        Args:
          x_BNC: tokens (B, N, C).
          train: whether to apply dropout and drop path.
          key: JAX random key for dropout; None = one of the 'dropout' stream.
          path_key: JAX random key for drop path; None = derived from `key`.
          drop_path: probability of dropping a branch for a sample, at least 0 and below 1.
          reducing: merges or removes tokens between attention and MLP; None = keeps all.
        """
        check_array("EncoderBlock", "x_BNC", x_BNC, "B N C")
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
            x_BNC = attention(x_BNC, train=train, key=attention_key, reducing=reducing)
            x_BNC = dropout(x_BNC, self.projection_dropout, projection_key) if train else x_BNC
            return self._finish("scale_attention", x_BNC, drop_path, path_keys[0], train)

        def mlp_branch(x_BNC: jax.Array) -> jax.Array:
            return self._finish("scale_mlp", mlp(x_BNC, train=train, key=mlp_key), drop_path, path_keys[1], train)

        def fewer(x_BNC: jax.Array) -> jax.Array:
            return x_BNC if reducing is None else reducing.reduce(x_BNC)

        if self.norm_order == "pre":
            x_BNC = fewer(x_BNC + attention_branch(norm("norm_attention")(x_BNC)))
            return x_BNC + mlp_branch(norm("norm_mlp")(x_BNC))
        if self.norm_order == "cct":
            x_BNC = norm("norm_mlp")(fewer(x_BNC + attention_branch(norm("norm_attention")(x_BNC))))
            return x_BNC + mlp_branch(x_BNC)
        norm_1 = norm_2 = norm("norm_shared" if self.norm_order == "post_shared" else "norm_attention")
        if self.norm_order == "post":
            norm_2 = norm("norm_mlp")
        x_BNC = fewer(norm_1(x_BNC + attention_branch(x_BNC)))
        return norm_2(x_BNC + mlp_branch(x_BNC))

    def _finish(
        self, name: str, x_BNC: jax.Array, rate: float | jax.Array, key: jax.Array | None, train: bool
    ) -> jax.Array:
        """Applies LayerScale and drop path, which end every branch."""
        if self.layer_scale:
            scale = self.param(name, nn.initializers.constant(self.layer_scale), (x_BNC.shape[-1],))
            x_BNC = x_BNC * scale.astype(x_BNC.dtype)[None, None]
        return drop_path(x_BNC, rate, key) if train else x_BNC


class Encoder(nn.Module):
    """A stack of blocks with equal attributes, some of which may work on learned tokens: (B, N, C) to (B, N', C).

    N' = N without a learner and with a fuser; with a learner alone, it is the prefix and the learned tokens.

    Attributes:
      block: function that makes a block, such as `partial(EncoderBlock, heads=4)`.
      depth: number of blocks, 0 or more.
      drop_path: drop-path rate of the last block, at least 0 and below 1; the rates rise linearly from 0.
      learner: function that makes a TokenLearner, such as `partial(TokenLearner, tokens=8)`; None = no learner.
      learner_at: indices of the blocks, from 0, that a learner precedes, in rising order.
      fuser: function that makes a TokenFuser; None = no fuser. With a fuser, only the blocks of `learner_at` work on
        learned tokens, and the fuser adds their output to the map. Without a fuser, all blocks from the learner on work
        on learned tokens, so `learner_at` has one index at most.
      remat: what each block keeps for the backward pass, which computes the rest again: 'none' (keep everything),
        'full' (its input only), 'dots' (also matrix products) or 'dots_no_batch' (also those of dense layers).
      scan: compile one block and loop over it. Blocks that merge or remove tokens, and those after merging, run one by
        one.
      reduce: which blocks merge or remove how many tokens; None = none. Before a TokenLearner, merged tokens are copied
        back to their places, since it pools a map.
      class_token: whether the first token is a class token, for `reduce`.

    Raises:
      ValueError: an attribute is not allowed, `learner_at` has an index outside the stack, or it has several without a
        fuser; or at the call, `reduce` does not fit the number of tokens.

    Example:
      >>> learner = partial(TokenLearner, tokens=3)
      >>> layer = Encoder(partial(EncoderBlock, heads=2), depth=1, learner=learner, learner_at=(0,))
      >>> x, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 16, 8)), train=False)
      >>> x.shape, sorted(variables["params"])
      ((2, 3, 8), ['block_0', 'token_learner_0'])
    """

    block: Callable[..., nn.Module]
    depth: int
    drop_path: float = 0.0
    learner: Callable[..., nn.Module] | None = None
    learner_at: tuple[int, ...] = ()
    fuser: Callable[..., nn.Module] | None = None
    remat: str = "none"
    scan: bool = False
    reduce: TokenReduction | None = None
    class_token: bool = False

    def __post_init__(self) -> None:
        check_layer(self, block=CALLABLE, drop_path=PATH_RATE, learner_at=each(whole(0)), remat=one_of(REMAT))
        for name in ("learner", "fuser"):
            if getattr(self, name) is not None:
                check("Encoder", name, getattr(self, name), CALLABLE)
        if self.learner is not None:
            check_learner_at(self.learner_at, self.depth, fuse=self.fuser is not None)
        super().__post_init__()

    @nn.compact
    def __call__(self, x_BNC: jax.Array, *, train: bool, grid: tuple[int, int] | None = None) -> jax.Array | Reduced:
        """Applies the blocks; with `reduce`, returns a `Reduced`, with places from the input or the last TokenLearner.

        Args:
          x_BNC: tokens (B, prefix + N, C): leading tokens without a place in the grid, then the grid row by row.
          train: whether to apply dropout and drop path.
          grid: (rows, columns) of the grid; None = there are no leading tokens.
        """
        check_array("Encoder", "x_BNC", x_BNC, "B N C")
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

        blocks = self._reducing(run, prefix, train, keys, rates)
        run = blocks or run
        done = 0
        for i in self.learner_at:
            if self.learner is None:
                break
            x_BNC = run(x_BNC, done, i)
            x_BNC = blocks.whole_map(x_BNC) if blocks else x_BNC
            original_BNC, done = x_BNC[:, prefix:], i
            x_BNC = self.learner(name=f"token_learner_{i}")(x_BNC, train=train, grid=grid, prefix=prefix)
            if self.fuser is not None:
                x_BNC, done = run(x_BNC, i, i + 1), i + 1
                spread_BNC = self.fuser(name=f"token_fuser_{i}")(x_BNC[:, prefix:], original_BNC, train=train)
                x_BNC = jnp.concatenate([x_BNC[:, :prefix], original_BNC + spread_BNC], axis=1)
        x_BNC = run(x_BNC, done, self.depth)
        return blocks.result(x_BNC) if blocks else x_BNC

    def _reducing(
        self,
        run: Callable[[jax.Array, int, int], jax.Array],
        prefix: int,
        train: bool,
        keys: jax.Array | None,
        rates: Sequence[float],
    ) -> ReducingBlocks | None:
        if self.reduce is None:
            return None
        return ReducingBlocks(
            self,
            self.reduce,
            run,
            block=self.block,
            depth=self.depth,
            prefix=prefix,
            class_token=self.class_token,
            learner_at=() if self.learner is None else self.learner_at,
            fuse=self.fuser is not None,
            train=train,
            keys=keys,
            rates=rates,
            remat=self.remat,
        )


def check_learner_at(learner_at: tuple[int, ...], depth: int, *, fuse: bool) -> None:
    """Checks the indices of the blocks that a TokenLearner precedes.

    Raises:
      ValueError: an index is outside the stack, the indices do not rise, or there are several without a fuser.
    """
    if list(learner_at) != sorted(set(learner_at)) or any(not 0 <= i < depth for i in learner_at):
        raise ValueError(f"learner_at={learner_at} must be a rising list of blocks from 0 to {depth - 1}")
    if len(learner_at) > 1 and not fuse:
        raise ValueError(f"learner_at={learner_at} has several blocks, which needs a fuser (fuse=True)")
