"""Layers that pool tokens to one vector per image, and the classifier.

Sequence pooling: Hassani et al. 2021 (arXiv:2104.05704). Attention pooling: Lee et al. 2019 (arXiv:1810.00825), as in
the MAP head of Zhai et al. 2021 (arXiv:2106.04560).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxvit.layers.arguments import check_layer
from jaxvit.layers.attention import Attention
from jaxvit.layers.initialisers import scheme
from jaxvit.layers.mlp import Mlp
from jaxvit.layers.norm import Norm
from jaxvit.layers.reducing import Reducing
from jaxvit.ops.activations import activation
from jaxvit.ops.arguments import check_array, each, one_of, whole
from jaxvit.ops.reduction import size_bias
from jaxvit.ops.stochastic import dropout
from jaxvit.ops.tokens import pool_tokens, token_weights

POOLS = ("cls", "cls_register", "mean", "sequence", "attention", "flatten")


class SequencePool(nn.Module):
    """Sequence pooling of CCT, a weighted mean of the tokens: (B, N, C) to (B, C).

    The weights are the softmax of scores by a dense layer. If the collection `intermediates` is mutable, the layer sows
    them as `pool_weights` (B, 1, N).

    Attributes:
      initialiser: initial values, 'vit', 'big_vision', 'keras_3.15' (or 'keras'), 'keras_3.14' (or 'keras_3d'),
        'shiftvit' or 'cct'; see `jaxvit.layers.initialisers`.
      dtype: dtype of the computation, 'float32', 'bfloat16' or 'float16', as a name or a type. Parameters are float32.

    Raises:
      ValueError: an attribute is not allowed.

    Example:
      >>> layer = SequencePool()
      >>> x, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 16, 8)))
      >>> x.shape
      (2, 8)
    """

    initialiser: str = "cct"
    dtype: DTypeLike = "float32"

    def __post_init__(self) -> None:
        check_layer(self)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x_BNC: jax.Array, *, mask_BN: jax.Array | None = None, sizes_BN: jax.Array | None = None
    ) -> jax.Array:
        """Pools tokens.

        Args:
          x_BNC: tokens (B, N, C).
          mask_BN: true for valid tokens (B, N); None = all.
          sizes_BN: how many merged tokens each token stands for (B, N); None = one each.
        """
        check_array("SequencePool", "x_BNC", x_BNC, "B N C")
        kernel_init = scheme(self.initialiser).kernel
        logits_BN1 = nn.Dense(1, kernel_init=kernel_init, dtype=self.dtype, name="score")(x_BNC)
        logits_B1N = logits_BN1.swapaxes(1, 2)
        if sizes_BN is not None:
            logits_B1N = logits_B1N.astype(jnp.float32) + size_bias(sizes_BN)[:, None]
        if self.is_mutable_collection("intermediates"):
            weights = token_weights(logits_B1N, weighting="softmax", mask_BN=mask_BN)
            self.sow("intermediates", "pool_weights", weights)
        return pool_tokens(x_BNC, logits_B1N, weighting="softmax", reduce="sum", mask_BN=mask_BN)[:, 0]


class AttentionPool(nn.Module):
    """Attention pooling (MAP head): one learned query attends to all tokens, then an MLP: (B, N, C) to (B, C).

    Attributes:
      heads: number of attention heads, 1 or more.
      mlp_dim: channels of the MLP's hidden layer; 0 = 4 * C.
      activation: 'gelu' (exact), 'gelu_tanh', 'relu' or 'tanh'.
      norm_eps: epsilon of the norm, 0 or more.
      initialiser: initial values, 'vit', 'big_vision', 'keras_3.15' (or 'keras'), 'keras_3.14' (or 'keras_3d'),
        'shiftvit' or 'cct'; see `jaxvit.layers.initialisers`.
      dtype: dtype of the computation, 'float32', 'bfloat16' or 'float16', as a name or a type. Parameters are float32.

    Raises:
      ValueError: an attribute is not allowed; or at the call, `heads` does not divide C.

    Example:
      >>> layer = AttentionPool(heads=2)
      >>> x, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 16, 8)), train=False)
      >>> x.shape
      (2, 8)
    """

    heads: int
    mlp_dim: int = 0
    activation: str = "gelu"
    norm_eps: float = 1e-6
    initialiser: str = "vit"
    dtype: DTypeLike = "float32"

    def __post_init__(self) -> None:
        check_layer(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, x_BNC: jax.Array, *, train: bool, sizes_BN: jax.Array | None = None) -> jax.Array:
        """Pools tokens (B, N, C); `sizes_BN` says how many merged tokens each stands for, None = one each."""
        check_array("AttentionPool", "x_BNC", x_BNC, "B N C")
        batch, _, channels = x_BNC.shape
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, channels))
        probe = jnp.broadcast_to(probe[None].astype(x_BNC.dtype), (batch, 1, channels))
        attention = Attention(heads=self.heads, initialiser=self.initialiser, dtype=self.dtype, name="attention")
        x_BNC = attention(probe, x_BNC, train=train, reducing=Reducing(sizes_BN=sizes_BN))
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
    """Pools tokens by name: (B, prefix + N, C) to (B, C), to (B, N C) with 'flatten', to (B, 2 C) with 'cls_register'.

    Attributes:
      kind: 'cls' (the first token), 'cls_register' (the first two, side by side), 'mean', 'sequence' (`SequencePool`),
        'attention' (`AttentionPool`) or 'flatten' (all channels of all tokens). All but the first two leave out the
        leading tokens.
      prefix: number of leading tokens, such as a class token and registers, 0 or more.
      heads: number of heads of 'attention', 1 or more.
      mlp_dim: channels of the hidden layer of the MLP of 'attention'; 0 = 4 * C.
      activation: activation of that MLP, 'gelu' (exact), 'gelu_tanh', 'relu' or 'tanh'.
      norm_eps: epsilon of the norm of 'attention', 0 or more.
      initialiser: initial values, 'vit', 'big_vision', 'keras_3.15' (or 'keras'), 'keras_3.14' (or 'keras_3d'),
        'shiftvit' or 'cct'; see `jaxvit.layers.initialisers`.
      dtype: dtype of the computation, 'float32', 'bfloat16' or 'float16', as a name or a type. Parameters are float32.

    Raises:
      ValueError: an attribute is not allowed.

    Example:
      >>> layer = Pool(kind="mean", prefix=1)
      >>> layer.apply({}, jnp.ones((2, 1 + 16, 8)), train=False).shape
      (2, 8)
    """

    kind: str = "mean"
    prefix: int = 0
    heads: int = 1
    mlp_dim: int = 0
    activation: str = "gelu"
    norm_eps: float = 1e-6
    initialiser: str = "vit"
    dtype: DTypeLike = "float32"

    def __post_init__(self) -> None:
        check_layer(self, kind=one_of(POOLS), prefix=whole(0))
        super().__post_init__()

    @nn.compact
    def __call__(self, x_BNC: jax.Array, *, train: bool, sizes_BN: jax.Array | None = None) -> jax.Array:
        """Pools tokens (B, prefix + N, C); `sizes_BN` says how many merged tokens each of them stands for."""
        check_array("Pool", "x_BNC", x_BNC, "B N C")
        sizes_BN = None if sizes_BN is None else sizes_BN[:, self.prefix :]
        if self.kind == "cls":
            return x_BNC[:, 0]
        if self.kind == "cls_register":
            return x_BNC[:, :2].reshape(x_BNC.shape[0], -1)
        if self.kind == "mean" and sizes_BN is not None:
            shares_BN1 = (sizes_BN / jnp.sum(sizes_BN, axis=1, keepdims=True))[..., None]
            return jnp.sum(x_BNC[:, self.prefix :].astype(jnp.float32) * shares_BN1, axis=1).astype(x_BNC.dtype)
        if self.kind == "mean":
            return jnp.mean(x_BNC[:, self.prefix :], axis=1, dtype=jnp.float32).astype(x_BNC.dtype)
        if self.kind == "flatten":
            return x_BNC[:, self.prefix :].reshape(x_BNC.shape[0], -1)
        if self.kind == "sequence":
            pool = SequencePool(initialiser=self.initialiser, dtype=self.dtype, name="sequence_pool")
            return pool(x_BNC[:, self.prefix :], sizes_BN=sizes_BN)
        return AttentionPool(
            heads=self.heads,
            mlp_dim=self.mlp_dim,
            activation=self.activation,
            norm_eps=self.norm_eps,
            initialiser=self.initialiser,
            dtype=self.dtype,
            name="attention_pool",
        )(x_BNC[:, self.prefix :], train=train, sizes_BN=sizes_BN)


class Classifier(nn.Module):
    """Class scores (logits) of a vector per image, through any number of hidden layers: (B, C) to (B, K) float32.

    Attributes:
      num_classes: K, 1 or more.
      hidden: sizes of the hidden dense layers, each 1 or more.
      activation: activation after each hidden layer, 'gelu' (exact), 'gelu_tanh', 'relu' or 'tanh'. One hidden layer
        with 'tanh' is ViT's representation layer.
      dropout: dropout rate after each hidden layer, 0 to 1.
      input_dropout: dropout rate before the first layer, 0 to 1.
      initialiser: initial values, 'vit', 'big_vision', 'keras_3.15' (or 'keras'), 'keras_3.14' (or 'keras_3d'),
        'shiftvit' or 'cct'; see `jaxvit.layers.initialisers`.
      dtype: dtype of the hidden layers, 'float32', 'bfloat16' or 'float16', as a name or a type. The last layer is
        float32.

    Raises:
      ValueError: an attribute is not allowed.

    Example:
      >>> layer = Classifier(num_classes=10, hidden=(16,))
      >>> x, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 8)), train=False)
      >>> x.shape, sorted(variables["params"])
      ((2, 10), ['hidden_0', 'logits'])
    """

    num_classes: int
    hidden: tuple[int, ...] = ()
    activation: str = "gelu"
    dropout: float = 0.0
    input_dropout: float = 0.0
    initialiser: str = "vit"
    dtype: DTypeLike = "float32"

    def __post_init__(self) -> None:
        check_layer(self, num_classes=whole(1), hidden=each(whole(1)))
        super().__post_init__()

    @nn.compact
    def __call__(self, x_BC: jax.Array, *, train: bool) -> jax.Array:
        """Scores vectors (B, C)."""
        named = scheme(self.initialiser)

        def noise(x_BC: jax.Array, rate: float) -> jax.Array:
            return dropout(x_BC, rate, self.make_rng("dropout")) if train and rate > 0 else x_BC

        x_BC = noise(x_BC, self.input_dropout)
        for i, size in enumerate(self.hidden):
            x_BC = nn.Dense(size, kernel_init=named.kernel, dtype=self.dtype, name=f"hidden_{i}")(x_BC)
            x_BC = noise(activation(self.activation)(x_BC), self.dropout)
        return nn.Dense(self.num_classes, kernel_init=named.head, dtype=jnp.float32, name="logits")(x_BC)
