"""Layer normalisation (Ba et al. 2016, arXiv:1607.06450) per token, or over a whole sample."""

import jax
import jax.numpy as jnp
from flax import linen as nn


class Norm(nn.Module):
    """Normalises to zero mean and unit variance, then scales and shifts each channel.

    The statistics and the scaling are float32 whatever goes in. The variance is taken in two passes: the one-pass form
    loses small variances beside large means (raw pixels, say).

    Attributes:
      over: 'channels' = each token or pixel by itself (LayerNorm); 'sample' = all pixels and channels of a sample
        together, which PyTorch calls GroupNorm(1).
      epsilon: added to the variance. Keras's default is 1e-3, PyTorch's 1e-5, Flax's 1e-6.
      dtype: of the result.
    """

    over: str = "channels"
    epsilon: float = 1e-6
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.over not in ("channels", "sample"):
            raise ValueError(f"over={self.over!r} is neither 'channels' nor 'sample'")
        axes = (-1,) if self.over == "channels" else tuple(range(1, x.ndim))
        shape = (1,) * (x.ndim - 1) + (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=axes, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=axes, keepdims=True) + self.epsilon)
        return (x * scale.reshape(shape) + bias.reshape(shape)).astype(self.dtype)
