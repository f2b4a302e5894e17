"""Several models measured one after the other, each in a process of its own."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import jaxvit
from jaxvit import errors
from jaxvit._version import __version__
from jaxvit.devices import hardware
from jaxvit.errors import RunFailedError, UsageError, first_line
from jaxvit.speed.page import in_ms, markdown, write_tables
from jaxvit.speed.steps import Effort, measure
from jaxvit.speed.subject import make_subject

PACKAGES = ("jax", "jaxlib", "flax", "optax")


def measure_one(
    config: ConfigDict, overrides: dict[str, Any], origin: str, options: argparse.Namespace
) -> dict[str, Any]:
    """All figures of one model, in this process, with what they were measured on."""
    batch, model = config.train.batch_size, config.model
    subject = make_subject(config, overrides=overrides, synthetic=options.synthetic, origin=origin)
    settings = {
        "a smaller --batch, now": batch,
        "--dtype=bfloat16, now": model.get("dtype", "not there"),
        "--config.model.remat=full, now": model.get("remat", "not there"),
        "a larger --config.train.accumulate, now": config.train.accumulate,
    }
    with _device_errors_explained(settings):
        effort = Effort(options.rounds, options.seconds)
        found = measure(subject, effort, Path(options.trace) if options.trace else None)
    return found | {"overrides": overrides, **circumstances(*PACKAGES)}


def circumstances(*packages: str) -> dict[str, Any]:
    """The machine, the versions of this package and of those of `packages` that are there, and the date."""
    versions = {"jaxvit": __version__}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {"machine": hardware.machine(), "versions": versions, "date": datetime.date.today().isoformat()}


@contextlib.contextmanager
def _device_errors_explained(settings: dict[str, object]) -> Iterator[None]:
    """Turns a device that fails, or has no memory left, into one line; the latter with the settings that help."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if hardware.is_out_of_memory(error):
            raise RunFailedError(hardware.explain_out_of_memory(error, settings)) from error
        raise RunFailedError(f"the device failed: {first_line(error)[:200]}") from error


def measure_each(options: argparse.Namespace, rest: Sequence[str], models: Sequence[str]) -> int:
    """Measures models one after the other, each in a process of its own; tables are written after each."""
    found: list[dict[str, Any]] = []
    failed, mistake = False, None
    for model in models:
        try:
            one = _in_a_process(options, rest, model)
        except UsageError as error:
            mistake = error
            break
        except RunFailedError as error:
            print(f"jaxvit: {model}: {error}", file=sys.stderr, flush=True)
            failed = True
            continue
        found.append(one)
        if options.json:
            print(json.dumps(one), flush=True)
        else:
            line = f"{model}: {in_ms(one['train_ms_per_step'])} a step, {one['images_per_s']:,.4g} images/s"
            print(line, file=sys.stderr, flush=True)
        if options.out:
            write_tables(found, Path(options.out))
    if found and not options.json:
        print(markdown(found), end="")
    if mistake:
        raise mistake
    return errors.SOME_INPUTS_FAILED if failed else errors.DONE


def _in_a_process(options: argparse.Namespace, rest: Sequence[str], model: str) -> dict[str, Any]:
    """The figures of one model.

    Raises:
      UsageError: what was asked for does not suit this model.
      RunFailedError: it could not be measured; the process's own line says why.
    """
    words = [f"--model={model}", "--json", f"--rounds={options.rounds}", f"--seconds={options.seconds}", *rest]
    words += [f"--batch={options.batch}"] if options.batch else []
    words += [f"--dtype={options.dtype}"] if options.dtype else []
    words += ["--synthetic"] if options.synthetic else []
    words += [f"--trace={Path(options.trace) / model.replace(':', '.')}"] if options.trace else []
    paths = [str(Path(jaxvit.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "jaxvit", "benchmark", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode:
        why = said[-1].removeprefix("jaxvit: ") if said else f"ended with code {done.returncode}"
        raise UsageError(f"{model}: {why}") if done.returncode == errors.USAGE else RunFailedError(why)
    for line in said:
        print(f"{model}: {line}", file=sys.stderr, flush=True)
    return json.loads(done.stdout.splitlines()[-1])
