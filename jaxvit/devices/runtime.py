"""Sets up how this process computes: CPU libraries, huge pages, the cache of compiled programs, determinism."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxvit.errors import UsageError
from jaxvit.files import user_cache

_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
# On CPU, jaxlib 0.10 multiplies matrices with a library that takes twice as long as XLA's own code. 0.12 does not.
_SLOW_LIBRARY = {"0.10": ("xla_cpu_experimental_ynn_fusion_type", "reduce")}
_HUGE_PAGES = "glibc.malloc.hugetlb=1"


def keep_compiled_programs() -> None:
    """Turns on JAX's cache of compiled programs in the user's cache folder, so a second start compiles nothing.

    ``JAX_COMPILATION_CACHE_DIR`` sets another folder, or no cache if it is ''. Settings of jax.config are kept.
    """
    settings = {
        "jax_compilation_cache_dir": str(user_cache() / "jaxvit" / "xla"),
        # JAX's default keeps only programs that took a second to compile, which a small model's do not.
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    unset = {name: value for name, value in settings.items() if name.upper() not in os.environ}
    if "jax" not in sys.modules:
        folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", settings["jax_compilation_cache_dir"])
        if folder and "://" not in folder and not _can_be_made(Path(folder)):  # jax takes gs://…
            os.environ["JAX_COMPILATION_CACHE_DIR"] = ""
            print(f"note: compiled programs are not kept: {folder} cannot be written", file=sys.stderr, flush=True)
        os.environ.update({name.upper(): str(value) for name, value in unset.items()})
        return
    # JAX has read its environment already.
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    if jax.config.jax_compilation_cache_dir is None and "jax_compilation_cache_dir" in unset:
        for name, value in unset.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # after a compilation without a cache, JAX does not look for one again


def _can_be_made(folder: Path) -> bool:
    there = next((path for path in (folder, *folder.absolute().parents) if path.exists()), Path("/"))
    return there.is_dir() and os.access(there, os.W_OK)


def why_refused(error: Exception) -> str:
    """Explains an error of JAX about an environment variable; '' = the error has another cause.

    JAX reads most of its variables at import, and JAX_PLATFORMS when it starts its devices.
    """
    modules = {frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__)}
    given = [f"{name}='{value}'" for name, value in os.environ.items() if name.startswith("JAX_")]
    if not given or not modules & {"jax._src.config", "jax._src.xla_bridge"}:
        return ""
    reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
    shown = ", ".join(g for g in given if g.partition("=")[0] in str(error)) or ", ".join(given)
    return f"jax refuses these environment variables ({shown}): {reason}; correct or unset them"


def choose_cpu_libraries() -> None:
    """Makes XLA use the fastest matrix multiplication on CPU of this version of jaxlib; see docs/performance.md.

    Call it before JAX starts a device; later it has no effect. A choice in ``XLA_FLAGS`` is kept.
    """
    if os.environ.get("JAX_PLATFORMS", "").partition(",")[0] not in ("", "cpu"):
        return
    name, value = _slow_library()
    flags = os.environ.get("XLA_FLAGS", "")
    if name and name not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{name}={value}".strip()


def forward_options(platform: str = "") -> dict[str, str] | None:
    """Returns ``compiler_options`` of ``jax.jit`` for a program without gradients; None if it needs none.

    `choose_cpu_libraries` leaves sums to the library. The library is fast at sums over a batch, which gradients have,
    and slower than XLA at the sums of norms and softmaxes, the only ones of a forward pass. A choice in ``XLA_FLAGS``
    is kept.

    Args:
      platform: platform of the devices that the program is compiled for; '' = jax's default backend.
    """
    import jax

    name, value = _slow_library()
    chosen = re.findall(rf"--{name}=(\S*)", os.environ.get("XLA_FLAGS", "")) if name else []
    if not name or any(each != value for each in chosen) or (platform or jax.default_backend()) != "cpu":
        return None
    return {name: ""}


def _slow_library() -> tuple[str, str]:
    """The flag that sets which operations the slow library does, and the value for its fast ones; or ('', '')."""
    release = ".".join(importlib.metadata.version("jaxlib").split(".")[:2])
    return _SLOW_LIBRARY.get(release, ("", ""))


def take_huge_pages(argv: Sequence[str]) -> None:
    """Restarts this process, once, with an allocator that requests huge pages, if Linux gives them on request only.

    Every training step on CPU writes to hundreds of megabytes of new memory. With pages of 4 KiB, that takes a sixth to
    a quarter of the step (docs/performance.md). The allocator reads the setting when the process starts. An existing
    ``GLIBC_TUNABLES`` is kept, and ``JAXVIT_HUGE_PAGES=0`` turns this off.

    Args:
      argv: arguments that start this process again.
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
        with contextlib.suppress(OSError):  # it then continues without huge pages
            os.execv(sys.executable, [sys.executable, *argv])


def lower_priority() -> None:
    """Gives all threads of this process the lowest priority for the rest of its life.

    Linux has a priority per thread, which a new thread inherits, so this sets it for every existing thread.
    """
    threads = Path("/proc/self/task")
    for number in [int(p.name) for p in threads.iterdir()] if threads.is_dir() else [0]:
        with contextlib.suppress(ProcessLookupError):  # the thread has ended
            os.setpriority(os.PRIO_PROCESS, number, 19)


@contextlib.contextmanager
def fresh_program_cache() -> Iterator[None]:
    """Uses an empty temporary cache of compiled programs inside the `with` block."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    settings: dict[str, bool | float | str] = {
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


def be_deterministic() -> None:
    """Makes XLA choose deterministic kernels on GPU. Call it before JAX starts a device.

    Raises:
      UsageError: JAX has started a GPU already.
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
