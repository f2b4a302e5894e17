"""Fixtures for all tests: strict numerics, fast compiles, and a separate data directory."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import os
import signal
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs here run a few times on a few numbers, so most of a test would be XLA's optimising. These flags compile in a
# third of the time. jaxlib 0.12 no longer knows the last one, and XLA ends a process that names an unknown flag.
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
if FLAGS not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
# Tests compile the same small programs many times over. One cache serves pytest, its workers and the processes that
# tests start. Entries are compressed, so a half-written one cannot be mistaken for a program: jax warns and compiles.
_folder = tempfile.TemporaryDirectory(prefix="jaxvit-test-")
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _folder.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# A queue that the user has started takes no notice of these tests' timings, nor they of it; ./launch.sh test asks.
os.environ["JAXVIT_LOCKS"] = os.path.join(_folder.name, "locks")

import jax
import numpy as np
import pytest

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may be run under nohup
gc.set_threshold(100_000, 20, 50)  # tracing makes and keeps millions of objects

# Files that take longest, from the longest on. With `--dist loadfile` the workers begin with them, so that none is left
# with a long one when the others have finished.
LONGEST = ("run/test_seeds", "run/test_reliability", "exports/test_export", "run/test_train", "run/test_sweep")
LONGEST += ("test_readme", "reproduce/test_reproduce", "config/test_every_key", "reproduce/test_queue")
LONGEST += ("devices/test_processes", "speed/test_benchmark", "pages/test_report", "test_trust", "test_own_code")


def pytest_configure(config):
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # by number of tests


def pytest_collection_modifyitems(items):
    place = {f"tests/{name}.py": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(place)))


jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(scope="session", autouse=True)
def data_directory(tmp_path_factory):
    """A fresh TFDS directory for the session, so that no test touches the user's."""
    directory = tmp_path_factory.mktemp("tfds")
    before = os.environ.get("TFDS_DATA_DIR")
    os.environ["TFDS_DATA_DIR"] = str(directory)
    yield directory
    if before is None:
        del os.environ["TFDS_DATA_DIR"]
    else:
        os.environ["TFDS_DATA_DIR"] = before


class Curves:
    """Turns off the drawing of learning curves, which takes half the time of a tiny run; `drawn` turns it on."""

    def __init__(self, execution):
        self._execution, self._draw = execution, execution._draw

    def leave_out(self):
        self._execution._draw = lambda *_: ""

    @contextlib.contextmanager
    def drawn(self):
        self._execution._draw = self._draw
        yield
        self.leave_out()


@pytest.fixture(scope="session", autouse=True)
def curves():
    """In-process runs draw history.png only within `with curves.drawn():`."""
    curves = Curves(importlib.import_module("jaxvit.run.execution"))
    curves.leave_out()
    return curves


@pytest.fixture
def draw():
    """draw(module, *args, **kwargs): variables of a module with random values, also instead of 0 and 1."""

    def fill(module, *args, scale=0.3, seed=0, **kwargs):
        shapes = jax.eval_shape(lambda key, *a: module.init(key, *a, **kwargs), jax.random.key(0), *args)
        rng = np.random.default_rng(seed)
        return jax.tree.map(lambda leaf: rng.normal(0, scale, leaf.shape).astype(leaf.dtype), shapes)

    return fill
