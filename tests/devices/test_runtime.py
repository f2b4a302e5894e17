"""Determinism, compilation cache, CPU libraries and huge pages of a process."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxvit.devices.runtime import (
    be_deterministic,
    choose_cpu_libraries,
    forward_options,
    keep_compiled_programs,
    take_huge_pages,
)


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
        "from jaxvit.devices.runtime import keep_compiled_programs; keep_compiled_programs()\n"
        "import jax; print(jax.config.jax_compilation_cache_dir); jax.jit(lambda x: x + 1)(1.0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == kept.format(home=tmp_path)
    assert given or any((tmp_path / "jaxvit" / "xla").iterdir())


START = {
    "jaxvit train": "from jaxvit.cli.command_line import main; main(['train', *ARGUMENTS])",
    "python -m jaxvit train": "sys.argv[1:] = ['train', *ARGUMENTS]; runpy.run_module('jaxvit', run_name='__main__')",
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


@pytest.mark.parametrize(
    ("version", "before", "after"),
    [
        ("0.10.2", "", "--xla_cpu_experimental_ynn_fusion_type=reduce"),
        ("0.10.0", "--xla_foo=1", "--xla_foo=1 --xla_cpu_experimental_ynn_fusion_type=reduce"),
        ("0.10.2", "--xla_cpu_experimental_ynn_fusion_type=", "--xla_cpu_experimental_ynn_fusion_type="),
        ("0.12.0", "--xla_foo=1", "--xla_foo=1"),
    ],
)
def test_slow_libraries_are_left_out_where_a_version_has_them(monkeypatch, version, before, after):
    monkeypatch.setattr("importlib.metadata.version", lambda name: version)
    monkeypatch.setenv("XLA_FLAGS", before)
    choose_cpu_libraries()
    assert os.environ["XLA_FLAGS"] == after


def test_jax_starts_with_the_libraries_chosen():
    """An unknown flag ends the process."""
    script = (
        "from jaxvit.devices.runtime import choose_cpu_libraries; choose_cpu_libraries(); import jax; "
        "print(float(jax.numpy.ones((64, 64)).sum()))"
    )
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "4096.0\n"), done.stderr


@pytest.mark.parametrize(
    ("version", "flags", "platform", "options"),
    [
        ("0.10.2", "", "cpu", {"xla_cpu_experimental_ynn_fusion_type": ""}),
        (
            "0.10.2",
            "--xla_cpu_experimental_ynn_fusion_type=reduce",
            "cpu",
            {"xla_cpu_experimental_ynn_fusion_type": ""},
        ),
        ("0.10.2", "--xla_cpu_experimental_ynn_fusion_type=+reduce", "cpu", None),
        ("0.10.2", "", "gpu", None),
        ("0.12.0", "", "cpu", None),
    ],
)
def test_forward_programs_leave_nothing_to_a_slow_library(monkeypatch, version, flags, platform, options):
    monkeypatch.setattr("importlib.metadata.version", lambda name: version)
    monkeypatch.setattr("jax.default_backend", lambda: platform)
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert forward_options() == options


def test_forward_programs_compute_the_same_and_leave_nothing_to_the_library():
    x = jax.random.normal(jax.random.key(0), (512, 256))
    program = jax.jit(jax.nn.softmax, compiler_options=forward_options()).lower(x).compile()
    assert "ynn" not in program.as_text() or forward_options() is None
    assert jnp.max(jnp.abs(program(x) - jax.jit(jax.nn.softmax)(x))) < 1e-6


@pytest.mark.parametrize(
    ("kernel", "libc", "environment", "starts"),
    [
        ("always [madvise] never", "glibc", {}, True),
        ("always [madvise] never", "glibc", {"JAXVIT_HUGE_PAGES": "0"}, False),
        ("always [madvise] never", "glibc", {"GLIBC_TUNABLES": "glibc.malloc.perturb=1"}, False),
        ("[always] madvise never", "glibc", {}, False),
        ("always madvise [never]", "glibc", {}, False),
        ("always [madvise] never", "", {}, False),
        (None, "glibc", {}, False),
    ],
)
def test_huge_pages_are_asked_for_once_where_that_helps(monkeypatch, kernel, libc, environment, starts):
    def read_text(path):
        if kernel is None:
            raise FileNotFoundError(path)
        return kernel

    started = []
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.delenv("JAXVIT_HUGE_PAGES", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("pathlib.Path.read_text", read_text)
    monkeypatch.setattr("platform.libc_ver", lambda: (libc, "2.36"))
    monkeypatch.setattr("os.execv", lambda *words: started.append((*words, os.environ["GLIBC_TUNABLES"])))
    take_huge_pages(["-m", "jaxvit", "--version"])
    again = [(sys.executable, [sys.executable, "-m", "jaxvit", "--version"], "glibc.malloc.hugetlb=1")]
    assert started == again * starts
    take_huge_pages(["-m", "jaxvit", "--version"])  # what has been started anew starts nothing
    assert started == again * starts


def test_the_command_is_the_same_after_it_has_started_anew():
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    words = [sys.executable, "-X", "utf8", "-m", "jaxvit", "summary", "--model=no such", "model"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "jaxvit: " in done.stderr and done.stdout == ""


def test_a_program_that_calls_the_command_is_not_started_anew(tmp_path):
    """A restart would lose its arguments, or run them twice."""
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    script = "print('once')\nfrom jaxvit.cli.command_line import main\nmain()\n"
    done = subprocess.run(
        [sys.executable, "-", "--version"], input=script, env=environment, capture_output=True, text=True
    )
    assert done.stdout.startswith("once\njaxvit ") and done.stdout.count("\n") == 2, done.stderr
    (tmp_path / "program.py").write_text(script)
    words = [sys.executable, tmp_path / "program.py", "--version"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("once\njaxvit ") and done.stdout.count("\n") == 2, done.stderr


@pytest.mark.parametrize("platforms", ["cuda", "cuda,cpu", "tpu"])
def test_flags_of_the_cpu_are_left_alone_elsewhere(monkeypatch, platforms):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.10.2")
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setenv("XLA_FLAGS", "")
    choose_cpu_libraries()
    assert os.environ["XLA_FLAGS"] == ""


def test_the_lowest_priority_is_that_of_all_threads():
    """Also existing threads, and threads started later."""
    script = """
import os, threading, time
from pathlib import Path
from jaxvit.devices.runtime import lower_priority
wait = threading.Event()
start = lambda: threading.Thread(target=wait.wait, daemon=True).start()
start(); lower_priority(); start(); lower_priority()
threads = Path("/proc/self/task")
numbers = [int(p.name) for p in threads.iterdir()] if threads.is_dir() else [0]
print([os.getpriority(os.PRIO_PROCESS, number) for number in numbers])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout in ("[19, 19, 19]\n", "[19]\n"), done.stderr
