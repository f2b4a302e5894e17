"""A plan, its parts and its images, without a course: what `benchmark` measures and `reproduce` takes steps of."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from jaxvit.config.keys import base_config
from jaxvit.config.overrides import parse_config_arguments, parse_model_overrides, set_dtype, split_overrides
from jaxvit.config.plan import dataset_of, resolve
from jaxvit.config.plan_types import Plan
from jaxvit.data.preparable import PREPARABLE
from jaxvit.data.sources import Dataset
from jaxvit.data.synthetic import NAME as SYNTHETIC
from jaxvit.data.synthetic import synthetic_dataset
from jaxvit.devices import hardware
from jaxvit.errors import UsageError
from jaxvit.models.registry import input_shape
from jaxvit.run.assembly import Assembly, assemble, refuse_beyond_memory
from jaxvit.shown import terminal
from jaxvit.speed.workloads import DOCUMENTS, workload_of

STEPS = 1_000_000  # of the run that is measured: as good as endless
# Keys that shape a run and not its step; a benchmark has a course of its own.
IDLE_KEYS = (
    *("seeds", "train.seeds", "train.duration", "train.patience", "train.monitor", "train.hooks"),
    *("data.validation", "data.test", "eval.batch_size", "checkpoint.every", "log.writers"),
)


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
      plan, assembly: of a run that would train it.
      dataset: its images.
      origin: where batch and optimizer come from: 'document', 'defaults' or 'config'.
    """

    plan: Plan
    assembly: Assembly
    dataset: Dataset
    origin: str

    @property
    def synthetic(self) -> bool:
        """Whether its images are random."""
        return self.plan.data.name == SYNTHETIC

    @property
    def dtype(self) -> str:
        """In which the model computes; a model of one's own that does not say is taken for float32."""
        return str(dict(self.plan.model.attributes).get("dtype", "float32"))


def document_config(model: str) -> ConfigDict:
    """The config of a model's document: its batch and optimizer, at a constant rate, on synthetic images.

    A model without a document has the config's default batch and optimizer.

    Raises:
      UsageError: there is no such model.
    """
    config = base_config(model)
    config.data.name = SYNTHETIC
    if model in DOCUMENTS:
        workload = DOCUMENTS[model]
        config.train.batch_size = workload.batch
        config.train.label_smoothing = workload.label_smoothing
        config.optim.name = workload.optimizer
        config.optim.peak_lr, config.optim.eps = workload.learning_rate, workload.epsilon
        config.optim.schedule, config.optim.warmup = "constant", "0 steps"
        config.optim.weight_decay, config.optim.decay_mask = workload.weight_decay, "all"
    return config


def configure(
    model: str, config: str, tokens: Sequence[str], *, batch: int = 0, dtype: str = ""
) -> tuple[ConfigDict, dict[str, Any], str, list[str]]:
    """What the words of a command ask for.

    Args:
      model: its name; '' = `config` says it.
      config: of `--config`, where no model is named.
      tokens: overrides of the config, and other words.
      batch: of `--batch`; 0 = the document's, or the config's.
      dtype: of `--dtype`; '' = the model's own.

    Returns:
      (config, {key: value} set by hand, `origin` as `Subject` has it, words that are no overrides).

    Raises:
      UsageError: no such model, config or key; two words that say the same thing.
    """
    words = list(tokens)
    keys = {key for key, _, _ in split_overrides(words)[0]}
    for flag, given, key in (("--batch", batch, "train.batch_size"), ("--dtype", dtype, "model.dtype")):
        if given and key in keys:
            raise UsageError(f"{flag} and --config.{key} say the same thing; give one of them")
    if batch:
        words.append(f"--config.train.batch_size={batch}")
    if model:
        found, overrides, unknown = parse_model_overrides(document_config(model), words)
        origin = "document" if model in DOCUMENTS else "defaults"
    else:
        found, overrides, unknown = parse_config_arguments(config, words)
        origin = "config"
    set_dtype(found, dtype)
    return found, overrides, origin, unknown


def make_subject(
    config: ConfigDict, *, overrides: Iterable[str] = (), synthetic: bool = False, origin: str = "config"
) -> Subject:
    """Puts together what is to be measured.

    Args:
      config: what a run would have; its course (length, validation, test, seeds) does not count. It is changed.
      overrides: keys set by hand; each must have an effect on a step.
      synthetic: take random images even if the config's data set is there. Where it is not there they are taken
        anyhow, with a line on stderr, unless the set was named by hand.
      origin: see `Subject`.

    Raises:
      UsageError: as of `jaxvit train`; or an override that has no effect here.
    """
    overrides = tuple(overrides)
    for key in overrides:
        if key in IDLE_KEYS:
            raise UsageError(f"--config.{key}: nothing reads this key in a benchmark, which has no such course")
    dataset = None if synthetic or config.data.name == SYNTHETIC else _dataset(config, overrides)
    if dataset is None:
        idle = [key for key in overrides if key.startswith("data.") and key != "data.feed"]
        if idle:
            raise UsageError(f"--config.{idle[0]}: nothing reads this key here: the images are synthetic")
        dataset = _synthetic(config)
        config.data.name, config.data.train, config.data.classes, config.data.side = SYNTHETIC, "train", (), 0
    config.data.validation = config.data.test = config.train.patience = ""
    config.seeds = ()
    config.train.duration = f"{STEPS} steps"
    config.log.writers = ("jsonl",)
    plan = resolve(config, devices=hardware.device_count(), overrides=overrides, dataset=dataset)
    assembly = assemble(plan, overrides)
    refuse_beyond_memory(plan, assembly)
    return Subject(plan, assembly, dataset, origin)


def _dataset(config: ConfigDict, overrides: tuple[str, ...]) -> Dataset | None:
    """The config's data set; None, with a line on stderr, if it is not there and nobody has asked for it by hand."""
    try:
        return dataset_of(config)
    except UsageError as error:
        if any(key.startswith("data.") for key in overrides):
            raise
        print(terminal(f"synthetic images in place of {config.data.name}: {error}"), file=sys.stderr, flush=True)
        return None


def _synthetic(config: ConfigDict) -> Dataset:
    """Random images of the size of the config's own data set where that is known, else of the model's."""
    name = config.model.name
    try:
        workload = workload_of(name)
        shape = workload.input
        if config.data.name in PREPARABLE:
            shape = PREPARABLE[config.data.name].shape
        elif config.data.side:
            shape = (config.data.side, config.data.side, input_shape(name)[2])
    except ValueError as error:
        raise UsageError(f"config.model.name: {error}") from None
    classes = config.model.get("num_classes", 0) or workload.classes
    batch, room = config.train.batch_size, hardware.memory_of_device()
    if room and (size := 2 * batch * math.prod(shape)) > room:
        gigabytes = f"{size / 2**30:,.1f} GiB of memory on a device that has {room / 2**30:,.1f} GiB"
        raise UsageError(f"config.train.batch_size={batch}: the images of two batches take {gigabytes}; name fewer")
    return synthetic_dataset(shape, classes, 2 * batch)
