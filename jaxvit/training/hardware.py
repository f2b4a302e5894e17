"""What depends on the machine: its name, where compiled programs are kept, determinism, lack of memory, profiles."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxvit.errors import UsageError, first_line

_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
# Jaxlib 0.10 gives matrix products on CPU to a library that took twice as long over them as XLA's own; 0.12 does not.
_SLOW_LIBRARY = {"0.10": ("xla_cpu_experimental_ynn_fusion_type", "reduce")}
_HUGE_PAGES = "glibc.malloc.hugetlb=1"


def keep_compiled_programs() -> None:
    """Lets jax keep compiled programs in the user's cache folder, so that a second start compiles nothing.

    ``JAX_COMPILATION_CACHE_DIR`` names another folder; set to '' it keeps none. What was set through jax.config stays.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    settings = {
        "jax_compilation_cache_dir": str(cache / "jaxvit" / "xla"),
        # By default jax keeps only what took a second to compile, which leaves out most of a small model.
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    unset = {name: value for name, value in settings.items() if name.upper() not in os.environ}
    if "jax" not in sys.modules:
        os.environ.update({name.upper(): str(value) for name, value in unset.items()})
        return
    # Jax has read its environment by now.
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    if jax.config.jax_compilation_cache_dir is None and "jax_compilation_cache_dir" in unset:
        for name, value in unset.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # if anything was compiled before, jax has decided not to keep anything


def choose_cpu_libraries() -> None:
    """Has XLA multiply matrices on CPU by what is fastest in this version of jaxlib: see docs/performance.md.

    To be called before jax starts a device; later it does nothing. A choice in ``XLA_FLAGS`` stays.
    """
    if os.environ.get("JAX_PLATFORMS", "").partition(",")[0] not in ("", "cpu"):
        return
    release = ".".join(importlib.metadata.version("jaxlib").split(".")[:2])
    name, value = _SLOW_LIBRARY.get(release, ("", ""))
    flags = os.environ.get("XLA_FLAGS", "")
    if name and name not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{name}={value}".strip()


def take_huge_pages(argv: Sequence[str]) -> None:
    """Starts this process anew, once, with an allocator that asks Linux for huge pages, where Linux waits to be asked.

    Every training step on CPU writes to hundreds of megabytes of fresh memory, which in pages of 4 KiB costs a sixth to
    a quarter of the step (docs/performance.md). The allocator reads this setting only at a process's start.
    ``GLIBC_TUNABLES`` that are set already stay as they are; ``JAXVIT_HUGE_PAGES=0`` leaves everything alone.

    Args:
      argv: the words that start this process again.
    """
    if os.environ.get("JAXVIT_HUGE_PAGES") == "0" or "GLIBC_TUNABLES" in os.environ:
        return
    try:
        waits = "[madvise]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return
    library, version = platform.libc_ver()
    if waits and sys.executable and library == "glibc" and tuple(map(int, version.split(".")[:2])) >= (2, 35):
        os.environ["GLIBC_TUNABLES"] = _HUGE_PAGES
        with contextlib.suppress(OSError):  # then it goes on as it is
            os.execv(sys.executable, [sys.executable, *argv])


@contextlib.contextmanager
def fresh_program_cache() -> Iterator[None]:
    """Within, compiled programs are kept in a new folder, empty at first; the user's own is left alone."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    settings: dict[str, Any] = {
        "jax_enable_compilation_cache": True,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    with tempfile.TemporaryDirectory(prefix="jaxvit-programs-") as folder:
        settings["jax_compilation_cache_dir"] = folder
        before = {name: getattr(jax.config, name) for name in settings}
        try:
            for name, value in settings.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()
            yield
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()


def machine() -> dict[str, str]:
    """What this computer is: processor, cores that this process may use, memory, system with Python's version."""

    def field(file: str, name: str) -> str:
        with contextlib.suppress(OSError):
            for line in Path(file).read_text().splitlines():
                if line.lower().startswith(name):
                    return line.split(":", 1)[1].strip()
        return ""

    memory = field("/proc/meminfo", "memtotal").split()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": str(cores),
        "memory": f"{int(memory[0]) / 2**20:.1f} GiB" if memory else "unknown",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }


def device_name() -> str:
    """The first device's kind; of a CPU, which jax calls just that, the processor's name."""
    import jax

    kind = jax.devices()[0].device_kind
    return machine()["processor"] if kind.lower() == "cpu" else kind


def device_count() -> int:
    """Number of devices.

    Raises:
      UsageError: jax cannot start the platform that it was told to use.
    """
    import jax

    try:
        return jax.device_count()
    except (RuntimeError, AssertionError) as error:
        platforms = os.environ.get("JAX_PLATFORMS", "")
        reason = first_line(error) if str(error) else "no such device"
        raise UsageError(f"jax cannot start its devices (JAX_PLATFORMS='{platforms}'): {reason}") from None


def be_deterministic() -> None:
    """Has XLA choose deterministic kernels on GPU. Call it before the first use of a device.

    Raises:
      UsageError: a GPU is already in use without it.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _DETERMINISTIC in flags:
        return
    started = "jax" in sys.modules and sys.modules["jax"]._src.xla_bridge.backends_are_initialized()
    if started and sys.modules["jax"].default_backend() == "gpu":
        raise UsageError(
            f"config.train.deterministic: jax has already started its GPU; set XLA_FLAGS='{_DETERMINISTIC}' before"
        )
    os.environ["XLA_FLAGS"] = f"{flags} {_DETERMINISTIC}".strip()


def is_out_of_memory(error: Exception) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def explain_out_of_memory(error: Exception, settings: dict[str, object]) -> str:
    """One line: the size that could not be had, and the settings that help, with their present values."""
    # "Out of memory allocating 1234 bytes" (CPU); "… trying to allocate 1.50GiB", "Failed to allocate request for
    # 1.50GiB" (GPU); "Attempting to reserve 9.30G", "Used 20.10G of 15.48G hbm" (TPU).
    amounts = r"(?:(\d+)\s*bytes|([\d.]+\s?[KMGT](?:i?B)?\b))"
    found = re.search(rf"(?:allocat\w*(?: request for)?|reserve|Used)\s+{amounts}", str(error))
    size = ""
    if found:
        amount = f"{int(found[1]) / 2**30:,.2f} GiB" if found[1] else found[2]
        size = f" ({amount} could not be had)"
    knobs = ", ".join(f"{key}={value}" for key, value in settings.items())
    return f"out of device memory{size}; these help: {knobs}"


class Profiler:
    """Writes a profile of the steps from the first to the last, or to where the run ends before.

    Args:
      steps: first and last, counted from 1.
      directory: made when missing.
    """

    def __init__(self, steps: tuple[int, int], directory: Path):
        self._first, self._last = steps
        self._directory = directory
        self._running = False

    def before(self, step: int, count: int) -> None:
        """Before a call of `count` steps that follow `step` steps done."""
        if step < self._last and step + count >= self._first and not self._running:
            import jax

            jax.profiler.start_trace(self._directory)
            self._running = True

    def after(self, step: int, outputs: Any) -> None:
        """After the call that ends at `step`, which gave `outputs`."""
        if self._running and step >= self._last:
            import jax

            jax.block_until_ready(outputs)
            self.close()

    def close(self) -> None:
        if self._running:
            import jax

            self._running = False
            jax.profiler.stop_trace()
