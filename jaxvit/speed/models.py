"""Measures one model in this process, or several models in a process each, and records machine, versions and date."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxvit import errors
from jaxvit._version import __version__
from jaxvit.devices import hardware
from jaxvit.errors import RunFailedError, UsageError
from jaxvit.files import INSTALLED_IN
from jaxvit.shown import terminal
from jaxvit.speed.steps import Effort, measure
from jaxvit.speed.subject import make_subject

PACKAGES = ("jax", "jaxlib", "flax", "optax")


def measure_one(
    config: ConfigDict,
    effort: Effort,
    *,
    overrides: Mapping[str, Any] | None = None,
    synthetic: bool = False,
    origin: str = "config",
    trace: Path | None = None,
    reduce: str = "",
) -> dict[str, Any]:
    """Measures one model in this process.

    Args:
      config: config of a run.
      effort: how long to measure.
      overrides: {key: value} of the config keys set on the command line.
      synthetic, origin: see `jaxvit.speed.subject.make_subject`.
      trace: folder for a profile of some steps; None = no profile.
      reduce: see `jaxvit.speed.subject.make_subject`.

    Returns:
      The result of `jaxvit.speed.steps.measure`, with overrides, machine, versions and date.

    Raises:
      UsageError: see `make_subject`.
      RunFailedError: the device runs out of memory, or fails.
    """
    batch, model, overrides = config.train.batch_size, config.model, dict(overrides or {})
    subject = make_subject(config, overrides=overrides, synthetic=synthetic, origin=origin, reduce=reduce)
    settings = {
        "a smaller --batch, now": batch,
        "--dtype=bfloat16, now": model.get("dtype", "not there"),
        "--config.model.remat=full, now": model.get("remat", "not there"),
        "a larger --config.train.accumulate, now": config.train.accumulate,
    }
    with hardware.device_errors(settings):
        found = measure(subject, effort, trace)
    return found | {"overrides": overrides, **circumstances(*PACKAGES)}


def circumstances(*packages: str) -> dict[str, Any]:
    """The machine, the versions of jaxvit and of the installed ones among `packages`, and the date."""
    versions = {"jaxvit": __version__}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {"machine": hardware.machine(), "versions": versions, "date": datetime.date.today().isoformat()}


def measure_each(
    models: Iterable[str], words: Sequence[str] = (), *, trace: Path | None = None
) -> Iterator[tuple[str, dict[str, Any] | RunFailedError]]:
    """Measures models one after the other, each with `jaxvit benchmark` in a new process.

    Args:
      models: names of the models.
      words: further arguments of the command: flags and config overrides.
      trace: folder for profiles, with a subfolder for each model; None = no profiles.

    Yields:
      (model, result of `measure_one`), or (model, the error) if it could not be measured.

    Raises:
      UsageError: a flag or override does not apply to a model.
    """
    for model in models:
        own = [f"--trace={trace / model.replace(':', '.')}"] if trace else []
        try:
            found = _in_a_process([f"--model={model}", "--json", *words, *own], model)
        except RunFailedError as error:
            yield model, error
        else:
            yield model, found


def _in_a_process(words: Sequence[str], model: str) -> dict[str, Any]:
    paths = [str(INSTALLED_IN), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-P", "-m", "jaxvit", "benchmark", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode:
        why = said[-1].removeprefix("jaxvit: ") if said else f"ended with code {done.returncode}"
        raise UsageError(f"{model}: {why}") if done.returncode == errors.USAGE else RunFailedError(why)
    for line in said:
        print(terminal(f"{model}: {line}"), file=sys.stderr, flush=True)
    return json.loads(done.stdout.splitlines()[-1])
