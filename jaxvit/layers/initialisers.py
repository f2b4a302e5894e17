"""The initialisers of each code base, by name.

| name | dense, attention | patches, convolutions | positions | classifier |
|---|---|---|---|---|
| `vit` | Xavier uniform, MLP bias normal 1e-6 | LeCun normal | normal .02 | zeros |
| `big_vision` | as `vit` | LeCun normal | normal 1 / √channels | zeros |
| `keras_3.15`, `keras` | Glorot uniform | Glorot uniform | uniform ±.05 | Glorot uniform |
| `keras_3.14`, `keras_3d` | Glorot uniform, but see below | Glorot uniform | uniform ±.05 | Glorot uniform |
| `shiftvit` | normal .02 | normal .02 | normal .02 | normal .02 |
| `cct` | normal .02 | Kaiming normal | normal .2 | normal .02 |

`vit` is google-research's vision_transformer and Scenic; `big_vision` their successor; `shiftvit` SPACH; `cct` Compact
Transformers.

The two of Keras, each under two names: Keras keeps an attention kernel as (C, heads, head_dim). Up to version 3.14 its
fan rule takes the leading axes of such an array for the window of a convolution; with C = 128, 3 heads of 128 that
makes the limit of the uniform draw .0189 where a 128x384 matrix has .1083, so attention starts 5.7 times smaller. From
3.15 on `EinsumDense` tells the initialiser which axes are inputs, and the kernel is drawn as that matrix. The tutorials
ran with older versions: theirs is `keras_3d`.

Deviation: SPACH and CCT call timm's truncated normal, whose bounds are the absolute values ±2. At a deviation of .02
or .2 those are 100 and 10 deviations away, so a plain normal is the same draw.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

Initializer = Callable[..., jax.Array]


def symmetric_uniform(limit: float) -> Initializer:
    """Uniform on [-limit, limit)."""

    def draw(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return draw


def _zero_bias(fan_in: int) -> Initializer:
    del fan_in
    return nn.initializers.zeros


def _torch_bias(fan_in: int) -> Initializer:
    return symmetric_uniform(fan_in**-0.5)


def _by_channels(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """Normal, with a standard deviation of 1 / √(last axis)."""
    return nn.initializers.normal(shape[-1] ** -0.5)(key, shape, dtype)


class Scheme(NamedTuple):
    """One code base's initialisers, by what they fill."""

    kernel: Initializer  # dense kernels
    mlp_bias: Initializer
    conv: Initializer  # patch embedding and convolutions
    patch_bias: Callable[[int], Initializer]  # of the patch embedding, given its fan-in
    positions: Initializer
    head: Initializer  # the classifier's kernel
    tokenizer: Initializer  # convolutions of CCT's tokenizer
    attention_3d: bool = False  # draw attention kernels in the shape they are kept in


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
    """The named scheme.

    Raises:
      ValueError: no such name.
    """
    if name not in SCHEMES:
        raise ValueError(f"initialiser={name!r} is not one of {', '.join(SCHEMES)}")
    return SCHEMES[name]


def attention_kernel(name: str, shape: tuple[int, ...]) -> Initializer:
    """Initialiser for an attention kernel kept in `shape`, which Flax asks for flattened to a matrix."""
    named = scheme(name)
    if not named.attention_3d:
        return named.kernel

    def draw(key, flat_shape, dtype=jnp.float32):
        return named.kernel(key, shape, dtype).reshape(flat_shape)

    return draw
