"""A row of the documents' table as runs: its config, its training, and the line of results.csv that comes of it."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn
from ml_collections import ConfigDict

from jaxvit.config import config_hash, load_config_file
from jaxvit.data.batches import TrainBatches
from jaxvit.errors import RunFailedError, UsageError
from jaxvit.evaluate import evaluate, read_split
from jaxvit.loading import load
from jaxvit.models.count import count_macs, count_params
from jaxvit.row_results import COLUMNS, form_of, is_full
from jaxvit.rows import Row
from jaxvit.run_directory import read_environment, source_commit
from jaxvit.subject import make_subject
from jaxvit.train import train
from jaxvit.training import hardware
from jaxvit.training.journal import read_jsonl

STEP_BATCH = 12  # images of a step on random images

# Lengths of a config that a short form shortens with it; shares of the training shorten by themselves.
_LENGTHS = ("optim.warmup", "optim.length", "optim.cooldown", "augment.mix_until")


@dataclass(frozen=True)
class Way:
    """How rows are run.

    Attributes:
      configs: folder of config files.
      runs: folder for the runs.
      epochs: a short form of so many; 0 = each row's own.
      dtype: of the computation; '' = the config's own.
      together: all seeds of a row as one run, which an accelerator trains in one program; else one after the other.
    """

    configs: Path
    runs: Path
    epochs: int = 0
    dtype: str = ""
    together: bool = False


def config_of(row: Row, way: Way) -> ConfigDict:
    """A row's config as it is run.

    Raises:
      UsageError: there is no such config, or it cannot be run so.
    """
    config = load_config_file(str(way.configs / row.config))
    if way.dtype:
        if "dtype" not in config.model:
            raise UsageError(f"--dtype={way.dtype}: {config.model.name} has no attribute dtype; leave it out")
        config.model.dtype = way.dtype
    if row.steps:
        return config
    config.train.duration = f"{way.epochs or row.epochs} epochs"
    if way.epochs:
        for key in _LENGTHS:
            section, _, leaf = key.partition(".")
            number, _, unit = config[section][leaf].partition(" ")
            if unit:
                shorter = float(number) * way.epochs / row.epochs
                config[section][leaf] = f"{round(shorter) if unit.startswith('step') else shorter:g} {unit}"
    return config


def run_row(row: Row, seeds: Sequence[int], way: Way) -> Iterator[tuple[dict[str, Any], Path | None]]:
    """Trains a row with each seed, or goes on, or takes what is finished; yields its lines of results.csv.

    Beside each line is the run's folder; None for a row of steps, which has none.

    Raises:
      UsageError, RunFailedError, StoppedError: as `jaxvit.train`.
    """
    config, form = config_of(row, way), form_of(row, way.epochs, way.dtype)
    if row.steps:
        print(f"{row.name}: {row.config}, {form}", flush=True)
        yield _take_steps(row, config), None
        return
    folder = way.runs / row.name
    if not is_full(form):
        folder /= f"{way.epochs}_epochs"
    folder /= way.dtype
    if way.together and len(seeds) > 1:
        config.seeds = tuple(seeds)
        folder /= f"seeds_{'_'.join(map(str, seeds))}"
        for result in train(config, folder)["seeds"]:
            run = folder / f"seed_{result['seed']}"
            yield _line(row, form, config, result["seed"], result, run), run
        return
    for seed in seeds:
        config.seed = seed
        print(f"{row.name}, seed {seed}: {row.config}", flush=True)
        run = folder / f"seed_{seed}"
        yield _line(row, form, config, seed, train(config, run), run), run


def _take_steps(row: Row, config: ConfigDict) -> dict[str, Any]:
    """Takes a recipe's steps on random images, as its model, augmentation and optimizer have it; its line.

    Raises:
      RunFailedError: the loss is not finite, or the device fails.
    """
    of_recipe = {"recipe": recipe_of(config), "config_hash": config_hash(config)}
    config.train.batch_size = STEP_BATCH
    subject = make_subject(config, synthetic=True)
    assembly, started = subject.assembly, time.monotonic()
    state = jax.jit(assembly.create_state)(assembly.init_key())
    params = count_params(state.variables)
    batches = TrainBatches(subject.dataset.read(subject.plan.data.train), STEP_BATCH, subject.plan.seed)
    step = jax.jit(assembly.train_step(), donate_argnums=0).lower(state, dict(batches[0])).compile()
    compiled = time.monotonic()
    for i in range(row.steps):
        state, sums = step(state, dict(batches[i]))
    loss = float(sums["loss"] / sums["count"])
    if not math.isfinite(loss):
        raise RunFailedError(f"{row.config}: the loss of step {row.steps} is {loss}")
    seconds = {"compile": compiled - started, "train": time.monotonic() - compiled}
    return {
        **dict.fromkeys(COLUMNS, ""),
        "row": row.name,
        "form": form_of(row),
        **of_recipe,
        "seed": subject.plan.seed,
        "n": 0,
        "loss": round(loss, 6),
        "params": params,
        "multiply_adds": _multiply_adds(assembly.model, subject.plan.input_shape),
        **{f"{kind}_seconds": round(value, 3) for kind, value in seconds.items()},
        "hardware": _hardware(hardware.device_name(), hardware.machine()["cores"]),  # the step is of one device
        "versions": _versions(importlib.metadata.version("jax"), platform.python_version()),
        "commit": source_commit(),
        "date": datetime.date.today().isoformat(),
    }


def recipe_of(config: ConfigDict) -> str:
    """The config's hash without its seed: the same for runs that may be averaged."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.seed, config.seeds = 0, ()
    return config_hash(config)


def _hardware(device: str, cores: str, devices: int = 1, processes: int = 1) -> str:
    """Such as 'AMD EPYC, 2 cores' or 'NVIDIA H100, 16 cores, 8 devices, 2 processes'; cores are of one process. Runs
    are averaged, and their times compared, where this is the same.
    """
    said = [device, f"{cores} cores"]
    said += [f"{number} {what}" for number, what in ((devices, "devices"), (processes, "processes")) if number > 1]
    return ", ".join(said)


def _versions(jax_version: str, python: str) -> str:
    return f"jax {jax_version}, Python {python}"


def _multiply_adds(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    return count_macs(model, input_shape)["all"]


def _line(row: Row, form: str, config: ConfigDict, seed: int, result: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A finished run's line; measures its last weights where the row asks for these."""
    measured = result["test"]
    loaded = load(folder, checkpoint=row.weights, weights="model" if row.weights == "latest" else "chosen")
    if row.weights == "latest":
        _, source = read_split(loaded, "test")
        found, _ = evaluate(loaded, source)
        measured = found | found["keras"]  # the precision and recall that a run's own test has
    environment = read_environment(folder)
    return {
        "row": row.name,
        "form": form,
        "recipe": recipe_of(config),
        "config_hash": result["config_hash"],
        "seed": seed,
        "n": measured["count"],
        **{name: round(measured[name], 6) for name in ("top1", "top5", "loss", "precision", "recall")},
        "epochs": round(max(record["epoch"] for record in read_jsonl(folder / "metrics.jsonl")), 3),
        "weights": row.weights,
        "params": result["params"],
        "multiply_adds": _multiply_adds(loaded.model, loaded.input_shape),
        **{f"{kind}_seconds": result["seconds"][kind] for kind in ("compile", "train", "eval", "save")},
        "data": "/".join(about["sha256"] for about in environment["data"].values()),
        **circumstances(environment["starts"]),
    }


def circumstances(starts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Where and by what a run was trained: of all its starts, joined by ' + ' where they differ."""

    def each(tell: Callable[[Mapping[str, Any]], str]) -> str:
        return " + ".join(dict.fromkeys(tell(start) for start in starts))

    def where(start: Mapping[str, Any]) -> str:
        counts = len(start.get("devices", ())), start.get("processes", 1)
        return _hardware(start.get("device", "?"), start.get("cores", "?"), *counts)

    return {
        "hardware": each(where),
        "versions": each(lambda start: _versions(start["packages"]["jax"], start["python"])),
        "commit": each(lambda start: start.get("commit", "")),
        "date": starts[-1]["time"].partition("T")[0] if starts else "",
    }
