"""The two-layer perceptron (MLP) of a transformer block."""

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from jaxvit.layers.arguments import check_layer
from jaxvit.layers.initialisers import scheme
from jaxvit.ops.activations import activation
from jaxvit.ops.arguments import whole
from jaxvit.ops.stochastic import dropout


class Mlp(nn.Module):
    """Dense, activation, dense, on the last axis: (…, C) to (…, out).

    Attributes:
      hidden: channels of the hidden layer, 1 or more.
      out: channels of the result; 0 = C.
      activation: 'gelu' (exact), 'gelu_tanh', 'relu' or 'tanh'.
      activate_twice: apply the activation after both dense layers, as the Keras tutorials do. With gelu, no value that
        the block adds to the residual stream is then below -0.17. The tutorials do not measure the effect.
      dropout: dropout rate after the activation and after the second dense layer, 0 to 1.
      last_dropout: whether dropout follows the second dense layer.
      initialiser: initial values, 'vit', 'big_vision', 'keras_3.15' (or 'keras'), 'keras_3.14' (or 'keras_3d'),
        'shiftvit' or 'cct'; see `jaxvit.layers.initialisers`.
      dtype: dtype of the computation, 'float32', 'bfloat16' or 'float16', as a name or a type. Parameters are float32.

    Raises:
      ValueError: an attribute is not allowed.

    Example:
      >>> layer = Mlp(hidden=32, activation="gelu_tanh")
      >>> x, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 16, 8)), train=False)
      >>> x.shape
      (2, 16, 8)
    """

    hidden: int
    out: int = 0
    activation: str = "gelu"
    activate_twice: bool = False
    dropout: float = 0.0
    last_dropout: bool = True
    initialiser: str = "vit"
    dtype: DTypeLike = "float32"

    def __post_init__(self) -> None:
        check_layer(self, out=whole(0))
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, key: jax.Array | None = None) -> jax.Array:
        """Applies the MLP.

        Args:
          x: any shape (…, C).
          train: whether to apply dropout.
          key: JAX random key for dropout; None = one of the 'dropout' stream.
        """
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
