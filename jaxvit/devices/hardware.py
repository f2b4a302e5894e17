"""Describes the machine and its devices, explains errors of the device, and writes profiles."""

from __future__ import annotations

import contextlib
import os
import platform as system
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from jaxvit.errors import RunFailedError, UsageError, first_line


def machine() -> dict[str, str]:
    """Returns the processor, the number of cores that this process may use, the memory, and the system with Python."""

    def field(file: str, name: str) -> str:
        with contextlib.suppress(OSError):
            for line in Path(file).read_text().splitlines():
                if line.lower().startswith(name):
                    return line.split(":", 1)[1].strip()
        return ""

    memory = field("/proc/meminfo", "memtotal").split()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": field("/proc/cpuinfo", "model name") or system.processor() or system.machine(),
        "cores": str(cores),
        "memory": f"{int(memory[0]) / 2**20:.1f} GiB" if memory else "unknown",
        "system": f"{system.system()} {system.machine()}, Python {system.python_version()}",
    }


def device_name() -> str:
    """Returns the kind of the first device; for a CPU, whose kind is just 'cpu' in JAX, the processor's name."""
    import jax

    kind = jax.devices()[0].device_kind
    return machine()["processor"] if kind.lower() == "cpu" else kind


def device_count() -> int:
    """Returns the number of devices.

    Raises:
      UsageError: JAX cannot start its platform.
    """
    import jax

    try:
        return jax.device_count()
    except (RuntimeError, AssertionError) as error:
        platforms = os.environ.get("JAX_PLATFORMS", "")
        reason = first_line(error) if str(error) else "no such device"
        raise UsageError(f"jax cannot start its devices (JAX_PLATFORMS='{platforms}'): {reason}") from None


def platform() -> str:
    """Returns the platform of this run's devices: 'cpu', 'gpu' or 'tpu'."""
    import jax

    return jax.default_backend()


def memory_of_device() -> int:
    """Bytes of memory of this process' first device; of a CPU, those of the machine. 0 = not known."""
    import jax

    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return int((device.memory_stats() or {}).get("bytes_limit", 0))
    with contextlib.suppress(OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0


def is_out_of_memory(error: Exception) -> bool:
    """Whether JAX raised an error because the device is out of memory."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def explain_out_of_memory(error: Exception, settings: Mapping[str, object]) -> str:
    """Describes the error in one line: the size of the failed allocation, and settings to change with their values."""
    # "Out of memory allocating 1234 bytes" (CPU); "… trying to allocate 1.50GiB", "Failed to allocate request for
    # 1.50GiB" (GPU); "Attempting to reserve 9.30G", "Used 20.10G of 15.48G hbm" (TPU).
    amounts = r"(?:(\d+)\s*bytes|([\d.]+\s?[KMGT](?:i?B)?\b))"
    found = re.search(rf"(?:allocat\w*(?: request for)?|reserve|Used)\s+{amounts}", str(error))
    size = ""
    if found:
        amount = f"{int(found[1]) / 2**30:,.2f} GiB" if found[1] else found[2]
        size = f" ({amount} could not be allocated)"
    knobs = ", ".join(f"{key}={value}" for key, value in settings.items())
    return f"out of device memory{size}; change one of: {knobs}"


@contextlib.contextmanager
def device_errors(settings: Mapping[str, object]) -> Iterator[None]:
    """Replaces an error of the device by one with a single line and exit code 70.

    Args:
      settings: settings to change if memory runs out, with their current values, such as
        {"a smaller --batch_size, now": 64}.

    Raises:
      RunFailedError: the device is out of memory or fails. Its cause is the `jax.errors.JaxRuntimeError`.

    Example:
      >>> with device_errors({"a smaller --batch_size, now": 64}):
      ...     logits = model.logits(images)  # doctest: +SKIP
    """
    import jax

    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if is_out_of_memory(error):
            raise RunFailedError(explain_out_of_memory(error, settings)) from error
        raise RunFailedError(f"the device failed: {first_line(error)[:200]}") from error


class Profiler:
    """Writes a profile of a range of steps. It ends early if the run does.

    Args:
      steps: (first, last), counted from 1.
      directory: folder of the profile, made if it is missing.
    """

    def __init__(self, steps: tuple[int, int], directory: Path):
        self._first, self._last = steps
        self._directory = directory
        self._running = False

    def before(self, step: int, count: int) -> None:
        """Starts the profile if it is due. Call it after `step` steps, before a call of `count` more."""
        if step < self._last and step + count >= self._first and not self._running:
            import jax

            jax.profiler.start_trace(self._directory)
            self._running = True

    def after(self, step: int, outputs: object) -> None:
        """Ends the profile if it is due. Call it with the outputs of the call that ends at `step`."""
        if self._running and step >= self._last:
            import jax

            jax.block_until_ready(outputs)
            self.close()

    def close(self) -> None:
        """Ends the profile if one is running."""
        if self._running:
            import jax

            self._running = False
            jax.profiler.stop_trace()
