"""The Plan of a run and its parts: frozen dataclasses that `jaxvit.config.plan` derives from a config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxvit.data.settings import Augmentation
from jaxvit.training.settings import Distillation, OptimizerSettings

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class DataPlan:
    """The data set, its splits, and their numbers of images. A split of '' has 0 images and is not used.

    `class_weights` has a weight for each class if `balance` is not 'none'.
    """

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
    balance: str = "none"
    class_weights: tuple[float, ...] = ()

    @property
    def loss_weights(self) -> tuple[float, ...]:
        """The weight of each class in the loss; () = equal weights."""
        return self.class_weights if self.balance == "loss" else ()

    def sampling(self, labels: np.ndarray) -> tuple[np.ndarray, tuple[float, ...]] | None:
        """Labels and class weights for `jaxvit.data.batches.TrainOrder`; None = each image once per epoch."""
        return (labels, self.class_weights) if self.balance == "sampling" else None


@dataclass(frozen=True)
class ModelPlan:
    """The name and the attributes of the model, for `jaxvit.create_model`."""

    name: str
    attributes: tuple[tuple[str, object], ...]


@dataclass(frozen=True)
class InitPlan:
    """The initial values. A field means what the config key ``init.FIELD`` means; `source` is ``init.from``."""

    attention: str = ""
    query_key: tuple[float, float] = (0.7, 0.7)
    value_output: tuple[float, float] = (0.4, 0.4)
    positions: str = ""
    positions_scale: float = 1.0
    stem: str = ""
    stem_eps: float = 5e-4
    stem_images: int = 5000
    source: str = ""
    hash: str = ""
    keep: str = ""
    skip: str = ""
    allow: str = ""
    channels: str = "sum"

    @property
    def is_empty(self) -> bool:
        """Whether the model's own initialisers set all values."""
        return not (self.attention or self.positions or self.stem or self.source)


@dataclass(frozen=True)
class DistillPlan:
    """The teacher of a run, and how much is learned from it. `source` '' = no teacher; `hash` '' = any weights."""

    source: str = ""
    hash: str = ""
    weight: float = Distillation.weight
    temperature: float = Distillation.temperature
    features: float = Distillation.features


@dataclass(frozen=True)
class TrainPlan:
    """Settings of the training. Durations are in steps, sizes in images."""

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
    by_class: bool
    eval_batch_size: int
    checkpoint_every: int
    log_every: int
    writers: tuple[str, ...]
    feed: str
    steps_per_call: int
    workers: int = -1
    elastic: tuple[int, ...] = ()

    @property
    def epochs(self) -> float:
        """Length of the training in epochs."""
        return self.steps / self.steps_per_epoch


@dataclass(frozen=True)
class Plan:
    """Everything that a run needs to know, derived from its config, its data set and its devices."""

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
    distill: DistillPlan = DistillPlan()
    without_effect: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape (H, W, C) of the model's input."""
        return self.augment.output_shape(self.data.image_shape)
