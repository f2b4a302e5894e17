"""Transfer to few images, `jaxvit reproduce transfer`: fine-tuning against a probe and training from scratch.

`configs/transfer.py` has the recipes. Each cell is a run of `jaxvit train`, so that the same command skips finished
runs and resumes a stopped one; `transfer.csv` has a line for each cell, and `transfer.md` the table.
"""

from __future__ import annotations

import csv
import importlib.metadata
import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxvit.config.files import load_config_file
from jaxvit.config.keys import set_value
from jaxvit.config.plan import dataset_of
from jaxvit.config.reader import ConfigReader
from jaxvit.devices import hardware
from jaxvit.errors import UsageError
from jaxvit.files import check_regular, read_json, write_csv, write_json, write_text
from jaxvit.models.count import count_macs
from jaxvit.reproduce.results import Results
from jaxvit.reproduce.runs import circumstances, hardware_of, recipe_of, versions_of
from jaxvit.reproduce.table import writing
from jaxvit.run.environment import source_commit
from jaxvit.run.folder import read_environment
from jaxvit.run.train import train
from jaxvit.trained.intervals import student
from jaxvit.trained.load import load
from jaxvit.trained.probe import features_of, probe

TASKS = {"cifar100": "90 classes of CIFAR-100 to the ten left out", "fashion": "CIFAR-10 to Fashion-MNIST"}
MODELS = ("vit", "cct", "shiftvit")
SIZES = (10, 50, 450)  # training images of each class
WAYS = {
    "finetune": "fine-tuned",
    "probe": "linear probe",
    "scratch": "from scratch",
}
SEEDS = (0, 1, 2)
EXPERIMENT = "transfer"  # the name in `jaxvit reproduce transfer`
CONFIG = "transfer.py"
COLUMNS = (
    *("task", "model", "way", "per_class", "seed", "recipe", "n", "top1", "steps", "params", "multiply_adds"),
    *("train_seconds", "source", "hardware", "versions", "commit", "date"),
)


@dataclass(frozen=True)
class Cell:
    """A cell of the table with one seed, or the training that a task's other cells of a model start from.

    Attributes:
      task: a key of `TASKS`.
      model: one of `MODELS`.
      way: a key of `WAYS`, or 'pretrain'.
      per_class: training images of each class; 0 = all.
      seed: seed of the run and number of the draw of images: equal for all ways, which so are paired.
    """

    task: str
    model: str
    way: str
    per_class: int = 0
    seed: int = 0

    @property
    def name(self) -> str:
        """Its folder below that of the runs."""
        size = f"_{self.per_class}" if self.per_class else ""
        return f"{self.task}_{self.model}_{self.way}{size}/seed_{self.seed}"

    @property
    def source(self) -> Cell:
        """The cell that it starts from."""
        return Cell(self.task, self.model, "pretrain")

    def matches(self, line: Mapping[str, str]) -> bool:
        """Whether a line of transfer.csv is of this cell."""
        mine = (self.task, self.model, self.way, str(self.per_class), str(self.seed))
        return mine == tuple(line[name] for name in COLUMNS[:5])


def cells(seeds: int = 0, tasks: Sequence[str] = tuple(TASKS), models: Sequence[str] = MODELS) -> list[Cell]:
    """All cells in the order of their runs; `seeds` = the first so many, 0 = all."""
    found = []
    for task in tasks:
        for seed in SEEDS[: seeds or None]:
            for model in models:
                found += [Cell(task, model, "pretrain")] if seed == SEEDS[0] else []
                found += [Cell(task, model, way, size, seed) for size in SIZES for way in WAYS]
    return found


def config_of(cell: Cell, configs: Path, runs: Path) -> ConfigDict:
    """The config of a cell's run; that of a probe has the images to train and test on.

    Raises:
      UsageError: there is no such config.
    """
    way = "scratch" if cell.way == "probe" else cell.way
    spec = f"{configs / CONFIG}:{cell.task}_{cell.model}_{way}"
    config = load_config_file(spec)
    values: dict[str, object] = {"seed": cell.seed}
    if cell.per_class:
        values |= {"data.per_class": cell.per_class, "data.draw": cell.seed}
        values["train.duration"] = f"{_steps(configs)[cell.per_class]} steps"
    if cell.way == "finetune":
        values["init.from"] = str((runs / cell.source.name).absolute())
    for key, value in values.items():
        set_value(config, key, value)
    return config


def _steps(configs: Path) -> dict[int, int]:
    import runpy

    return runpy.run_path(str(configs / CONFIG))["STEPS"]


def transfer(found: Results, runs: Path, *, seeds: int = 0, run: bool = True) -> Iterator[str]:
    """Runs the cells that have not been run, and writes the table after each.

    Args:
      found: the folder of results, where transfer.csv and transfer.md are; and of configs, with transfer.py.
      runs: folder of the runs.
      seeds: number of seeds; 0 = all.
      run: whether to run them; else their results are listed.

    Yields:
      A line before each run, or for each cell of the list; at last, where the table is.

    Raises:
      UsageError, RunFailedError, StoppedError: see `jaxvit.train`.
    """
    if seeds > len(SEEDS):
        raise UsageError(f"--seeds={seeds}: {EXPERIMENT} has {len(SEEDS)}")
    todo, results, configs = cells(seeds), found.folder, found.configs
    if not run:
        yield from _listing(results, configs, runs, todo)
        return
    found.begin()
    recipes = {cell: _recipe(config_of(cell, configs, runs)) for cell in todo}
    valid = current(read_lines(results), configs, runs)
    done = {cell for cell in todo for line in valid if cell.matches(line)}
    # A pretrained model is needed until all cells that start from it are done.
    needed = {
        cell.source for cell in todo if cell not in done and not (runs / cell.source.name / "result.json").exists()
    }
    for number, cell in enumerate(todo, 1):
        if cell in done - needed:
            continue
        config, recipe = config_of(cell, configs, runs), recipes[cell]
        yield f"{number}/{len(todo)}: {cell.name}"
        line = _probe(cell, config, runs) if cell.way == "probe" else _train(cell, config, runs)
        jax.clear_caches()
        with writing(results):
            others = [old for old in read_lines(results) if not cell.matches(old)]
            if cell.way == "pretrain" and cell not in done:  # results of other trained models go with them
                others = [old for old in others if not _starts_from(old, cell)]
            lines = [*others, {name: str(value) for name, value in {**line, "recipe": recipe}.items()}]
            write_csv(results / "transfer.csv", COLUMNS, sorted(lines, key=_place))
            write_text(results / "transfer.md", page(lines, configs, runs))
    yield f"table: {results / 'transfer.md'}"


def _recipe(config: ConfigDict) -> str:
    """The recipe without the weights that it starts from, and without the draw of images."""
    config = config.copy_and_resolve_references()
    for key, value in {"init.from": "", "init.hash": "", "data.draw": 0}.items():
        set_value(config, key, value)
    return recipe_of(config)


def _train(cell: Cell, config: ConfigDict, runs: Path) -> dict[str, object]:
    folder = runs / cell.name
    result = train(config, folder)
    loaded = load(folder)
    return {
        **_of(cell),
        "n": result["test"]["count"],
        "top1": round(result["test"]["top1"], 6),
        "steps": result["steps"],
        "params": result["params"],
        "multiply_adds": count_macs(loaded.model, loaded.input_shape)["all"],
        "train_seconds": result["seconds"]["train"],
        "source": ConfigReader(loaded.config)("init.hash", str),
        **circumstances(read_environment(folder)["starts"]),
    }


def _probe(cell: Cell, config: ConfigDict, runs: Path) -> dict[str, object]:
    folder = runs / cell.name
    file = folder / "probe.json"
    source = runs / cell.source.name
    loaded = load(source)
    if not file.exists():
        dataset, get = dataset_of(config), ConfigReader(config)
        inside, outside = (dataset.read(get(f"data.{part}", str)) for part in ("train", "test"))
        found = probe("linear", features_of(loaded, inside), features_of(loaded, outside))
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, {**found.__dict__}, with_checksum=True)
    found = read_json(file, "delete it, and the probe is made again", expects_checksum=True)
    print(f"linear probe {found['top1']:.2%} of {found['count']:,} images", flush=True)
    return {
        **_of(cell),
        "n": found["count"],
        "top1": round(found["top1"], 6),
        "steps": 0,
        "params": found["features"] * found["classes"] + found["classes"],
        "multiply_adds": count_macs(loaded.model, loaded.input_shape)["all"],
        "train_seconds": "",
        "source": "",
        "hardware": hardware_of(hardware.device_name(), hardware.machine()["cores"]),
        "versions": versions_of(importlib.metadata.version("jax"), platform.python_version()),
        "commit": source_commit(),
        "date": circumstances(read_environment(source)["starts"])["date"],
    }


def _of(cell: Cell) -> dict[str, object]:
    return {"task": cell.task, "model": cell.model, "way": cell.way, "per_class": cell.per_class, "seed": cell.seed}


def _place(line: Mapping[str, str]) -> tuple[object, ...]:
    ways = ["pretrain", *WAYS]
    places = (list(TASKS).index(line["task"]), MODELS.index(line["model"]), ways.index(line["way"]))
    return (*places, int(line["per_class"]), int(line["seed"]))


def read_lines(results: Path) -> list[dict[str, str]]:
    """Reads transfer.csv; [] if there is none.

    Raises:
      UsageError: it is damaged.
    """
    file = results / "transfer.csv"
    if not file.exists():
        return []
    remedy = "put a copy of it back, or move it away"
    try:
        check_regular(file)
        with file.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            lines = list(reader)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise ValueError("its columns are not those of this version")
        for line in lines:
            if None in line or None in line.values() or not 0 <= float(line["top1"]) <= 1 or int(line["n"]) < 1:
                raise ValueError("a line is damaged")
            _place(line)
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"{file}: cannot be read ({error}); {remedy}") from None
    return lines


def current(lines: Sequence[Mapping[str, str]], configs: Path, runs: Path) -> list[Mapping[str, str]]:
    """The lines whose recipe has not changed since, nor that of the trained model that they start from."""
    recipes = {cell: _recipe(config_of(cell, configs, runs)) for cell in cells()}
    found = [
        (line, cell) for line in lines for cell, old in recipes.items() if cell.matches(line) and line["recipe"] == old
    ]
    there = {cell for _, cell in found}
    return [line for line, cell in found if not _starts_from(line, cell.source) or cell.source in there]


def page(lines: Sequence[Mapping[str, str]], configs: Path, runs: Path = Path("runs")) -> str:
    """The text of transfer.md."""
    found = current(lines, configs, runs)
    text = [
        "# Transfer to few images",
        "",
        "Small models are trained on many images of some classes, and then learn ten other classes from 10, 50 or 450",
        "images each: by fine-tuning all weights, by a linear probe on their frozen features, or from scratch. `jaxvit",
        "reproduce transfer` writes this page from `transfer.csv`; the recipes are in `configs/transfer.py`.",
        "",
        "- Test accuracy on all test images of the ten classes: the mean over the seeds, with its 95 % confidence",
        "  interval (Student). A seed draws the training images, equal for all ways, and all other random numbers.",
        "  All seeds start from the same trained model, so the interval says nothing about other ones.",
        "- Differences are paired, seed by seed. Fine-tuning and training from scratch take the same number of steps:",
        f"  {', '.join(f'{steps} for {size} images' for size, steps in _steps(configs).items())}. No rate was tuned.",
        "- The probe is logistic regression; its regularisation is chosen by cross-validation on the training images.",
    ]
    for task, title in TASKS.items():
        text += ["", f"## {title}", "", f"| model | way | {' | '.join(f'{size} images of each' for size in SIZES)} |"]
        text += ["|---|---|" + "---|" * len(SIZES)]
        for model in MODELS:
            for way, words in WAYS.items():
                values = [_cell(_values(found, task, model, way, size)) for size in SIZES]
                text.append(f"| {model} | {words} | {' | '.join(values)} |")
            for other in ("scratch", "probe"):
                differences = [_difference(found, task, model, size, other) for size in SIZES]
                text.append(
                    f"| {model} | fine-tuned minus {WAYS[other].removeprefix('from ')} | {' | '.join(differences)} |"
                )
    trained = [line for line in found if line["way"] == "pretrain"]
    if trained:
        text += [
            "",
            "## The trained models",
            "",
            "| task | model | parameters | multiply-adds | steps | accuracy on its own classes |",
        ]
        text += ["|---|---|---|---|---|---|"]
        for line in sorted(trained, key=_place):
            numbers = (f"{int(line[name]):,}" for name in ("params", "multiply_adds", "steps"))
            text.append(f"| {line['task']} | {line['model']} | {' | '.join(numbers)} | {float(line['top1']):.2%} |")
    where = sorted({f"{line['hardware']}; {line['versions']}" for line in found})
    text += ["", "## Hardware and versions", "", *(f"- {each}" for each in where)] if where else []
    return "\n".join(text) + "\n"


def _starts_from(line: Mapping[str, str], source: Cell) -> bool:
    """Whether a line is of a cell that starts from the trained model `source`."""
    return line["way"] in ("finetune", "probe") and (line["task"], line["model"]) == (source.task, source.model)


def _values(lines: Sequence[Mapping[str, str]], task: str, model: str, way: str, size: int) -> dict[int, float]:
    """{seed: accuracy}."""
    mine = [Cell(task, model, way, size, seed) for seed in SEEDS]
    return {cell.seed: float(line["top1"]) for cell in mine for line in lines if cell.matches(line)}


def _cell(values: Mapping[int, float]) -> str:
    if not values:
        return "not run"
    mean = f"{statistics.fmean(values.values()):.1%}"
    if len(values) < 2:
        return f"{mean} (one seed)"
    low, high = student([*values.values()])
    return f"{mean} ({max(low, 0):.1%} to {min(high, 1):.1%})"


def _difference(lines: Sequence[Mapping[str, str]], task: str, model: str, size: int, other: str) -> str:
    ours, theirs = (_values(lines, task, model, way, size) for way in ("finetune", other))
    both = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if not both:
        return "not run"
    mean = f"{100 * float(np.mean(both)):+.1f} points"
    if len(both) < 2:
        return f"{mean} (one seed)"
    low, high = student(both)
    return f"{mean} ({100 * low:+.1f} to {100 * high:+.1f})"


def _listing(results: Path, configs: Path, runs: Path, todo: Sequence[Cell]) -> Iterator[str]:
    """A line for each cell: done or not run."""
    done = current(read_lines(results), configs, runs)
    for cell in todo:
        line = next((line for line in done if cell.matches(line)), None)
        yield f"{cell.name}: {float(line['top1']):.2%}" if line else f"{cell.name}: not run"
