"""Strictness for every test: no silent broadcasting between ranks, no silent promotion between dtypes."""

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def draw():
    """draw(module, *args, **kwargs): variables of a module with random numbers everywhere, zeros and ones included."""

    def fill(module, *args, scale=0.3, seed=0, **kwargs):
        shapes = jax.eval_shape(lambda key, *a: module.init(key, *a, **kwargs), jax.random.key(0), *args)
        rng = np.random.default_rng(seed)
        return jax.tree.map(lambda leaf: rng.normal(0, scale, leaf.shape).astype(leaf.dtype), shapes)

    return fill
