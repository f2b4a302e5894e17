"""Silences harmless messages of other libraries.

Only messages known to be harmless are hidden. Unknown errors in threads or destructors are printed as usual. If the
environment variable JAXVIT_VERBOSE is set, nothing is hidden.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

# jax probes for absent hardware. Orbax logs errors that it also raises, partly through absl and asyncio.
_LOGGERS = ("jax._src.xla_bridge", "orbax", "asyncio")


def quieten_libraries() -> None:
    """Silences some loggers of other libraries, and unraisable errors for which `is_known` is true."""
    if os.environ.get("JAXVIT_VERBOSE"):
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.FATAL)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if not isinstance(sys.unraisablehook, _Filter):
        sys.unraisablehook = _Filter(sys.unraisablehook)
    # Threads need no filter: Orbax raises their errors again in the thread that waits for them.


class _Filter:
    """A `sys.unraisablehook` that drops known errors and passes all others to the previous hook."""

    def __init__(self, before: Callable[[Any], Any]):
        self._before = before

    def __call__(self, unraisable: Any) -> None:
        if not is_known(unraisable):
            self._before(unraisable)


def is_known(unraisable: Any) -> bool:
    """True if an unraisable error is harmless, judged by its origin.

    Args:
      unraisable: the argument of `sys.unraisablehook`.
    """
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(unraisable.exc_traceback)]
    error = unraisable.exc_value
    if unraisable.object is None:
        # After one read or write of a checkpoint fails, Orbax abandons the others. TensorStore then reports their
        # result to a closed event loop. The first failure (disk full, damaged file) is reported separately.
        inside = bool(modules) and all(name.partition(".")[0] == "asyncio" for name in modules)
        return inside and isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
    if isinstance(unraisable.object, types.CoroutineType):
        # An abandoned read of Orbax, when it is garbage-collected: closing the coroutine raises an error.
        inside = bool(modules) and modules[0].partition(".")[0] == "orbax"
        return inside and isinstance(error.__cause__ or error.__context__, GeneratorExit)
    return False
