"""Describes the environment of a run: versions, devices, the commit of the source."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import jax

from jaxvit._version import __version__
from jaxvit.devices import hardware
from jaxvit.files import INSTALLED_IN

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorflow-datasets",
    "grain",
    "ml-collections",
    "numpy",
)


def describe_environment() -> dict[str, object]:
    """Returns time, command, versions and devices of this process, as JSON values."""
    devices = jax.devices()
    about = hardware.machine()
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "jaxvit": __version__,
        "commit": source_commit(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in devices],
        "device": hardware.device_name(),
        "cores": about["cores"],
        "processes": jax.process_count(),
        "cpus": os.cpu_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def source_commit() -> str:
    """Returns the commit of the checkout that contains this package, with '-dirty' after changes; '' without one."""
    checkout = INSTALLED_IN.resolve()

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(checkout), *words], capture_output=True, text=True, timeout=30)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        top = git("rev-parse", "--show-toplevel")
        if not top or Path(top).resolve() != checkout:  # another project's checkout
            return ""
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "jaxvit", "configs")
        return git("rev-parse", "--short", "HEAD") + "-dirty" * bool(changed)
    except (OSError, subprocess.TimeoutExpired):
        return ""
