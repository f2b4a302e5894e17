"""Layer normalisation (Ba et al. 2016, arXiv:1607.06450), per token or over a whole sample."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxvit.layers.arguments import check_layer
from jaxvit.ops.arguments import one_of
from jaxvit.ops.implementations import implementation

NORMS = ("channels", "sample")


class Norm(nn.Module):
    """Normalises to zero mean and unit variance, then scales and shifts each channel. Keeps the shape (B, …, C).

    Mean, variance and scaling are float32 for inputs of any dtype. The variance is computed in two passes, because the
    one-pass formula loses a small variance next to a large mean, such as that of raw pixels. For the backward pass of a
    16-bit input, `jaxvit.ops.implementations` chooses whether float32 values are stored or computed again.

    Attributes:
      over: 'channels' normalises each token or pixel by itself (LayerNorm); 'sample' normalises all pixels and channels
        of a sample together (GroupNorm with one group in PyTorch).
      epsilon: added to the variance, 0 or more. Keras's default is 1e-3, PyTorch's 1e-5, Flax's 1e-6.
      dtype: dtype of the result, 'float32', 'bfloat16' or 'float16', as a name or a type.

    Raises:
      ValueError: an attribute is not allowed.

    Example:
      >>> layer = Norm(epsilon=1e-5)
      >>> x, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 16, 8)))
      >>> x.shape, sorted(variables["params"])
      ((2, 16, 8), ['bias', 'scale'])
    """

    over: str = "channels"
    epsilon: float = 1e-6
    dtype: DTypeLike = "float32"

    def __post_init__(self) -> None:
        check_layer(self, over=one_of(NORMS))
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises x (B, …, C)."""
        axes = (-1,) if self.over == "channels" else tuple(range(1, x.ndim))
        shape = (1,) * (x.ndim - 1) + (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))

        def normalise(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
            x = x.astype(jnp.float32)
            x = x - jnp.mean(x, axis=axes, keepdims=True)
            x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=axes, keepdims=True) + self.epsilon)
            return (x * scale.reshape(shape) + bias.reshape(shape)).astype(self.dtype)

        if implementation("norm") == "remat" and x.dtype.itemsize == 2:
            normalise = jax.checkpoint(normalise)
        return normalise(x, scale, bias)
