"""Writes and reads the files of a run folder, and checks that the folder belongs to a config.

config.json        every key, expanded, and the config hash
model.json         what `jaxvit.load` needs besides the weights: attributes, class names, preprocessing
environment.json   versions, devices, fingerprints of the data; one entry per start
metrics.jsonl      one JSON object per line
tensorboard/       event files
checkpoints/       the newest two and the best; see `jaxvit.training.checkpoint`
figures/           history, and the figures of `jaxvit report`
evaluation/        output of `jaxvit evaluate`, a few files per split
result.json        written last: its presence means that the run is finished

Each JSON file contains a checksum, which is compared at every read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from ml_collections import ConfigDict

from jaxvit._version import __version__
from jaxvit.config.identity import config_hash, differences
from jaxvit.config.key_table import EXTENDABLE, KEYS
from jaxvit.config.keys import check_value, complete, flatten, from_plain, to_plain
from jaxvit.config.plan_types import Plan
from jaxvit.errors import UsageError, first_line, is_disk_failure
from jaxvit.files import Lock, is_number, make_folder, naming, read_json, refuse_backslash, require, write_json
from jaxvit.run.environment import describe_environment
from jaxvit.run.result_types import Environment, Result, Split


class RunDirectory:
    """An open run folder, locked for this run until `close`.

    Args:
      path: the folder; created if missing.
      config: config of the run.
      writes: whether this process writes. The other processes of a run open it afterwards and only read.

    Raises:
      UsageError: the folder belongs to another config or process, or contains other files.
    """

    def __init__(self, path: Path, config: ConfigDict, *, writes: bool = True):
        self.path = path
        self.config = config
        self.writes = writes
        self.extended: dict[str, tuple[object, object]] = {}
        self.extensions: list[dict[str, object]] = []
        if not writes and not (path / ".lock").exists():
            raise UsageError(
                f"--workdir={path}: this process does not see the folder that the first one has opened; the processes "
                "of a run must share a file system"
            )
        self._lock = self._take_lock() if writes else None
        try:
            self._compare()
        except BaseException:
            self.close()
            raise

    def _take_lock(self) -> Lock:
        refuse_backslash(self.path, "--workdir=")
        foreign = self.path.is_dir() and any(self.path.iterdir()) and not (self.path / "config.json").exists()
        if foreign and not (self.path / ".lock").exists():
            raise UsageError(f"--workdir={self.path}: this folder holds other files; name a new one for the run")
        if (self.path / "sweep.json").exists():
            raise UsageError(f"--workdir={self.path}: this folder holds a sweep; name a new one for the run")
        busy = f"--workdir={self.path}: another process uses this run folder; wait or stop it"
        try:
            while True:
                make_folder(self.path)
                with naming(self.path):
                    lock = Lock(self.path / ".lock", busy)
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.stat(self.path / ".lock"), os.fstat(lock.fileno())):
                        return lock
                lock.close()  # the lock of a refused process, which has removed the file meanwhile
        except OSError as error:
            if is_disk_failure(error):
                raise
            reason = "it is a file" if self.path.is_file() else error.strerror
            raise UsageError(f"--workdir={self.path}: cannot be written ({reason}); name another folder") from None

    def _compare(self) -> None:
        existing = self.path / "config.json"
        if not existing.exists():
            return
        changed = differences(read_config(self.path), self.config)
        self.extensions = read_json(existing).get("extensions", [])
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
    def result(self) -> Result | None:
        """The result of the run; None if it is not finished."""
        return read_result(self.path) if (self.path / "result.json").exists() else None

    def note_extension(self, step: int) -> None:
        """Records that a run is extended at `step`; `write_config` writes it."""
        if self.extended:
            changes = {key: [old, new] for key, (old, new) in self.extended.items()}
            self.extensions.append({"step": step, "changes": changes})
            self.extended = {}

    def set_result_aside(self) -> None:
        """Renames the result of a run that is extended to ``result-STEPS.json``."""
        result = self.result
        if self.writes and result is not None:
            os.replace(self.path / "result.json", self.path / f"result-{result['steps']}.json")

    def write_config(self) -> None:
        """Writes config.json."""
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
        """Writes model.json."""
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
        """The hash of the config and of the run's extensions."""
        return config_hash(self.config, self.extensions)

    def check_data(self, data: Mapping[str, Split], class_names: Sequence[str] = ()) -> None:
        """Compares fingerprints and classes with those of the run's first start; writes nothing.

        Args:
          data: fingerprints of the splits, from `jaxvit.run.execution.describe`.
          class_names: names of the classes.

        Raises:
          UsageError: they differ, or the earlier ones cannot be read.
        """
        model = self.path / "model.json"
        known = read_json(model, "delete it, and the run writes it again").get("class_names") if model.exists() else ()
        for then, now in zip(known or (), class_names, strict=False):
            if then != now:
                raise UsageError(
                    f"config.data: '{now}' is not the name of a class that the run in {self.path} began with, which "
                    f"was '{then}'; use the same data, or a new --workdir"
                )
        before = read_environment(self.path)["data"]
        for part, now in data.items():
            was = before.get(part, now)
            if was["sha256"] != now["sha256"]:
                raise UsageError(
                    f"config.data.{part}: these are not the images that the run in {self.path} began with (hash "
                    f"{was['sha256']} then, {now['sha256']} now); use the same data, or a new --workdir"
                )

    def write_environment(self, data: Mapping[str, Split]) -> None:
        """Adds this start to environment.json; `data` are the fingerprints of the splits, checked by `check_data`."""
        starts = read_environment(self.path)["starts"]
        self._write("environment.json", {"data": dict(data), "starts": [*starts, describe_environment()]})

    def write_result(self, result: Result) -> None:
        """Writes result.json, which marks the run as finished."""
        self._write("result.json", result)

    def _write(self, name: str, value: object) -> None:
        if self.writes:
            write_json(self.path / name, value, with_checksum=True)

    def close(self) -> None:
        """Unlocks the folder and removes the lock file of an empty folder; a second call does nothing."""
        if self._lock:
            with contextlib.suppress(OSError):
                own = self.path / ".lock"
                others = [path for path in self.path.iterdir() if path != own]
                if not any(path.is_file() or any(path.iterdir()) for path in others):
                    for path in others:  # else the folder would count as one with other files
                        path.rmdir()
                    own.unlink()  # the run was refused before it began
            self._lock.close()


def finished_result(path: Path, config: ConfigDict) -> Result | None:
    """Returns the result if `path` is the folder of a finished run of this config; else None.

    Raises:
      UsageError: a file is damaged.
    """
    if not (path / "result.json").exists() or differences(read_config(path), config):
        return None
    return read_result(path)


# Keys of a result that verbs read, and their types.
_RESULT = {
    "test": dict,
    "validation": dict,
    "params": int,
    "steps": int,
    "best_epoch": int,
    "stopped_early": bool,
    "seconds": dict,
}
_MEASURED = {"top1": 1.0, "top5": 1.0, "loss": math.inf, "count": math.inf}  # and the largest that each can be


def read_result(path: Path) -> Result:
    """Reads result.json of a finished run.

    Raises:
      UsageError: it is damaged or not a result.
    """
    remedy = "it is damaged: delete it, and `jaxvit train` measures the finished training again"
    file = path / "result.json"
    found = read_json(file, remedy, expects_checksum=True)
    require(isinstance(found, dict), file, "it holds no result", remedy)
    for name, kind in _RESULT.items():
        right = type(found.get(name)) is kind and (kind is not int or found[name] >= 0)
        require(right, file, f"it holds no '{name}'", remedy)
    test, seconds = found["test"], found["seconds"]
    numbers = {f"test.{name}": (test.get(name), most) for name, most in _MEASURED.items() if test}
    numbers["seconds.train"] = seconds.get("train"), math.inf
    if "std" in test:
        spread = test["std"].get("top1") if isinstance(test["std"], dict) else None
        numbers |= {"test.n": (test.get("n"), math.inf), "test.std.top1": (spread, 1.0)}
    for name, (value, most) in numbers.items():
        require(is_number(value, 0, most), file, f"'{name}' is no number that it can be", remedy)
    require("weights_of" in found or "seeds" in found, file, "it does not say which weights it is of", remedy)
    return found


def read_environment(path: Path) -> Environment:
    """Reads environment.json: `data`, the fingerprints of the splits, and `starts`; both empty without the file.

    Raises:
      UsageError: it is damaged.
    """
    remedy = "it is damaged: delete it, and the run resumes with the current images without comparing them"
    file = path / "environment.json"
    if not file.exists():
        return {"data": {}, "starts": []}
    found = read_json(file, remedy, expects_checksum=True)
    whole = isinstance(found, dict) and isinstance(found.get("data"), dict) and isinstance(found.get("starts"), list)
    require(whole, file, "it does not hold 'data' and 'starts'", remedy)
    for part, facts in found["data"].items():
        require(isinstance(facts, dict) and "sha256" in facts, file, f"'data.{part}' is no fingerprint", remedy)
    return cast(Environment, found)


def read_config(path: Path) -> ConfigDict:
    """Reads the config of a run folder; absent keys get their defaults.

    Raises:
      UsageError: config.json is missing or damaged.
    """
    file, remedy = path / "config.json", "it is damaged, or this folder has no run: use a new --workdir"
    found = read_json(file, remedy, expects_checksum=True)
    found = found if isinstance(found, dict) else {}
    plain = found.get("config")
    require(isinstance(plain, dict), file, "it has no config", remedy)
    extensions = found.get("extensions", [])
    right = isinstance(extensions, list) and all(isinstance(one, dict) for one in extensions)
    require(right, file, "its 'extensions' are none", remedy)
    plain = cast(dict[str, object], plain)
    for section in dict.fromkeys(key.partition(".")[0] for key in KEYS if "." in key):
        right = isinstance(plain.get(section, {}), dict)
        require(right, file, f"config.{section} is no section", remedy)
    model = plain.get("model")
    named = isinstance(model, dict) and isinstance(model.get("name"), str)
    require(named, file, "there is no key config.model.name", remedy)
    try:
        config = complete(from_plain(plain))
        for key, value in flatten(config):
            check_value(key, value)
        return config
    except (KeyError, TypeError, ValueError, UsageError) as error:  # names that no config can have
        raise UsageError(f"{file} cannot be read ({first_line(error)}); {remedy}") from None


def checkpoint_folder(path: Path) -> Path:
    """Returns the folder of a run's checkpoints; it does not exist before the training starts."""
    return path / "checkpoints"


def seed_folders(path: Path) -> list[Path]:
    """Returns the folders of the single seeds or folds in a run of several, sorted by number."""
    found = [p for p in path.glob("[sf][eo][el]d_*") if p.is_dir() and _OF_SEVERAL.fullmatch(p.name)]
    return sorted(found, key=lambda p: (p.name.partition("_")[0], int(p.name.partition("_")[2])))


_OF_SEVERAL = re.compile(r"(seed|fold)_\d+", re.ASCII)


def refuse_seeds(path: Path) -> None:
    """Raises UsageError if `path` is the folder of a run of several seeds or folds."""
    if seeds := seed_folders(path):
        kind = seeds[0].name.partition("_")[0]
        raise UsageError(f"{path} holds a run for each of {len(seeds)} {kind}s; name one, such as {seeds[0]}")
