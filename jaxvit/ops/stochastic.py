"""Dropout and stochastic depth, as functions of an explicit random key.

Dropout: Srivastava et al. 2014. Stochastic depth: Huang et al. 2016 (arXiv:1603.09382), per sample and with rescaling,
as in timm and Keras.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxvit.ops.arguments import PATH_RATE, RATE, check, check_floating, whole
from jaxvit.ops.implementations import implementation


def hash_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Random 32-bit integers: each is a hash of the key and of the element's index in row order.

    No element reads memory or depends on its neighbours, so XLA fuses the hash with the code that uses the bits. It is
    two rounds of multiply and xor-shift, with constants by C. Wellons (hash-prospector), and each round mixes in a word
    of the key. It is good enough for training noise, but not for cryptography. Elements 2**32 apart are equal.

    Args:
      key: a JAX random key.
      shape: shape of the result.

    Returns:
      Uniform uint32 of that shape.

    Raises:
      ValueError: `key` is an array of several keys.
    """
    words = jax.random.key_data(key)
    if words.ndim != 1:
        raise ValueError(f"key must be one key, not an array of keys of shape {words.shape[:-1]}")
    first = _mix(words[0] + _mix(words[-1]))  # keys that differ in one bit now differ in about half of the bits
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
    """Uniform 16-bit integers. Drawing is slow, so if the last axis is even, each 32-bit draw gives two of them."""
    if shape and shape[-1] % 2 == 0:
        pairs = jax.random.bits(key, (*shape[:-1], shape[-1] // 2), jnp.uint32)
        return jax.lax.bitcast_convert_type(pairs, jnp.uint16).reshape(shape)
    return jax.random.bits(key, shape, jnp.uint16)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Sets elements to zero with probability `rate` and divides the others by 1 - rate.

    The rate is rounded to a multiple of 2**-16, and the division uses the rounded rate, so the expected value is exact
    up to the rounding of x's dtype. `jaxvit.ops.implementations` chooses how the noise is drawn.

    Args:
      x: any shape, any floating dtype.
      rate: 0 to 1. With 0 the function returns x and needs no key.
      key: JAX random key; None only if the rate is 0 or 1.

    Returns:
      An array of the same shape and dtype.

    Raises:
      ValueError: the rate is out of range, the key is missing, or x is not of a floating dtype.

    Example:
      >>> x = dropout(jnp.ones(100), 0.5, jax.random.key(0))
      >>> sorted(set(x.tolist()))
      [0.0, 2.0]
    """
    check("dropout", "rate", rate, RATE)
    check_floating("dropout", "x", x)
    threshold = round(rate * 65536)
    if threshold == 0:
        return x
    if threshold == 65536:
        return jnp.zeros_like(x)
    if key is None:
        raise ValueError(
            "dropout: a positive rate needs a random key; for a layer or model, pass rngs={'dropout': key}"
        )
    if implementation("noise") == "hash":
        kept = hash_bits(key, x.shape) >= np.uint32(threshold << 16)
    else:
        kept = _random_uint16(key, x.shape) >= np.uint16(threshold)
    wide = x.astype(jnp.float32) if x.dtype.itemsize < 4 else x  # bfloat16 would round the factor by up to 0.2 %
    return jnp.where(kept, wide / np.asarray(1.0 - threshold / 65536, wide.dtype), 0).astype(x.dtype)


def drop_path(x: jax.Array, rate: float | jax.Array, key: jax.Array | None) -> jax.Array:
    """Stochastic depth: sets whole samples to zero with probability `rate` and divides the others by 1 - rate.

    Calls with the same key drop nested sets of samples: a sample that is dropped at one rate is also dropped at every
    higher rate.

    Args:
      x: value of a residual branch (B, ...), of any floating dtype.
      rate: at least 0 and below 1. A Python number of 0 returns x and needs no key; a scalar array always needs one.
      key: JAX random key.

    Returns:
      An array of the same shape and dtype.

    Raises:
      ValueError: the rate is out of range, or the key is missing.

    Example:
      >>> x = drop_path(jnp.ones((100, 2)), 0.5, jax.random.key(0))
      >>> sorted({tuple(row) for row in x.tolist()})
      [(0.0, 0.0), (2.0, 2.0)]
    """
    if not isinstance(rate, jax.Array):
        check("drop_path", "rate", rate, PATH_RATE)
        if rate == 0:
            return x
    if key is None:
        raise ValueError(
            "drop_path: a positive rate needs a random key; for a layer or model, pass rngs={'dropout': key}"
        )
    keep = 1.0 - jnp.asarray(rate, jnp.float32)
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    factor = jnp.floor(keep + jax.random.uniform(key, shape, jnp.float32)) / keep
    return x * factor.astype(x.dtype)


def drop_path_rates(rate: float, depth: int) -> tuple[float, ...]:
    """Drop-path rates that rise linearly from 0 at the first block to `rate` at the last.

    Args:
      rate: rate of the last block, at least 0 and below 1.
      depth: number of blocks, 0 or more.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> drop_path_rates(0.2, 3)
      (0.0, 0.1, 0.2)
    """
    check("drop_path_rates", "rate", rate, PATH_RATE)
    check("drop_path_rates", "depth", depth, whole(0))
    return tuple(float(r) for r in np.linspace(0.0, rate, depth))
