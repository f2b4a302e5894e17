"""The Plan of a run and its parts: plain frozen values, derived from a config by `jaxvit.config.plan`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxvit.data.settings import Augmentation
from jaxvit.training.settings import OptimizerSettings


@dataclass(frozen=True)
class DataPlan:
    """Splits and their sizes; an empty split has size 0 and is not used."""

    name: str
    directory: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    train: str
    validation: str
    test: str
    train_count: int
    validation_count: int
    test_count: int


@dataclass(frozen=True)
class ModelPlan:
    """The model's name and attributes, as `jaxvit.create_model` takes them."""

    name: str
    attributes: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class InitPlan:
    """Initial values that follow a formula; the meaning of each field is that of the config key ``init.FIELD``."""

    attention: str = ""
    query_key: tuple[float, float] = (0.7, 0.7)
    value_output: tuple[float, float] = (0.4, 0.4)
    positions: str = ""
    positions_scale: float = 1.0
    stem: str = ""
    stem_eps: float = 5e-4
    stem_images: int = 5000

    @property
    def is_empty(self) -> bool:
        """Whether all of a model begins as its own initialisers have it."""
        return not (self.attention or self.positions or self.stem)


@dataclass(frozen=True)
class TrainPlan:
    """Lengths in steps, sizes in images."""

    steps: int
    steps_per_epoch: int
    batch_size: int
    per_device_batch: int
    devices: int
    last_batch: str
    accumulate: int
    fsdp: int
    deterministic: bool
    implementations: str
    label_smoothing: float
    patience_epochs: int
    hooks: tuple[str, ...]
    monitor: str
    eval_batch_size: int
    checkpoint_every: int
    log_every: int
    writers: tuple[str, ...]
    feed: str
    steps_per_call: int

    @property
    def epochs(self) -> float:
        return self.steps / self.steps_per_epoch


@dataclass(frozen=True)
class Plan:
    """All that a run needs to know, derived from its config, its data set and its devices."""

    seed: int
    seeds: tuple[int, ...]
    seeds_run: str
    data: DataPlan
    augment: Augmentation
    model: ModelPlan
    optim: OptimizerSettings
    ema_decay: float
    ema_ramp: bool
    train: TrainPlan
    config_hash: str
    init: InitPlan = InitPlan()
    without_effect: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """[H, W, C] of what the model sees."""
        return self.augment.output_shape(self.data.image_shape)
