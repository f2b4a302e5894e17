"""A row of the documents' table as runs: its config, its training, and the line of results.csv that comes of it."""

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
from jaxvit.config.overrides import set_dtype
from jaxvit.data.batches import TrainBatches
from jaxvit.devices import hardware
from jaxvit.errors import RunFailedError, UsageError
from jaxvit.files import read_json, write_json
from jaxvit.models.count import count_macs, count_params
from jaxvit.reproduce.rows import Row
from jaxvit.reproduce.table import COLUMNS, form_of, how, is_full, is_whole, metrics_name
from jaxvit.run.environment import source_commit
from jaxvit.run.folder import read_config, read_environment
from jaxvit.run.train import train
from jaxvit.speed.subject import make_subject
from jaxvit.trained.evaluate import evaluate_source, read_split
from jaxvit.trained.load import load
from jaxvit.training.journal import deciding_validations, read_jsonl
from jaxvit.training.stopping import StopRequest

STEP_BATCH = 12  # images of a step on random images
LINE = "line.json"  # in the folder of a finished run: its line of results.csv

# Lengths of a config that a short form shortens with it; shares of the training shorten by themselves.
_LENGTHS = ("optim.warmup", "optim.length", "optim.cooldown", "augment.mix_until")


@dataclass(frozen=True)
class Way:
    """How rows are run.

    Attributes:
      configs: folder of config files.
      runs: folder for the runs.
      epochs: a short form of so many; 0 = each row's own, as is that of a row that has no more.
      dtype: of the computation; '' = the config's own.
      together: all seeds of a row as one run, which an accelerator trains in one program; else one after the other.
      stop: what may stop or hold a run, as `jaxvit.train` takes it.
    """

    configs: Path
    runs: Path
    epochs: int = 0
    dtype: str = ""
    together: bool = False
    stop: StopRequest | None = None


def folder_of(row: Row, way: Way) -> Path:
    """Where the folders of a row's seeds lie, each 'seed_K'."""
    folder = way.runs / row.name
    if not is_full(form_of(row, way.epochs, way.dtype)):
        folder /= f"{way.epochs}_epochs"
    return folder / way.dtype


def config_of(row: Row, way: Way) -> ConfigDict:
    """A row's config as it is run.

    Raises:
      UsageError: there is no such config, or it cannot be run so.
    """
    config = load_config_file(str(way.configs / row.config))
    set_dtype(config, way.dtype)
    if row.steps:
        return config
    epochs = min(way.epochs or row.epochs, row.epochs)
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
    lines: Sequence[dict[str, str]], rows: Mapping[str, Row], configs: Path
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The lines of recipes and seeds that the rows have today, and those that are not: a row or config was changed.

    Raises:
      UsageError: a config cannot be read.
    """
    recipes: dict[tuple[str, str], str] = {}
    for name, form in dict.fromkeys((line["row"], line["form"]) for line in lines):
        epochs, dtype = how(form)
        if name in rows and form_of(rows[name], epochs, dtype) == form:
            with contextlib.suppress(UsageError) if dtype else contextlib.nullcontext():  # its model may have none now
                recipes[name, form] = recipe_of(config_of(rows[name], Way(configs, Path(), epochs, dtype)))
    sorted_out: tuple[list[dict[str, str]], list[dict[str, str]]] = ([], [])
    for line in lines:
        known = line["recipe"] == recipes.get((line["row"], line["form"]))
        sorted_out[not known or int(line["seed"]) not in rows[line["row"]].seeds].append(line)
    return sorted_out


def run_row(row: Row, seeds: Sequence[int], way: Way) -> Iterator[tuple[dict[str, Any], Path | None]]:
    """Trains a row with each seed, or goes on, or takes what is finished; yields its lines of results.csv.

    Beside each line is the run's folder; None for a row of steps, which has none.

    Raises:
      UsageError, RunFailedError, StoppedError: as `jaxvit.train`; and a folder that holds a run of another config.
    """
    config, form = config_of(row, way), form_of(row, way.epochs, way.dtype)
    with hardware.device_errors({"--dtype=bfloat16, now": config.model.get("dtype", "not there")}):
        yield from _lines(row, seeds, way, config, form)


def _lines(
    row: Row, seeds: Sequence[int], way: Way, config: ConfigDict, form: str
) -> Iterator[tuple[dict[str, Any], Path | None]]:
    if row.steps:
        print(f"{row.name}: {row.config}, {form}", flush=True)
        yield _take_steps(row, config, form), None
        return
    folder = folder_of(row, way)
    if way.together and len(seeds) > 1:
        config.seeds = tuple(seeds)
        folder /= f"seeds_{'_'.join(map(str, seeds))}"
        _refuse_another(folder, config)
        for result in train(config, folder, stop=way.stop)["seeds"]:
            run = folder / f"seed_{result['seed']}"
            yield _kept_line(row, form, config, result["seed"], result, run), run
        return
    for seed in seeds:
        config.seed = seed
        print(f"{row.name}, seed {seed}: {row.config}", flush=True)
        run = folder / f"seed_{seed}"
        _refuse_another(run, config)
        yield _kept_line(row, form, config, seed, train(config, run, stop=way.stop), run), run


def _refuse_another(run: Path, config: ConfigDict) -> None:
    """A longer run is another one too: of a row's runs each is as long as it says from the start.

    Raises:
      UsageError: the folder holds a run of another config.
    """
    if not (run / "config.json").exists():
        return
    changed = [
        f"{key}: {old!r} there, {new!r} here" for key, (old, new) in differences(read_config(run), config).items()
    ]
    if read_json(run / "config.json").get("extensions"):
        changed.append("it was taken further than it was meant to go")
    if changed:
        raise UsageError(
            f"{run}: holds a run of another config ({changed[0]}); move it away, or name another folder with --runs"
        )


def _take_steps(row: Row, config: ConfigDict, form: str) -> dict[str, Any]:
    """Takes a recipe's steps on random images, as its model, augmentation and optimizer have it; its line.

    Raises:
      RunFailedError: loss, gradients or parameters are not finite, nothing is learned, or the device fails.
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
        raise RunFailedError(f"{row.config}: not all of step {row.steps} is finite: {last}")
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
    said = [device, "1 core" if cores == "1" else f"{cores} cores"]
    said += [f"{number} {what}" for number, what in ((devices, "devices"), (processes, "processes")) if number > 1]
    return ", ".join(said)


def _versions(jax_version: str, python: str) -> str:
    return f"jax {jax_version}, Python {python}"


def _multiply_adds(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    return count_macs(model, input_shape)["all"]


def _kept_line(
    row: Row, form: str, config: ConfigDict, seed: int, result: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """A finished run's line, and kept in its folder: then it needs no checkpoint any more."""
    of_run = {"row": row.name, "form": form, "seed": seed, "config_hash": result["config_hash"], "weights": row.weights}
    file = folder / LINE
    kept = read_json(file, "delete it, and the run is measured again") if file.exists() else None
    mine = isinstance(kept, dict) and set(kept) == set(COLUMNS) and of_run.items() <= kept.items()
    if mine and is_whole({name: str(value) for name, value in kept.items()}):
        return kept
    line = _line(row, form, config, seed, result, folder)
    write_json(folder / LINE, line, with_checksum=True)
    return line


def _line(row: Row, form: str, config: ConfigDict, seed: int, result: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A finished run's line; measures its last weights where the row asks for these."""
    measured = result["test"]
    loaded = load(folder, checkpoint=row.weights, weights="model" if row.weights == "latest" else "chosen")
    if row.weights == "latest":
        _, source = read_split(loaded, "test")
        found, _ = evaluate_source(loaded, source)
        measured = found | found["keras"]  # the precision and recall that a run's own test has
    environment = read_environment(folder)
    records = read_jsonl(folder / "metrics.jsonl")
    validations = [record["top1"] for record in deciding_validations(records)]
    line = {
        "row": row.name,
        "form": form,
        "recipe": recipe_of(config),
        "config_hash": result["config_hash"],
        "seed": seed,
        "n": measured["count"],
        **{name: round(measured[name], 6) for name in ("top1", "top5", "loss", "precision", "recall")},
        "validation": round(max(validations), 6) if validations else "",
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
