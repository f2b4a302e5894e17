"""The attention layer and the norm call the implementations of the platform that they are traced for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.lib import cuda_versions

from jaxvit.layers import Attention
from jaxvit.layers.norm import Norm
from jaxvit.ops import implementations


def lowered(platform, dtype="bfloat16", dropout=0.0, sown=False):
    """The text of a training step of an attention layer for a platform."""
    layer = Attention(heads=2, dtype=dtype, dropout=dropout)
    x = jnp.ones((2, 16, 128), dtype)
    params = layer.init(jax.random.key(0), x, train=False)["params"]

    def loss(params):
        found = layer.apply(
            {"params": params},
            x,
            train=True,
            rngs={"dropout": jax.random.key(1)},
            mutable=["intermediates"] if sown else False,
        )
        return jnp.sum((found[0] if sown else found).astype(jnp.float32))

    with implementations.traced_for(platform), jax.numpy_dtype_promotion("standard"):
        trace = jax.jit(jax.grad(loss)).trace(params)
        return trace.lower(lowering_platforms=("cuda" if platform == "gpu" else platform,)).as_text()


@pytest.mark.skipif(cuda_versions is None, reason="the CUDA wheels of jax are not installed")
def test_the_layer_calls_cudnn_for_a_gpu():
    assert "cudnn$fmhaSoftmaxBackward" in (text := lowered("gpu")) and "cudnn$fmhaSoftmax" in text
    for others in ({"dtype": "float32"}, {"dropout": 0.1}, {"sown": True}):
        assert "fmha" not in lowered("gpu", **others), others


@pytest.mark.skipif(jax.device_count() > 1, reason="without a mesh, the kernel is for one device")
def test_the_layer_calls_the_kernel_for_a_tpu():
    assert lowered("tpu").count("tpu_custom_call") == 2  # forward and backward
    for others in ({"dtype": "float32"}, {"dropout": 0.1}, {"sown": True}):
        assert "custom_call" not in lowered("tpu", **others), others
    assert "custom_call" not in lowered("cpu")


def test_a_norm_computes_again_what_it_does_not_store():
    layer, x = Norm(dtype="bfloat16"), jax.random.normal(jax.random.key(0), (2, 5, 16)).astype("bfloat16")
    variables = layer.init(jax.random.key(1), x)

    def run(x):
        return jnp.sum(jnp.square(layer.apply(variables, x).astype(jnp.float32)))

    plain = jax.value_and_grad(run)(x)
    with implementations.use({"norm": "remat"}):
        again = jax.value_and_grad(run)(x)
        text = str(jax.make_jaxpr(jax.grad(run))(x))
    assert "remat" in text or "checkpoint" in text
    np.testing.assert_array_equal(np.float32(plain[1]), np.float32(again[1]))
    assert plain[0] == again[0]
