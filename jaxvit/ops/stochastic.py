"""Noise of training: dropout and stochastic depth, as functions of an explicit key.

Dropout: Srivastava et al. 2014. Stochastic depth: Huang et al. 2016 (arXiv:1603.09382), dropped per sample as in timm
and Keras, and rescaled by what was kept.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxvit.ops.implementations import implementation


def hash_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform 32-bit integers, each a hash of the key and of the element's place in row order.

    Nothing is read from memory and nothing depends on a neighbour, so it fuses with what uses the bits. Two rounds of
    multiply and xor-shift with constants by C. Wellons (hash-prospector), a word of the key before each. Good enough
    for noise in training; not for cryptography. Of more than 2**32 elements, those that far apart are the same.

    Args:
      key: a JAX random key.
      shape: of the result.
    """
    words = jax.random.key_data(key)
    if words.ndim != 1:
        raise ValueError(f"noise takes one key, not an array of keys of shape {words.shape[:-1]}")
    first = _mix(words[0] + _mix(words[-1]))  # so that keys that differ in a bit differ in all
    second = _mix(words[-1] ^ first)
    place = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :]) % 2**32
        place = place + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride)
    bits = (place * np.uint32(0x9E3779B1)) ^ first
    bits = (bits ^ (bits >> np.uint32(16))) * np.uint32(0x7FEB352D)
    bits = bits + second
    bits = (bits ^ (bits >> np.uint32(15))) * np.uint32(0x846CA68B)
    return bits ^ (bits >> np.uint32(16))


def _mix(word: jax.Array) -> jax.Array:
    word = (word ^ (word >> np.uint32(16))) * np.uint32(0x7FEB352D)
    word = (word ^ (word >> np.uint32(15))) * np.uint32(0x846CA68B)
    return word ^ (word >> np.uint32(16))


def _random_uint16(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform 16-bit integers; two from each 32-bit draw where the last axis is even, because drawing is what costs."""
    if shape and shape[-1] % 2 == 0:
        pairs = jax.random.bits(key, (*shape[:-1], shape[-1] // 2), jnp.uint32)
        return jax.lax.bitcast_convert_type(pairs, jnp.uint16).reshape(shape)
    return jax.random.bits(key, shape, jnp.uint16)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes elements with probability `rate` and divides the others by the share kept.

    The rate is rounded to a multiple of 2**-16, and the division uses the rounded rate, so the mean is exact up to
    the rounding of x's dtype. `jaxvit.ops.implementations` chooses the generator.

    Args:
      x: any shape.
      rate: a number in [0, 1]; 0 returns x untouched and needs no key.
      key: a JAX random key.

    Raises:
      ValueError: the rate is outside [0, 1], or is positive and there is no key.
    """
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"a dropout rate lies between 0 and 1, not {rate}")
    threshold = round(rate * 65536)
    if threshold == 0:
        return x
    if threshold == 65536:
        return jnp.zeros_like(x)
    if key is None:
        raise ValueError("dropout in training needs a random key: pass rngs={'dropout': key}")
    if implementation("noise") == "hash":
        kept = hash_bits(key, x.shape) >= np.uint32(threshold << 16)
    else:
        kept = _random_uint16(key, x.shape) >= np.uint16(threshold)
    wide = x.astype(jnp.float32) if x.dtype.itemsize < 4 else x  # in bfloat16 the factor itself would be off by 0.2 %
    return jnp.where(kept, wide / np.asarray(1.0 - threshold / 65536, wide.dtype), 0).astype(x.dtype)


def drop_path(x: jax.Array, rate: float | jax.Array, key: jax.Array | None) -> jax.Array:
    """Drops the whole of x for some samples of the batch, with probability `rate`, and divides the others by 1 - rate.

    With one key for several calls the drops are nested: a sample dropped at a rate is dropped at every higher one.

    Args:
      x: (B, ...), the value of a residual branch.
      rate: a number in [0, 1), or a scalar array (then a key is needed even for a rate of 0).
      key: a JAX random key.
    """
    if isinstance(rate, (int, float)):
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"a drop-path rate lies in [0, 1), not {rate}")
        if rate == 0:
            return x
    if key is None:
        raise ValueError("drop path in training needs a random key: pass rngs={'dropout': key}")
    keep = 1.0 - jnp.asarray(rate, jnp.float32)
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    factor = jnp.floor(keep + jax.random.uniform(key, shape, jnp.float32)) / keep
    return x * factor.astype(x.dtype)


def drop_path_rates(rate: float, depth: int) -> tuple[float, ...]:
    """Rates that rise linearly from 0 at the first block to `rate` at the last."""
    return tuple(float(r) for r in np.linspace(0.0, rate, depth))
