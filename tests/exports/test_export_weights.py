"""Stored weights, compared with explicit arithmetic."""

import jax.numpy as jnp
import numpy as np

from jaxvit.weights.stored import Int8, restore, store


def tree(seed=0):
    rng = np.random.default_rng(seed)

    def array(*shape):
        return rng.normal(0, 1, shape).astype(np.float32)

    return {
        "dense": {"kernel": array(6, 5), "bias": array(5)},
        "query": {"kernel": array(6, 2, 3)},
        "out": {"kernel": array(2, 3, 6)},
        "position": array(1, 4, 6),
    }


def test_float32_is_left_alone():
    found, params = restore(store(tree(), "float32")), tree()
    assert found["dense"].keys() == params["dense"].keys()
    assert all(np.array_equal(found["dense"][name], params["dense"][name]) for name in params["dense"])


def test_bfloat16_is_rounded_to_nearest():
    stored = store(tree(), "bfloat16")
    assert stored["position"].dtype == jnp.bfloat16 and stored["dense"]["bias"].dtype == jnp.bfloat16
    found = restore(stored)["dense"]["kernel"]
    bits = tree()["dense"]["kernel"].view(np.uint32)
    nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)  # ties to even
    assert found.dtype == jnp.float32 and np.array_equal(found, nearest)


def test_int8_has_a_scale_for_each_output_channel():
    stored, params = store(tree(), "int8"), tree()
    assert stored["dense"]["bias"].dtype == np.float32 and stored["position"].dtype == np.float32
    for name, shape in (("dense", (1, 5)), ("query", (1, 2, 3)), ("out", (1, 1, 6))):
        found, kernel = stored[name]["kernel"], params[name]["kernel"]
        assert isinstance(found, Int8) and found.values.dtype == np.int8 and found.scale.shape == shape
        back = np.asarray(restore(stored)[name]["kernel"])
        steps = np.broadcast_to(found.scale, kernel.shape)
        assert np.all(np.abs(back - kernel) <= steps / 2 + 1e-7) and np.abs(found.values).max() == 127
    # By hand, one channel.
    column = params["dense"]["kernel"][:, 2]
    scale = np.abs(column).max() / 127
    assert np.allclose(
        restore(stored)["dense"]["kernel"][:, 2], [round(float(v / scale)) * scale for v in column], atol=1e-6
    )


def test_a_channel_of_zeros_stays_zero():
    kernel = np.zeros((3, 2), np.float32)
    kernel[0, 1] = 2.0
    found = restore(store({"dense": {"kernel": kernel}}, "int8"))["dense"]["kernel"]
    assert np.allclose(found, kernel) and np.isfinite(found).all()
