"""Out of memory in one line; determinism; the cache of compiled programs."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxvit.training.hardware import (
    be_deterministic,
    explain_out_of_memory,
    is_out_of_memory,
    keep_compiled_programs,
)


def test_a_real_out_of_memory_error_is_explained_with_its_size():
    with pytest.raises(jax.errors.JaxRuntimeError) as error:
        jnp.zeros((2**44,), jnp.float32).block_until_ready()
    assert is_out_of_memory(error.value)
    line = explain_out_of_memory(error.value, {"config.train.batch_size": 64})
    assert line == ("out of device memory (65,536.00 GiB could not be had); these help: config.train.batch_size=64")


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
    assert is_out_of_memory(error) and f"({size} could not be had)" in explain_out_of_memory(error, {})


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


START = {
    "jaxvit train": "from jaxvit.command_line import main; main(['train', *ARGUMENTS])",
    "python -m jaxvit.train": "sys.argv[1:] = ARGUMENTS; runpy.run_module('jaxvit.train', run_name='__main__')",
    "jaxvit.train()": "jax.jit(lambda x: x + 1)(1.0); import jaxvit; jaxvit.train(CONFIG, ARGUMENTS[1][10:])",
}


@pytest.mark.parametrize("way", START)
def test_every_way_to_train_keeps_its_compiled_programs(tmp_path, way):
    tests = os.path.dirname(os.path.dirname(__file__))
    config = tmp_path / "one_step.py"
    config.write_text(
        f"import sys; sys.path.insert(0, {tests!r})\nfrom tiny import tiny_config\n"
        "def get_config(): return tiny_config(train__duration='1 steps', data__validation='', data__test='')\n"
    )
    head = f"import runpy, sys; ARGUMENTS = ['--config={config}', '--workdir={tmp_path / 'run'}']\n"
    if way == "jaxvit.train()":
        head += f"import jax; sys.path.insert(0, {str(tmp_path)!r}); import one_step; CONFIG = one_step.get_config()\n"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", head + START[way]], env=environment, check=True, capture_output=True)
    assert list((tmp_path / "jaxvit" / "xla").glob("jit_train_program-*"))


def test_a_cache_chosen_through_jax_stays(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    try:
        keep_compiled_programs()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
