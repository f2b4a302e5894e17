"""Out of memory in one line; determinism; the cache of compiled programs."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxvit.training.hardware import be_deterministic, explain_out_of_memory, is_out_of_memory


def test_a_real_out_of_memory_error_is_explained_with_its_size():
    with pytest.raises(jax.errors.JaxRuntimeError) as error:
        jnp.zeros((2**44,), jnp.float32).block_until_ready()
    assert is_out_of_memory(error.value)
    line = explain_out_of_memory(error.value, {"config.train.batch_size": 64})
    assert line == ("out of device memory (65,536.00 GiB could not be had); these help: config.train.batch_size=64")


def test_the_wording_of_a_gpu():
    error = RuntimeError("RESOURCE_EXHAUSTED: Out of memory trying to allocate 1.50GiB.")
    assert "(1.50GiB could not be had)" in explain_out_of_memory(error, {})


def test_determinism_is_asked_of_xla_once(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_foo=1")
    be_deterministic()
    be_deterministic()
    assert os.environ["XLA_FLAGS"] == "--xla_foo=1 --xla_gpu_deterministic_ops=true"


@pytest.mark.parametrize(("given", "kept"), [(None, "{home}/jaxvit/xla"), ("/elsewhere", "/elsewhere")])
def test_compiled_programs_are_kept_in_the_users_cache(tmp_path, given, kept):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    if given:
        environment["JAX_COMPILATION_CACHE_DIR"] = given
    code = (
        "from jaxvit.training.hardware import keep_compiled_programs; keep_compiled_programs()\n"
        "import jax; print(jax.config.jax_compilation_cache_dir); jax.jit(lambda x: x + 1)(1.0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == kept.format(home=tmp_path)
    assert given or any((tmp_path / "jaxvit" / "xla").iterdir())
