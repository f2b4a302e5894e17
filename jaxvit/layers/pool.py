"""From many tokens to one vector, and from that vector to class scores.

Sequence pooling: Hassani et al. 2021 (arXiv:2104.05704).
Attention pooling: Lee et al. 2019 (arXiv:1810.00825) as the MAP head of Zhai et al. 2021 (arXiv:2106.04560).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxvit.layers.attention import Attention
from jaxvit.layers.initialisers import scheme
from jaxvit.layers.mlp import Mlp
from jaxvit.layers.norm import Norm
from jaxvit.ops.activations import activation
from jaxvit.ops.stochastic import dropout
from jaxvit.ops.tokens import pool_tokens, token_weights

POOLS = ("cls", "mean", "sequence", "attention", "flatten")


class SequencePool(nn.Module):
    """The weighted mean of all tokens, (B, N, C) to (B, C); a dense layer scores them, a softmax makes weights of that.

    The weights are sown as `pool_weights` (B, 1, N) when `intermediates` is mutable.

    Attributes:
      initialiser, dtype: as everywhere in this package.
    """

    initialiser: str = "cct"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BNC: jax.Array, *, mask_BN: jax.Array | None = None) -> jax.Array:
        """Pools; `mask_BN` is true where a token counts."""
        kernel_init = scheme(self.initialiser).kernel
        logits_BN1 = nn.Dense(1, kernel_init=kernel_init, dtype=self.dtype, name="score")(x_BNC)
        logits_B1N = logits_BN1.swapaxes(1, 2)
        if self.is_mutable_collection("intermediates"):
            weights = token_weights(logits_B1N, weighting="softmax", mask_BN=mask_BN)
            self.sow("intermediates", "pool_weights", weights)
        return pool_tokens(x_BNC, logits_B1N, weighting="softmax", reduce="sum", mask_BN=mask_BN)[:, 0]


class AttentionPool(nn.Module):
    """One learned query attends to all tokens, followed by a residual MLP.

    Attributes:
      heads: of the attention.
      mlp_dim: channels inside the MLP; 0 = four times the channels.
      activation, norm_eps, initialiser, dtype: as everywhere in this package.
    """

    heads: int
    mlp_dim: int = 0
    activation: str = "gelu"
    norm_eps: float = 1e-6
    initialiser: str = "vit"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BNC: jax.Array, *, train: bool) -> jax.Array:
        batch, _, channels = x_BNC.shape
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, channels))
        probe = jnp.broadcast_to(probe[None].astype(x_BNC.dtype), (batch, 1, channels))
        x_BNC = Attention(heads=self.heads, initialiser=self.initialiser, dtype=self.dtype, name="attention")(
            probe, x_BNC, train=train
        )
        y_BNC = Norm(epsilon=self.norm_eps, dtype=self.dtype, name="norm")(x_BNC)
        y_BNC = Mlp(
            hidden=self.mlp_dim or 4 * channels,
            activation=self.activation,
            initialiser=self.initialiser,
            dtype=self.dtype,
            name="mlp",
        )(y_BNC, train=train)
        return (x_BNC + y_BNC)[:, 0]


class Pool(nn.Module):
    """Tokens to one vector per sample: (B, N, C) to (B, C), or (B, N C) for 'flatten'.

    Attributes:
      kind: 'cls' = the first token; 'mean' = the mean of the tokens after the prefix; 'sequence' =
        `SequencePool` of the same; 'attention' = `AttentionPool` over the tokens after the prefix;
        'flatten' = the tokens after the prefix, side by side.
      prefix: leading tokens that have no place in the image.
      heads, mlp_dim, activation, norm_eps, initialiser, dtype: of the attention pooling.
    """

    kind: str = "mean"
    prefix: int = 0
    heads: int = 1
    mlp_dim: int = 0
    activation: str = "gelu"
    norm_eps: float = 1e-6
    initialiser: str = "vit"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BNC: jax.Array, *, train: bool) -> jax.Array:
        if self.kind == "cls":
            return x_BNC[:, 0]
        if self.kind == "mean":
            return jnp.mean(x_BNC[:, self.prefix :], axis=1, dtype=jnp.float32).astype(x_BNC.dtype)
        if self.kind == "flatten":
            return x_BNC[:, self.prefix :].reshape(x_BNC.shape[0], -1)
        if self.kind == "sequence":
            pool = SequencePool(initialiser=self.initialiser, dtype=self.dtype, name="sequence_pool")
            return pool(x_BNC[:, self.prefix :])
        if self.kind == "attention":
            return AttentionPool(
                heads=self.heads,
                mlp_dim=self.mlp_dim,
                activation=self.activation,
                norm_eps=self.norm_eps,
                initialiser=self.initialiser,
                dtype=self.dtype,
                name="attention_pool",
            )(x_BNC[:, self.prefix :], train=train)
        raise ValueError(f"pool={self.kind!r} is not one of {', '.join(POOLS)}")


class Classifier(nn.Module):
    """A vector to float32 class scores (logits), through any number of hidden layers.

    Attributes:
      num_classes: K.
      hidden: sizes of hidden dense layers.
      activation: after each hidden layer; 'tanh' makes one hidden layer ViT's representation layer.
      dropout: rate after each hidden layer.
      input_dropout: rate on the vector that comes in.
      initialiser, dtype: as everywhere in this package; the last layer always computes in float32.
    """

    num_classes: int
    hidden: tuple[int, ...] = ()
    activation: str = "gelu"
    dropout: float = 0.0
    input_dropout: float = 0.0
    initialiser: str = "vit"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BC: jax.Array, *, train: bool) -> jax.Array:
        named = scheme(self.initialiser)

        def noise(x_BC: jax.Array, rate: float) -> jax.Array:
            return dropout(x_BC, rate, self.make_rng("dropout")) if train and rate > 0 else x_BC

        x_BC = noise(x_BC, self.input_dropout)
        for i, size in enumerate(self.hidden):
            x_BC = nn.Dense(size, kernel_init=named.kernel, dtype=self.dtype, name=f"hidden_{i}")(x_BC)
            x_BC = noise(activation(self.activation)(x_BC), self.dropout)
        return nn.Dense(self.num_classes, kernel_init=named.head, dtype=jnp.float32, name="logits")(x_BC)
