"""Attention as one kernel of a TPU, interpreted here, against the plain implementation; where kernels are chosen."""

import jax
import numpy as np
import pytest

from jaxvit.ops import implementations
from jaxvit.ops.attention import attend, fusing_fits
from jaxvit.ops.short_attention import attend_short, short_fits


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (5, 9)])
def test_the_kernel_is_attention_forward_and_backward(dtype, tolerance, queries, keys):
    of_each = zip(jax.random.split(jax.random.key(0), 4), (queries, keys, keys, queries), strict=True)
    q, k, v, g = (jax.random.normal(key, (2, n, 3, 16)).astype(dtype) for key, n in of_each)
    found, back = jax.vjp(lambda *x: attend_short(*x, interpret=True), q, k, v)
    wanted, plain_back = jax.vjp(lambda *x: attend(*x)[0], q, k, v)
    assert found.dtype == wanted.dtype
    for a, b in zip((found, *back(g)), (wanted, *plain_back(g)), strict=True):
        np.testing.assert_allclose(np.float32(a), np.float32(b), atol=tolerance)


def test_where_kernels_are_chosen():
    assert short_fits(197, 197, "bfloat16", "tpu") and not short_fits(197, 197, "float32", "tpu")
    assert not short_fits(1024, 1024, "bfloat16", "tpu") and not short_fits(197, 197, "bfloat16", "gpu")
    with implementations.traced_for("tpu"):
        assert fusing_fits(197, 197, 64, "bfloat16") == (jax.device_count() == 1)
    with implementations.traced_for("gpu"):
        assert fusing_fits(197, 197, 64, "bfloat16") and fusing_fits(4096, 4096, 128, "float16")
        for head_dim, dtype in ((64, "float32"), (256, "bfloat16"), (60, "bfloat16")):
            assert not fusing_fits(197, 197, head_dim, dtype)
    assert not fusing_fits(197, 197, 64, "bfloat16")  # tests run on a CPU
