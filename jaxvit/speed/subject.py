"""The subject of a benchmark: a plan, its assembled parts and its images. `reproduce` takes single steps with it."""

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
from jaxvit.data.dataset import Dataset
from jaxvit.data.preparable import PREPARABLE
from jaxvit.data.synthetic import NAME as SYNTHETIC
from jaxvit.data.synthetic import synthetic_dataset
from jaxvit.devices import hardware
from jaxvit.errors import UsageError, first_line
from jaxvit.models.reduction import reduced
from jaxvit.models.registry import input_shape
from jaxvit.run.assembly import Assembly, assemble, refuse_beyond_memory
from jaxvit.shown import terminal
from jaxvit.speed.workloads import DOCUMENTS, workload_of

STEPS = 1_000_000  # length of the measured run: never reached
# Keys that affect a run but not its training step: a benchmark ignores them.
IDLE_KEYS = (
    *("seeds", "train.seeds", "train.duration", "train.patience", "train.monitor", "train.hooks"),
    *("data.validation", "data.test", "eval.batch_size", "checkpoint.every", "log.writers"),
)


@dataclass(frozen=True)
class Subject:
    """The subject of a benchmark.

    Attributes:
      plan, assembly: plan and parts of a run that trains the model.
      dataset: the images.
      origin: source of batch size and optimizer: 'document', 'defaults' or 'config'.
    """

    plan: Plan
    assembly: Assembly
    dataset: Dataset
    origin: str

    @property
    def synthetic(self) -> bool:
        """True if the images are random."""
        return self.plan.data.name == SYNTHETIC

    @property
    def dtype(self) -> str:
        """The model's compute dtype; 'float32' for a user's model without a `dtype` field."""
        return str(dict(self.plan.model.attributes).get("dtype", "float32"))


def document_config(model: str) -> ConfigDict:
    """The config of a model's document: batch size and optimizer, at a constant learning rate, on synthetic images.

    A model without a document gets the default batch size and optimizer.

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
    """Builds the config from the arguments of a command.

    Args:
      model: name of the model; '' = use `config`.
      config: value of `--config`, used if `model` is ''.
      tokens: config overrides and other arguments.
      batch: value of `--batch`; 0 = from the document or the config.
      dtype: value of `--dtype`; '' = the model's default.

    Returns:
      (config, {key: value} set on the command line, `origin` as in `Subject`, arguments that are not overrides).

    Raises:
      UsageError: unknown model, config or key, or two arguments set the same key.
    """
    words = list(tokens)
    keys = {key for key, _, _ in split_overrides(words)[0]}
    for flag, given, key in (("--batch", batch, "train.batch_size"), ("--dtype", dtype, "model.dtype")):
        if given and key in keys:
            raise UsageError(f"{flag} and --config.{key} set the same key; give only one of them")
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
    config: ConfigDict,
    *,
    overrides: Iterable[str] = (),
    synthetic: bool = False,
    origin: str = "config",
    reduce: str = "",
    devices_elsewhere: int = 0,
    platform: str = "",
) -> Subject:
    """Assembles the subject of a benchmark.

    Args:
      config: config of a run, modified in place; its duration, validation, test and seeds are ignored.
      overrides: keys set on the command line; each must affect the training step.
      synthetic: use random images even if the data set exists. If it does not exist, random images are used anyway,
        with a line on stderr, unless the command line names the data set.
      origin: see `Subject`.
      reduce: how the model merges or removes tokens, such as 'merge:macs=.7'; see `jaxvit.models.reduction`.
      devices_elsewhere: number of devices of another machine, which the step is compiled for and does not run on: then
        the memory here does not matter, and synthetic images are black. 0 = the devices of this machine.
      platform: platform of those devices, 'gpu' or 'tpu'.

    Raises:
      UsageError: `jaxvit train` would refuse the config, or an override has no effect in a benchmark.
    """
    overrides = tuple(overrides)
    for key in overrides:
        if key in IDLE_KEYS:
            raise UsageError(f"--config.{key}: this key has no effect in a benchmark")
    dataset = None if synthetic or config.data.name == SYNTHETIC else _dataset(config, overrides)
    if dataset is None:
        idle = [key for key in overrides if key.startswith("data.") and key != "data.feed"]
        if idle:
            raise UsageError(f"--config.{idle[0]}: this key has no effect here: the images are synthetic")
        dataset = _synthetic(config, blank=devices_elsewhere > 0)
        config.data.name, config.data.train, config.data.classes, config.data.side = SYNTHETIC, "train", (), 0
    config.data.validation = config.data.test = config.train.patience = ""
    config.seeds = ()
    config.train.duration = f"{STEPS} steps"
    config.log.writers = ("jsonl",)
    devices = devices_elsewhere or hardware.device_count()
    plan = resolve(
        config,
        devices=devices,
        platform=platform if devices_elsewhere else hardware.platform(),
        overrides=overrides,
        dataset=dataset,
    )
    assembly = assemble(plan, overrides)
    if reduce:
        try:
            config.model.reduce = reduced(assembly.model, reduce, plan.input_shape).reduce
        except ValueError as error:
            raise UsageError(f"--reduce={reduce}: {first_line(error)}") from None
        plan = resolve(config, devices=devices, overrides=overrides, dataset=dataset)
        assembly = assemble(plan, overrides)
    if not devices_elsewhere:
        refuse_beyond_memory(plan, assembly)
    return Subject(plan, assembly, dataset, origin)


def _dataset(config: ConfigDict, overrides: tuple[str, ...]) -> Dataset | None:
    """The config's data set; None, with a line on stderr, if it is missing and the command line does not name it."""
    try:
        return dataset_of(config)
    except UsageError as error:
        if any(key.startswith("data.") for key in overrides):
            raise
        print(terminal(f"using synthetic images instead of {config.data.name}: {error}"), file=sys.stderr, flush=True)
        return None


def _synthetic(config: ConfigDict, *, blank: bool) -> Dataset:
    """Random or black images, of the size of the config's data set if known, else of the model's input size."""
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
    batch, room = config.train.batch_size, 0 if blank else hardware.memory_of_device()
    if room and (size := 2 * batch * math.prod(shape)) > room:
        gigabytes = f"{size / 2**30:,.1f} GiB of memory on a device that has {room / 2**30:,.1f} GiB"
        raise UsageError(
            f"config.train.batch_size={batch}: the images of two batches take {gigabytes}; use a smaller batch"
        )
    return synthetic_dataset(shape, classes, 2 * batch, blank=blank)
