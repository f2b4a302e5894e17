"""A run's folder, which explains itself: what was asked for, where it ran, what came out.

config.json        every key, expanded, and the config hash
model.json         what it takes to use the trained model without its data: attributes, class names, preprocessing
environment.json   versions, devices, data fingerprints, one entry a start
metrics.jsonl      one JSON object a line
tensorboard/       event files
checkpoints/       the newest and the best
figures/           history, and what `jaxvit report` draws
evaluation/        what `jaxvit evaluate` found, a few files for each split
result.json        written last: its presence means that the run is finished
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxvit._version import __version__
from jaxvit.config import EXTENDABLE, config_hash, differences, from_plain, to_plain
from jaxvit.errors import UsageError
from jaxvit.plan import Plan

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


class RunDirectory:
    """Opens a folder for one config, and keeps other runs out of it until `close`.

    Args:
      path: made when missing.
      config: what is to be run in it.
      writes: whether this process writes. The others of its run, to be opened after it, only read.

    Raises:
      UsageError: the folder belongs to another config, to another process, or holds something else.
    """

    def __init__(self, path: Path, config: ConfigDict, *, writes: bool = True):
        self.path = path
        self.config = config
        self.writes = writes
        self.extended: dict[str, tuple[Any, Any]] = {}
        self.extensions: list[dict[str, Any]] = []
        if not writes and not (path / ".lock").exists():
            raise UsageError(
                f"--workdir={path}: this process does not see the folder that the first one has opened; the processes "
                "of a run must share a file system"
            )
        self._lock = self._take_lock() if writes else contextlib.nullcontext()
        try:
            self._compare()
        except BaseException:
            self.close()
            raise

    def _take_lock(self) -> contextlib.AbstractContextManager[Any]:
        foreign = self.path.is_dir() and any(self.path.iterdir()) and not (self.path / "config.json").exists()
        if foreign and not (self.path / ".lock").exists():
            raise UsageError(f"--workdir={self.path}: this folder holds other files; name a new one for the run")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("w")
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            reason = "it is a file" if self.path.is_file() else error.strerror
            raise UsageError(f"--workdir={self.path}: cannot be written ({reason}); name another folder") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise UsageError(
                f"--workdir={self.path}: another process is at work in this run; wait or stop it"
            ) from None
        return lock

    def _compare(self) -> None:
        existing = self.path / "config.json"
        if not existing.exists():
            return
        self.extensions = read_json(existing).get("extensions", [])
        changed = differences(read_config(self.path), self.config)
        if not changed:
            return
        if set(changed) <= set(EXTENDABLE):
            self.extended = changed
            return
        changed = {key: values for key, values in changed.items() if key not in EXTENDABLE}
        if "model.name" in changed:
            changed = {"model.name": changed["model.name"]}
        shown = [f"{key}: {old!r} there, {new!r} here" for key, (old, new) in list(changed.items())[:3]]
        listing = "; ".join(shown) + (f"; and {len(changed) - 3} more" if len(changed) > 3 else "")
        raise UsageError(
            f"--workdir={self.path}: this folder holds a run of another config ({listing}); name a new one"
        )

    @property
    def result(self) -> dict[str, Any] | None:
        """The finished run's result; None while it is not finished."""
        return read_json(self.path / "result.json") if (self.path / "result.json").exists() else None

    def note_extension(self, step: int) -> None:
        """When a run is taken further at `step`: notes it, for `write_config` to write."""
        if self.extended:
            changes = {key: [old, new] for key, (old, new) in self.extended.items()}
            self.extensions.append({"step": step, "changes": changes})
            self.extended = {}

    def set_result_aside(self) -> None:
        """When a run is taken further: keeps the shorter run's result under its steps."""
        if self.writes and self.result is not None:
            os.replace(self.path / "result.json", self.path / f"result-{self.result['steps']}.json")

    def write_config(self) -> None:
        self._write(
            "config.json",
            {
                "jaxvit": __version__,
                "config_hash": self.config_hash,
                "extensions": self.extensions,
                "config": to_plain(self.config),
            },
        )

    def write_model(self, plan: Plan) -> None:
        facts = {
            "name": plan.model.name,
            "attributes": dict(plan.model.attributes),
            "class_names": plan.data.class_names,
            "image_shape": plan.data.image_shape,
            "augmentation": dataclasses.asdict(plan.augment),
        }
        self._write("model.json", facts)

    @property
    def config_hash(self) -> str:
        return config_hash(self.config, self.extensions)

    def check_data(self, data: Mapping[str, Any]) -> None:
        """Compares the splits' fingerprints with those that the run began with; nothing is written.

        Raises:
          UsageError: they differ.
        """
        file = self.path / "environment.json"
        before = read_json(file)["data"] if file.exists() else {}
        for part, now in data.items():
            was = before.get(part, now)
            if was["sha256"] != now["sha256"]:
                raise UsageError(
                    f"config.data.{part}: these are not the images that the run in {self.path} began with (hash "
                    f"{was['sha256']} then, {now['sha256']} now); use the same data, or a new --workdir"
                )

    def write_environment(self, data: Mapping[str, Any]) -> None:
        """Adds this start to environment.json; `data` holds the splits' fingerprints, which `check_data` has passed."""
        file = self.path / "environment.json"
        starts = read_json(file)["starts"] if file.exists() else []
        self._write(file.name, {"data": dict(data), "starts": [*starts, describe_environment()]})

    def write_result(self, result: Mapping[str, Any]) -> None:
        self._write("result.json", result)

    def _write(self, name: str, value: Any) -> None:
        if self.writes:
            write_json(self.path / name, value)

    def close(self) -> None:
        self._lock.__exit__(None, None, None)


def finished_result(path: Path, config: ConfigDict) -> dict[str, Any] | None:
    """The result, if `path` holds a finished run of this very config; else None."""
    if not (path / "result.json").exists() or differences(read_config(path), config):
        return None
    return read_json(path / "result.json")


def read_config(path: Path) -> ConfigDict:
    """The config of a run directory.

    Raises:
      UsageError: there is no readable config.json.
    """
    try:
        return from_plain(read_json(path / "config.json")["config"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path / 'config.json'} cannot be read ({type(error).__name__}); it is damaged, or this is no run "
            "directory: use a new --workdir"
        ) from None


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all, as `write_text`."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Whole or not at all: written beside, then moved."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def describe_environment() -> dict[str, Any]:
    """Versions, devices and the command of this process."""
    devices = jax.devices()
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "jaxvit": __version__,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in devices],
        "processes": jax.process_count(),
        "cpus": os.cpu_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }
