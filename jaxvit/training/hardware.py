"""What depends on the machine: where compiled programs are kept, determinism, running out of memory, profiles."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from jaxvit.errors import UsageError

_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def keep_compiled_programs() -> None:
    """Lets jax keep compiled programs in the user's cache folder, so that a second start compiles nothing.

    Call it before jax is imported. ``JAX_COMPILATION_CACHE_DIR`` names another folder; set to '' it keeps none.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "jaxvit" / "xla"))
    # By default jax keeps only what took a second to compile, which leaves out most of a small model.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


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
        reason = str(error).splitlines()[0] if str(error) else "no such device"
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
    # "Out of memory allocating 1234 bytes" (CPU), "… trying to allocate 1.50GiB" (GPU).
    # "Out of memory allocating 1234 bytes" (CPU), "… trying to allocate 1.50GiB" (GPU).
    found = re.search(r"allocat\w*\s+(?:(\d+)\s*bytes|([\d.]+\s?[KMGT]i?B))", str(error))
    size = ""
    if found:
        amount = f"{int(found[1]) / 2**30:,.2f} GiB" if found[1] else found[2]
        size = f" ({amount} could not be had)"
    knobs = ", ".join(f"{key}={value}" for key, value in settings.items())
    return f"out of device memory{size}; these help: {knobs}"
