"""Runs a row: builds its config, trains it, and makes its line of results.csv."""

from __future__ import annotations

import contextlib
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

from jaxvit.config.files import load_config_file
from jaxvit.config.identity import config_hash, differences
from jaxvit.config.keys import set_value
from jaxvit.config.overrides import parse_overrides, set_dtype
from jaxvit.data.batches import TrainBatches
from jaxvit.devices import hardware
from jaxvit.errors import RunFailedError, UsageError
from jaxvit.files import read_json, write_json
from jaxvit.models.count import count_macs, count_params
from jaxvit.reproduce.rows import TableRow
from jaxvit.reproduce.table import COLUMNS, form_of, how, is_full, is_whole, metrics_name
from jaxvit.run.environment import source_commit
from jaxvit.run.folder import read_config, read_environment
from jaxvit.run.train import train
from jaxvit.speed.subject import make_subject
from jaxvit.trained.evaluate import evaluate_source, read_split
from jaxvit.trained.load import load
from jaxvit.training.journal import deciding_validations, read_jsonl
from jaxvit.training.stopping import StopRequest

STEP_BATCH = 12  # batch size of steps on random images
LINE = "line.json"  # in the folder of a finished run; its line of results.csv

# Durations that a short form scales down; durations given as a fraction of training scale by themselves.
_LENGTHS = ("optim.warmup", "optim.length", "optim.cooldown", "augment.mix_until")


@dataclass(frozen=True)
class RunSettings:
    """Settings for running rows.

    Attributes:
      configs: folder of config files.
      runs: folder for the runs.
      epochs: epochs of a short form; 0 = each row's own. A row with fewer epochs runs in full.
      dtype: compute dtype; '' = from the config.
      together: train all seeds of a row in one program, for accelerators; otherwise one after the other.
      stop: stop request, as in `jaxvit.train`.
    """

    configs: Path
    runs: Path
    epochs: int = 0
    dtype: str = ""
    together: bool = False
    stop: StopRequest | None = None


def folder_of(row: TableRow, settings: RunSettings) -> Path:
    """The folder of a row's runs, with a subfolder 'seed_K' for each seed."""
    folder = settings.runs / row.name
    if not is_full(form_of(row, settings.epochs, settings.dtype)):
        folder /= f"{settings.epochs}_epochs"
    return folder / settings.dtype


def config_of(row: TableRow, settings: RunSettings) -> ConfigDict:
    """The config of a row with these settings.

    Raises:
      UsageError: there is no such config, or the settings do not apply to it.
    """
    config = load_config_file(str(settings.configs / row.config))
    config, _, _ = parse_overrides(config, [f"--config.{override}" for override in row.overrides])
    if row.trial_of:
        set_value(config, "data.test", "")  # a trial chooses a recipe, so it must not see test images
    set_dtype(config, settings.dtype)
    if row.steps:
        return config
    epochs = min(settings.epochs or row.epochs, row.epochs)
    config.train.duration = f"{epochs} epochs"
    if epochs < row.epochs:
        for key in _LENGTHS:
            section, _, leaf = key.partition(".")
            number, _, unit = config[section][leaf].partition(" ")
            if unit:
                shorter = float(number) * epochs / row.epochs
                config[section][leaf] = f"{round(shorter) if unit.startswith('step') else shorter:g} {unit}"
    return config


def sort_out(
    lines: Sequence[dict[str, str]], rows: Mapping[str, TableRow], configs: Path
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Splits lines into (current, outdated). A line is outdated if its row, recipe or seed has changed since.

    Raises:
      UsageError: a config cannot be read.
    """
    recipes: dict[tuple[str, str], str] = {}
    for name, form in dict.fromkeys((line["row"], line["form"]) for line in lines):
        epochs, dtype = how(form)
        if name in rows and form_of(rows[name], epochs, dtype) == form:
            with (
                contextlib.suppress(UsageError) if dtype else contextlib.nullcontext()
            ):  # the model may no longer have a dtype
                recipes[name, form] = recipe_of(config_of(rows[name], RunSettings(configs, Path(), epochs, dtype)))
    sorted_out: tuple[list[dict[str, str]], list[dict[str, str]]] = ([], [])
    for line in lines:
        known = line["recipe"] == recipes.get((line["row"], line["form"]))
        sorted_out[not known or int(line["seed"]) not in rows[line["row"]].seeds].append(line)
    return sorted_out


def run_row(row: TableRow, seeds: Sequence[int], settings: RunSettings) -> Iterator[tuple[dict[str, Any], Path | None]]:
    """Trains a row with each seed, resuming or reusing existing runs.

    Yields:
      (line of results.csv, folder of the run); the folder is None for a row of steps.

    Raises:
      UsageError, RunFailedError, StoppedError: see `jaxvit.train`; also if a folder holds a run with another config.
    """
    config, form = config_of(row, settings), form_of(row, settings.epochs, settings.dtype)
    with hardware.device_errors({"--dtype=bfloat16, now": config.model.get("dtype", "not there")}):
        yield from _lines(row, seeds, settings, config, form)


def _lines(
    row: TableRow, seeds: Sequence[int], settings: RunSettings, config: ConfigDict, form: str
) -> Iterator[tuple[dict[str, Any], Path | None]]:
    if row.steps:
        print(f"{row.name}: {row.config}, {form}", flush=True)
        yield _take_steps(row, config, form), None
        return
    folder = folder_of(row, settings)
    if settings.together and len(seeds) > 1:
        config.seeds = tuple(seeds)
        folder /= f"seeds_{'_'.join(map(str, seeds))}"
        _refuse_another(folder, config)
        for result in train(config, folder, stop=settings.stop)["seeds"]:
            run = folder / f"seed_{result['seed']}"
            yield _kept_line(row, form, config, result["seed"], result, run), run
        return
    for seed in seeds:
        config.seed = seed
        print(f"{row.name}, seed {seed}: {row.config}", flush=True)
        run = folder / f"seed_{seed}"
        _refuse_another(run, config)
        yield _kept_line(row, form, config, seed, train(config, run, stop=settings.stop), run), run


def _refuse_another(run: Path, config: ConfigDict) -> None:
    """Refuses a folder with a run of another config, or one that was extended beyond the row's duration.

    Raises:
      UsageError: the folder holds such a run.
    """
    if not (run / "config.json").exists():
        return
    changed = [
        f"{key}: {old!r} there, {new!r} here" for key, (old, new) in differences(read_config(run), config).items()
    ]
    if read_json(run / "config.json").get("extensions"):
        changed.append("it was extended after it had finished")
    if changed:
        raise UsageError(
            f"{run}: contains a run with another config ({changed[0]}); move it, or name another folder with --runs"
        )


def _take_steps(row: TableRow, config: ConfigDict, form: str) -> dict[str, Any]:
    """Runs the row's training steps on random images; returns its line of results.csv.

    Raises:
      RunFailedError: loss, gradients or parameters are not finite, no parameter changes, or the device fails.
    """
    of_recipe = {"recipe": recipe_of(config), "config_hash": config_hash(config)}
    config.train.batch_size = STEP_BATCH
    subject = make_subject(config, synthetic=True)
    assembly, started = subject.assembly, time.monotonic()
    source = subject.dataset.read(subject.plan.data.train)
    state = jax.jit(assembly.create_state)(assembly.init_key(), assembly.measure(source))
    params = count_params(state.variables)
    numbered = subject.plan.augment.alternates
    batches = TrainBatches(source, STEP_BATCH, subject.plan.seed, numbered=numbered)
    step = jax.jit(assembly.train_step, donate_argnums=0).lower(state, dict(batches[0])).compile()
    compiled = time.monotonic()
    for i in range(row.steps):
        state, sums = step(state, dict(batches[i]))
    last = {name: float(sums[name]) for name in ("loss", "count", "gradient_norm", "update_norm", "parameter_norm")}
    if not all(math.isfinite(value) for value in last.values()):
        raise RunFailedError(f"{row.config}: step {row.steps} is not finite: {last}")
    if not (last["gradient_norm"] and last["update_norm"]):
        raise RunFailedError(f"{row.config}: step {row.steps} changes no parameter: {last}")
    seconds = {"compile": compiled - started, "train": time.monotonic() - compiled}
    return {
        **dict.fromkeys(COLUMNS, ""),
        "row": row.name,
        "form": form,
        **of_recipe,
        "seed": subject.plan.seed,
        "n": 0,
        "loss": round(last["loss"] / last["count"], 6),
        "params": params,
        "multiply_adds": _multiply_adds(assembly.model, subject.plan.input_shape),
        **{f"{kind}_seconds": round(value, 3) for kind, value in seconds.items()},
        "hardware": hardware_of(hardware.device_name(), hardware.machine()["cores"]),  # the step runs on one device
        "versions": versions_of(importlib.metadata.version("jax"), platform.python_version()),
        "commit": source_commit(),
        "date": datetime.date.today().isoformat(),
    }


def recipe_of(config: ConfigDict) -> str:
    """Hash of the config without its seed; runs with the same recipe can be averaged."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.seed, config.seeds = 0, ()
    return config_hash(config)


def hardware_of(device: str, cores: str, devices: int = 1, processes: int = 1) -> str:
    """A description such as 'AMD EPYC, 2 cores' or 'NVIDIA H100, 16 cores, 8 devices, 2 processes' (cores per process).

    Only runs on equal hardware are averaged and compared in speed.
    """
    said = [device, "1 core" if cores == "1" else f"{cores} cores"]
    said += [f"{number} {what}" for number, what in ((devices, "devices"), (processes, "processes")) if number > 1]
    return ", ".join(said)


def versions_of(jax_version: str, python: str) -> str:
    return f"jax {jax_version}, Python {python}"


def _multiply_adds(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    return count_macs(model, input_shape)["all"]


def _kept_line(
    row: TableRow, form: str, config: ConfigDict, seed: int, result: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """The line of a finished run. It is stored in the run folder, so that the checkpoints are no longer needed."""
    of_run = {"row": row.name, "form": form, "seed": seed, "config_hash": result["config_hash"], "weights": row.weights}
    file = folder / LINE
    kept = read_json(file, "delete it to measure the run again") if file.exists() else None
    mine = isinstance(kept, dict) and set(kept) == set(COLUMNS) and of_run.items() <= kept.items()
    if mine and is_whole({name: str(value) for name, value in kept.items()}):
        return kept
    line = _line(row, form, config, seed, result, folder)
    write_json(folder / LINE, line, with_checksum=True)
    return line


def _line(
    row: TableRow, form: str, config: ConfigDict, seed: int, result: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """Makes the line of a finished run; tests the last weights if the row reports them."""
    environment = read_environment(folder)
    records = read_jsonl(folder / "metrics.jsonl")
    validations = deciding_validations(records)
    measured = max(validations, key=lambda record: record["top1"]) if row.trial_of else result["test"]
    loaded = load(folder, checkpoint=row.weights, weights="model" if row.weights == "latest" else "chosen")
    if row.weights == "latest":
        _, source = read_split(loaded, "test")
        found, _ = evaluate_source(loaded, source)
        measured = found | found["keras"]  # precision and recall as in training
    line = {
        "row": row.name,
        "form": form,
        "recipe": recipe_of(config),
        "config_hash": result["config_hash"],
        "seed": seed,
        "n": measured["count"],
        **{name: round(measured[name], 6) for name in ("top1", "top5", "loss", "precision", "recall")},
        "validation": round(max(record["top1"] for record in validations), 6) if validations else "",
        "epochs": round(max(record["epoch"] for record in records), 3),
        "weights": row.weights,
        "params": result["params"],
        "multiply_adds": _multiply_adds(loaded.model, loaded.input_shape),
        **{f"{kind}_seconds": result["seconds"][kind] for kind in ("compile", "train", "eval", "save")},
        "data": "/".join(about["sha256"] for about in environment["data"].values()),
        **circumstances(environment["starts"]),
    }
    return line | {"metrics": metrics_name(line)}


def circumstances(starts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Hardware, versions, commit and date of a run; if its starts differ, the values are joined by ' + '."""

    def each(tell: Callable[[Mapping[str, Any]], str]) -> str:
        return " + ".join(dict.fromkeys(tell(start) for start in starts))

    def where(start: Mapping[str, Any]) -> str:
        counts = len(start.get("devices", ())), start.get("processes", 1)
        return hardware_of(start.get("device", "?"), start.get("cores", "?"), *counts)

    return {
        "hardware": each(where),
        "versions": each(lambda start: versions_of(start["packages"]["jax"], start["python"])),
        "commit": each(lambda start: start.get("commit", "")),
        "date": starts[-1]["time"].partition("T")[0] if starts else "",
    }
