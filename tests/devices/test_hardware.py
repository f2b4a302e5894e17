"""Out of memory in one line."""

import jax
import jax.numpy as jnp
import pytest

from jaxvit.devices.hardware import device_errors, explain_out_of_memory, is_out_of_memory
from jaxvit.errors import RunFailedError


def test_a_real_out_of_memory_error_is_explained_with_its_size():
    with pytest.raises(jax.errors.JaxRuntimeError) as error:
        jnp.zeros((2**44,), jnp.float32).block_until_ready()
    assert is_out_of_memory(error.value)
    line = explain_out_of_memory(error.value, {"config.train.batch_size": 64})
    assert line == (
        "out of device memory (65,536.00 GiB could not be allocated); change one of: config.train.batch_size=64"
    )


@pytest.mark.parametrize(
    ("wording", "size"),
    [
        ("Out of memory trying to allocate 1.50GiB.", "1.50GiB"),
        ("Failed to allocate request for 1.50GiB (1610612736B) on device ordinal 0", "1.50GiB"),
        ("Ran out of memory in memory space hbm. Used 20.10G of 15.48G hbm. Exceeded by 4.62G.", "20.10G"),
        ("Attempting to reserve 9.30G at the bottom of memory. That was not possible.", "9.30G"),
    ],
)
def test_the_wordings_of_gpus_and_tpus(wording, size):
    error = RuntimeError(f"RESOURCE_EXHAUSTED: {wording}")
    assert is_out_of_memory(error) and f"({size} could not be allocated)" in explain_out_of_memory(error, {})


def test_a_real_exhausted_device_is_one_line_and_its_error_is_the_cause():
    with pytest.raises(RunFailedError) as error, device_errors({"a smaller --batch_size, now": 64}):
        jnp.zeros((2**44,), jnp.float32).block_until_ready()
    assert str(error.value) == (
        "out of device memory (65,536.00 GiB could not be allocated); change one of: a smaller --batch_size, now=64"
    )
    assert isinstance(error.value.__cause__, jax.errors.JaxRuntimeError)


def test_another_error_of_the_device_is_one_line_and_an_error_of_ours_is_left_alone():
    with pytest.raises(RunFailedError, match=r"^the device failed: INTERNAL: broken$"), device_errors({}):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken\nat somewhere")
    with pytest.raises(RuntimeError, match=r"^ours$"), device_errors({}):
        raise RuntimeError("ours")
