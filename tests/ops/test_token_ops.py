"""Pooling and fusing tokens, against loops; and the memory pooling takes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvit.ops import fuse_tokens, pool_tokens, token_weights

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 5, 3)).astype(np.float32)
LOGITS = RNG.normal(size=(2, 4, 5)).astype(np.float32)
MASK = np.array([[1, 1, 0, 1, 0], [1, 0, 1, 1, 1]], bool)


@pytest.mark.parametrize("weighting", ["softmax", "sigmoid"])
@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("mask", [None, MASK])
def test_pooling(weighting, reduce, mask):
    want = np.zeros((2, 4, 3))
    for b in range(2):
        places = [n for n in range(5) if mask is None or mask[b, n]]
        for s in range(4):
            exps = {n: np.exp(float(LOGITS[b, s, n])) for n in places}
            for n in places:
                weight = exps[n] / sum(exps.values()) if weighting == "softmax" else exps[n] / (1 + exps[n])
                want[b, s] += weight * X[b, n] / (len(places) if reduce == "mean" else 1)
    got = pool_tokens(X, LOGITS, weighting=weighting, reduce=reduce, mask_BN=mask)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_a_sample_without_any_place_gives_zeros_and_no_nan():
    for weighting in ("softmax", "sigmoid"):
        for reduce in ("sum", "mean"):
            pool = partial(pool_tokens, weighting=weighting, reduce=reduce, mask_BN=np.zeros((2, 5), bool))
            out, pull = jax.vjp(pool, X, LOGITS)
            for zeros in (out, *pull(np.ones_like(out))):
                np.testing.assert_array_equal(zeros, np.zeros_like(zeros))


def test_weights_are_float32_and_the_result_keeps_its_dtype():
    logits = jnp.asarray(LOGITS, jnp.bfloat16)
    assert token_weights(logits, weighting="softmax").dtype == jnp.float32
    assert pool_tokens(jnp.asarray(X, jnp.bfloat16), logits, weighting="sigmoid").dtype == jnp.bfloat16


def test_fusing():
    mix = RNG.normal(size=(2, 6, 4)).astype(np.float32)
    tokens = RNG.normal(size=(2, 4, 3)).astype(np.float32)
    want = np.array([[sum(mix[b, n, s] * tokens[b, s] for s in range(4)) for n in range(6)] for b in range(2)])
    np.testing.assert_allclose(fuse_tokens(tokens, mix), want, atol=1e-6)


def test_pooling_makes_no_array_of_all_products():
    batch, places, tokens, channels = 4, 256, 16, 64
    x = jax.ShapeDtypeStruct((batch, places, channels), jnp.float32)
    logits = jax.ShapeDtypeStruct((batch, tokens, places), jnp.float32)

    def loss(x, logits):
        return jnp.square(pool_tokens(x, logits, weighting="sigmoid", reduce="mean")).sum()

    for function in (loss, jax.grad(loss, argnums=(0, 1))):
        memory = jax.jit(function).lower(x, logits).compile().memory_analysis()
        assert memory.temp_size_in_bytes < batch * places * tokens * channels * 4 / 4


@pytest.mark.parametrize("kwargs", [{"weighting": "relu"}, {"weighting": "softmax", "reduce": "max"}])
def test_bad_input_is_refused(kwargs):
    with pytest.raises(ValueError):
        pool_tokens(X, LOGITS, **kwargs)
    with pytest.raises(ValueError, match=r"must be \(B, N, C\)"):
        pool_tokens(X, LOGITS.swapaxes(1, 2), weighting="softmax")
    with pytest.raises(ValueError, match="mask"):
        token_weights(LOGITS, weighting="softmax", mask_BN=MASK[:, :3])
    with pytest.raises(ValueError):
        fuse_tokens(X, LOGITS[:, :, :2])


def test_what_is_masked_has_no_influence_even_when_it_is_not_finite():
    x_BNC = jnp.ones((1, 3, 2)).at[0, 2].set(jnp.nan)
    mask_BN = jnp.array([[True, True, False]])
    got = pool_tokens(x_BNC, jnp.zeros((1, 1, 3)), weighting="softmax", reduce="sum", mask_BN=mask_BN)
    np.testing.assert_allclose(got, np.ones((1, 1, 2)), rtol=1e-6)
