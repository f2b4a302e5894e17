"""The two-layer perceptron of a transformer block."""

import jax
from flax import linen as nn

from jaxvit.layers.initialisers import scheme
from jaxvit.ops.activations import activation
from jaxvit.ops.stochastic import dropout


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
