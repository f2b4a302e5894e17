"""All implementations of an operation agree; noise has the right distribution."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvit.ops import dropout, implementations, max_pool
from jaxvit.ops.activations import gelu
from jaxvit.ops.stochastic import hash_bits

KEY = jax.random.key(0)
NUMBERS = np.random.default_rng(0)


def test_which_way_holds():
    assert (
        implementations.implementation("attention") == "absorbed" and implementations.implementation("noise") == "hash"
    )  # tests run on a CPU
    with implementations.use("plain"):
        assert [implementations.implementation(operation) for operation in implementations.IMPLEMENTATIONS] == [
            "plain",
            "window",
            "erfc",
            "threefry",
            "plain",
        ]
        with implementations.use({"noise": "hash"}):
            assert (
                implementations.implementation("noise") == "hash"
                and implementations.implementation("attention") == "plain"
            )
        with implementations.use("fast"):
            assert implementations.implementation("attention") == "absorbed"
        assert implementations.implementation("noise") == "threefry"
    assert implementations.implementation("attention") == "absorbed"


def test_what_was_traced_in_other_ways_is_traced_anew():
    run = jax.jit(lambda x: dropout(x, 0.5, KEY))
    x = jnp.ones((64, 64))
    fast = run(x)
    with implementations.use("plain"):
        plain = run(x)
    assert (fast != plain).any()
    np.testing.assert_array_equal(run(x), fast)


@pytest.mark.parametrize("wrong", ["slow", {"attention": "fast"}, {"convolution": "plain"}])
def test_implementations_that_there_are_not(wrong):
    with pytest.raises(ValueError, match=r"fast|no implementation"), implementations.use(wrong):
        pass


def pool_loops(x, gradient, window, stride, padding):
    """Maxima, and gradients sent to the first maximum of each window in row order."""
    out, back = np.full(gradient.shape, -np.inf, np.float32), np.zeros_like(x)
    for b, i, j, c in np.ndindex(*out.shape):
        best = None
        for di in range(window):
            for dj in range(window):
                row, column = i * stride + di - padding[0][0], j * stride + dj - padding[1][0]
                inside = 0 <= row < x.shape[1] and 0 <= column < x.shape[2]
                if inside and x[b, row, column, c] > out[b, i, j, c]:
                    out[b, i, j, c], best = x[b, row, column, c], (row, column)
        back[b, best[0], best[1], c] += gradient[b, i, j, c]
    return out, back


@pytest.mark.parametrize("way", ["slices", "window"])
@pytest.mark.parametrize(
    ("size", "window", "stride", "padding"),
    [
        ((8, 7), 3, 2, ((1, 1), (1, 1))),
        ((7, 8), 3, 2, ((0, 1), (0, 0))),
        ((6, 6), 2, 2, ((0, 0), (0, 0))),
        ((7, 5), 3, 1, ((1, 1), (2, 0))),
        ((8, 9), 2, 3, ((0, 0), (0, 0))),
        ((9, 4), 4, 2, ((3, 1), (1, 2))),
    ],
)
def test_max_pooling_and_its_gradient_against_loops(way, size, window, stride, padding):
    x = NUMBERS.integers(0, 4, (2, *size, 3)).astype(np.float32)  # with many equal values
    pool = partial(max_pool, window=window, stride=stride, padding=padding)

    @jax.jit
    def both(x, gradient):
        out, back = jax.vjp(pool, x)
        return out, back(gradient)[0]

    gradient = NUMBERS.normal(size=jax.eval_shape(pool, x).shape).astype(np.float32)
    with implementations.use({"max_pool": way}):
        out, out_back = both(x, gradient)
    expected, expected_back = pool_loops(x, gradient, window, stride, padding)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_allclose(out_back, expected_back, atol=1e-6)


@pytest.mark.parametrize("way", implementations.IMPLEMENTATIONS["max_pool"])
@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((0, 2), (2, 1)), ((0, 0), (0, 0))])
def test_max_pooling_without_a_gradient_against_loops(way, padding):
    x = NUMBERS.normal(size=(2, 7, 9, 3)).astype(np.float32)
    with implementations.use({"max_pool": way}):
        out = jax.jit(lambda x: max_pool(x, padding=padding))(x)
    np.testing.assert_array_equal(out, pool_loops(x, np.zeros_like(out), 3, 2, padding)[0])


@pytest.mark.parametrize("place", [(0, 0), (1, 2), (3, 3)])
def test_what_is_not_a_number_is_not_lost_in_pooling(place):
    x = np.ones((1, 4, 4, 1), np.float32)
    x[0, place[0], place[1], 0] = np.nan
    pool = jax.jit(max_pool)
    with implementations.use("plain"):
        plain = pool(x)
    assert np.isnan(plain).any()
    np.testing.assert_array_equal(pool(x), plain)


@pytest.mark.parametrize("way", ["slices", "window"])
@pytest.mark.parametrize("size", [(8, 8), (7, 6)])
def test_same_padding_is_tensorflows(way, size):
    x = jnp.asarray(NUMBERS.normal(size=(2, *size, 3)), jnp.bfloat16)
    with implementations.use({"max_pool": way}):
        out = jax.jit(partial(max_pool, padding="SAME"))(x)
    assert out.dtype == jnp.bfloat16
    low = jnp.asarray(-jnp.inf, jnp.bfloat16)
    np.testing.assert_array_equal(out, jax.lax.reduce_window(x, low, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME"))


def test_what_cannot_be_pooled():
    with pytest.raises(ValueError, match="must have shape"):
        max_pool(jnp.ones((4, 4)))
    for settings in ({"padding": ((0, 0), (0, 0))}, {"padding": ((1, 3), (1, 1))}):
        with pytest.raises(ValueError, match="window=3 does not fit"):
            max_pool(jnp.ones((1, 2, 8, 1)), **settings)


@pytest.mark.parametrize("way", ["erf", "rational"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_gelu_and_its_gradient(dtype, way):
    x = jnp.linspace(-6, 6, 241).astype(dtype)

    @jax.jit
    def both(x):
        value, back = jax.vjp(gelu, x)
        return value, back(jnp.ones_like(x))[0]

    with implementations.use({"gelu": way}):
        value, slope = both(x)
    assert value.dtype == slope.dtype == jnp.dtype(dtype)
    exact = np.asarray(x, np.float64)
    share = np.array([0.5 * (1 + math.erf(v / 2**0.5)) for v in exact])
    tolerance = {"float32": 1e-6, "bfloat16": 2e-2, "float16": 2e-3}[dtype]
    np.testing.assert_allclose(np.asarray(value, np.float64), exact * share, atol=tolerance)
    density = np.exp(-(exact**2) / 2) / (2 * np.pi) ** 0.5
    np.testing.assert_allclose(np.asarray(slope, np.float64), share + exact * density, atol=tolerance)
    with implementations.use("plain"):
        np.testing.assert_allclose(np.asarray(jax.jit(gelu)(x), np.float64), exact * share, atol=tolerance)
    kept = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(gelu, x)[1], x))
    assert sum(array.size for array in kept if array.shape) == x.size  # one array, of x's own dtype
    assert {array.dtype for array in kept if array.shape} == {x.dtype}


bits_of = jax.jit(hash_bits, static_argnums=1)


def uniform(key, shape):
    return np.asarray(bits_of(key, shape)).astype(np.float64) / 2**32


@pytest.mark.parametrize("shape", [(512, 511), (64, 8, 512), (262_144,)])
def test_hashed_noise_is_uniform(shape):
    u = uniform(KEY, shape)
    n = u.size
    assert abs(u.mean() - 1 / 2) < 4 * (1 / 12 / n) ** 0.5
    assert abs(u.var() - 1 / 12) < 4 * (1 / 180 / n) ** 0.5
    counts = np.histogram(u, 256, (0, 1))[0]
    assert abs(((counts - n / 256) ** 2 / (n / 256)).sum() - 255) < 5 * (2 * 255) ** 0.5  # chi-squared
    bits = np.asarray(bits_of(KEY, shape)).reshape(-1)
    ones = [((bits >> i) & 1).mean() for i in range(32)]
    assert max(abs(share - 0.5) for share in ones) < 4.5 * 0.5 / n**0.5
    assert len(np.unique(bits)) > n - 4 - n * n / 2**33 * 3  # few values twice: birthdays


def correlation(a, b):
    return np.corrcoef(a.reshape(-1), b.reshape(-1))[0, 1] * a.size**0.5  # standard normal when independent


def test_hashed_noise_is_independent_of_place_example_step_and_layer():
    u = uniform(KEY, (128, 16, 128))
    for lag in (1, 2, 3, 16, 64):
        assert abs(correlation(u[..., lag:], u[..., :-lag])) < 4, lag  # channels
        assert abs(correlation(u[lag:], u[:-lag])) < 4, lag  # examples
    assert abs(correlation(u[:, 1:], u[:, :-1])) < 4  # tokens
    others = [jax.random.fold_in(KEY, step) for step in range(4)] + list(jax.random.split(jax.random.key(1), 4))
    drawn = [u, *(uniform(key, u.shape) for key in others)]
    for i, a in enumerate(drawn):
        for b in drawn[:i]:
            assert abs(correlation(a, b)) < 4.5


def test_neighbouring_keys_share_nothing():
    """Also keys that differ in one bit of one word, which jax's own never do."""
    base = np.array([123, 456], np.uint32)
    u = uniform(jax.random.wrap_key_data(base), (256, 256))
    for word in (0, 1):
        for bit in (0, 5, 31):
            changed = base.copy()
            changed[word] ^= np.uint32(1 << bit)
            other = uniform(jax.random.wrap_key_data(changed), (256, 256))
            assert abs(correlation(u, other)) < 4.5 and (u == other).mean() < 1e-3, (word, bit)


def test_noise_takes_one_key():
    with pytest.raises(ValueError, match="one key"):
        dropout(jnp.ones((4, 4)), 0.5, jax.random.split(KEY, 2))


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_dropout_of_bfloat16_keeps_the_mean(rate):
    x = (1 + jnp.arange(2**16) / 2**16).astype(jnp.bfloat16)
    kept, x = (np.asarray(a, np.float32) for a in (jax.jit(lambda x: dropout(x, rate, KEY))(x), x))
    assert abs(kept.mean() / x.mean() - 1) < 0.006
    ratio = (kept / x)[kept > 0].mean() * (1 - rate)
    assert abs(ratio - 1) < 2e-4


def test_noise_of_stacked_seeds_is_that_of_each():
    keys = jax.random.split(KEY, 3)
    x = jnp.ones((4, 6))
    drop = jax.jit(lambda key: dropout(x, 0.5, key))
    np.testing.assert_array_equal(jax.jit(jax.vmap(drop))(keys), np.stack([drop(key) for key in keys]))
