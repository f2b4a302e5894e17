"""Initialisers by name. Each name stands for the initialisers of one code base.

| name | dense, attention | patches, convolutions | positions | classifier |
|---|---|---|---|---|
| `vit` | Xavier uniform, MLP bias normal 1e-6 | LeCun normal | normal .02 | zeros |
| `big_vision` | Xavier uniform, MLP bias normal 1e-6 | LeCun normal | normal 1 / √channels | zeros |
| `keras_3.15`, `keras` | Glorot uniform | Glorot uniform | uniform ±.05 | Glorot uniform |
| `keras_3.14`, `keras_3d` | Glorot uniform, attention differs | Glorot uniform | uniform ±.05 | Glorot uniform |
| `shiftvit` | normal .02 | normal .02 | normal .02 | normal .02 |
| `cct` | normal .02 | Kaiming normal | normal .2 | normal .02 |

`vit` follows google-research's vision_transformer and Scenic, `big_vision` its successor of that name, `shiftvit`
SPACH, and `cct` Compact Transformers.

Keras has two schemes, because it stores an attention kernel as (C, heads, head_dim). Up to version 3.14 its fan rule
takes the leading axes for the window of a convolution. With C = 128 and 3 heads of 128 channels, the uniform limit is
then .0189 instead of the .1083 of a 128x384 matrix, so attention starts 5.7 times smaller. From version 3.15 on,
`EinsumDense` tells the initialiser which axes are inputs, and the kernel is drawn like that matrix. The tutorials were
run with older versions, so their models use `keras_3d`.

Departure: SPACH and CCT use timm's truncated normal, which truncates at ±2. With a standard deviation of .02 or .2 that
is 100 or 10 standard deviations away, so a normal without truncation gives the same distribution.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxvit.ops.arguments import check, one_of

Initializer = Callable[..., jax.Array]


def symmetric_uniform(limit: float) -> Initializer:
    """An initialiser: uniform on [-limit, limit)."""

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return draw


def _zero_bias(fan_in: int) -> Initializer:
    del fan_in
    return nn.initializers.zeros


def _torch_bias(fan_in: int) -> Initializer:
    return symmetric_uniform(fan_in**-0.5)


def _by_channels(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Normal with standard deviation 1 / √(size of the last axis)."""
    return nn.initializers.normal(shape[-1] ** -0.5)(key, shape, dtype)


class Scheme(NamedTuple):
    """The initialisers of one code base.

    Attributes:
      kernel: kernels of dense layers.
      mlp_bias: biases of the MLP.
      conv: kernels of the patch embedding and of convolutions.
      patch_bias: bias of the patch embedding, as a function of its fan-in.
      positions: position table.
      head: kernel of the classifier's last layer.
      tokenizer: kernels of the convolutions of CCT's tokenizer.
      attention_3d: draw attention kernels with the shape (C, heads, head_dim) instead of (C, heads * head_dim).
    """

    kernel: Initializer
    mlp_bias: Initializer
    conv: Initializer
    patch_bias: Callable[[int], Initializer]
    positions: Initializer
    head: Initializer
    tokenizer: Initializer
    attention_3d: bool = False


_zeros, _normal = nn.initializers.zeros, nn.initializers.normal(0.02)
_glorot = nn.initializers.glorot_uniform()
_kaiming = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
_lecun = nn.initializers.lecun_normal()
_keras = Scheme(
    _glorot, _zeros, _glorot, _zero_bias, symmetric_uniform(0.05), _glorot, tokenizer=nn.initializers.he_normal()
)

_keras_3d = _keras._replace(attention_3d=True)
_vit = Scheme(_glorot, nn.initializers.normal(1e-6), _lecun, _zero_bias, _normal, _zeros, tokenizer=_lecun)

SCHEMES: dict[str, Scheme] = {
    "vit": _vit,
    "big_vision": _vit._replace(positions=_by_channels),
    "keras": _keras,
    "keras_3d": _keras_3d,
    "keras_3.15": _keras,
    "keras_3.14": _keras_3d,
    "shiftvit": Scheme(_normal, _zeros, _normal, _zero_bias, _normal, _normal, tokenizer=_normal),
    "cct": Scheme(_normal, _zeros, _kaiming, _torch_bias, nn.initializers.normal(0.2), _normal, tokenizer=_kaiming),
}


def scheme(name: str) -> Scheme:
    """Returns a scheme by name, a key of `SCHEMES`.

    Raises:
      ValueError: the name is unknown.
    """
    check("scheme", "initialiser", name, one_of(SCHEMES))
    return SCHEMES[name]


def attention_kernel(name: str, shape: tuple[int, ...]) -> Initializer:
    """The initialiser of an attention kernel of `shape`. Flax calls it with the shape flattened to a matrix."""
    named = scheme(name)
    if not named.attention_3d:
        return named.kernel

    def draw(key: jax.Array, flat_shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return named.kernel(key, shape, dtype).reshape(flat_shape)

    return draw
