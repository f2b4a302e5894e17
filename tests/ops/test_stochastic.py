"""Dropout and drop path: shares, scales, keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvit.ops import drop_path, drop_path_rates, dropout

KEY = jax.random.key(0)


@pytest.mark.parametrize("columns", [256, 255])
def test_dropout_keeps_its_share_and_the_mean(columns):
    out = np.asarray(dropout(jnp.ones((200, columns)), 0.3, KEY))
    kept = out > 0
    assert abs(kept.mean() - 0.7) < 0.01
    np.testing.assert_allclose(out[kept], 1 / 0.7, rtol=1e-4)
    neighbours = (kept[:, 1:] == kept[:, :-1]).mean()  # two draws share one word of random bits
    assert abs(neighbours - (0.7**2 + 0.3**2)) < 0.01


def test_dropout_rates():
    x = jnp.ones((4, 4))
    assert dropout(x, 0.0, None) is x
    assert not dropout(x, 1.0, None).any()
    assert dropout(x.astype(jnp.bfloat16), 0.5, KEY).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="rngs="):
        dropout(x, 0.1, None)
    with pytest.raises(ValueError, match="from 0 to 1"):
        dropout(x, 1.5, KEY)


def test_drop_path_takes_whole_samples_and_is_nested_under_one_key():
    x = jnp.ones((2000, 2, 3))
    low, high = (np.asarray(drop_path(x, rate, KEY)) for rate in (0.2, 0.5))
    for out, rate in ((low, 0.2), (high, 0.5)):
        sums = out.reshape(2000, -1)
        assert set(np.unique(np.ptp(sums, axis=1))) == {0.0}
        assert abs((sums[:, 0] == 0).mean() - rate) < 0.04
        np.testing.assert_allclose(sums[:, 0].max(), 1 / (1 - rate), rtol=1e-6)
    assert not (high[low == 0]).any()
    np.testing.assert_array_equal(drop_path(x, jnp.float32(0.2), KEY), low)


def test_drop_path_rates():
    assert drop_path_rates(0.2, 3) == (0.0, 0.1, 0.2)
    assert drop_path(1.0, 0.0, None) == 1.0
    for rate, key in ((1.0, KEY), (-0.1, KEY), (0.1, None)):
        with pytest.raises(ValueError):
            drop_path(jnp.ones((2, 2)), rate, key)
