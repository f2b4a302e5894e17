"""Keeps other libraries' chatter off the user's terminal: what is known to mean nothing, and nothing else.

An error in the background that is not known, in a thread or in an object that goes away, is shown as Python shows it.
With JAXVIT_VERBOSE set in the environment, everything is shown.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

# jax probes for hardware that is not there. Orbax logs, also through absl and asyncio, what it raises as well.
_LOGGERS = ("jax._src.xla_bridge", "orbax", "asyncio")


def quieten_libraries() -> None:
    """Silences a few loggers of other libraries, and leaves out the background errors that `is_known` knows."""
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
    # Threads need no filter: those of Orbax keep their error and raise it in the thread that waits for them.


class _Filter:
    """A hook for errors that cannot be raised: hands on to the hook before all that are not known."""

    def __init__(self, before: Callable[[Any], Any]):
        self._before = before

    def __call__(self, unraisable: Any) -> None:
        if not is_known(unraisable):
            self._before(unraisable)


def is_known(unraisable: Any) -> bool:
    """Whether an error that could not be raised is one that means nothing, by where it comes from.

    Args:
      unraisable: what `sys.unraisablehook` is given.
    """
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(unraisable.exc_traceback)]
    error = unraisable.exc_value
    if unraisable.object is None:
        # TensorStore, which is no Python, tells an event loop about a read or a write that Orbax had given up before,
        # since another of the same checkpoint failed: a full disk or a damaged file, which is said in one line.
        inside = bool(modules) and all(name.partition(".")[0] == "asyncio" for name in modules)
        return inside and isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
    if isinstance(unraisable.object, types.CoroutineType):
        # Such a read of Orbax, when it is thrown away: it makes an error of its own of being closed.
        inside = bool(modules) and modules[0].partition(".")[0] == "orbax"
        return inside and isinstance(error.__cause__ or error.__context__, GeneratorExit)
    return False
