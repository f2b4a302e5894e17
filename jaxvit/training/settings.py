"""Settings of the optimizer and its schedule: plain values, without jax."""

from __future__ import annotations

from dataclasses import dataclass

OPTIMIZERS = ("adamw", "adam", "sgd", "lion", "muon")
SCHEDULES = ("cosine", "linear", "constant")
DECAY_MASKS = ("kernels", "all", "not_1d")


@dataclass(frozen=True)
class Distillation:
    """How much a model learns from a teacher. A field means what the config key ``distill.FIELD`` means."""

    weight: float = 0.5
    temperature: float = 2.0
    features: float = 0.0


@dataclass(frozen=True)
class OptimizerSettings:
    """Settings of `make_optimizer`. A field means what the config key ``optim.FIELD`` means; lengths are in steps."""

    name: str = "adamw"
    schedule: str = "cosine"
    start_lr: float = 0.0
    peak_lr: float = 1e-3
    end_lr: float = 0.0
    warmup_steps: int = 0
    total_steps: int = 1
    cooldown_steps: int = 0
    weight_decay: float = 1e-4
    decay: str = "lr_scaled"
    decay_mask: str = "kernels"
    layer_decay: float = 1.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.9
    clip_norm: float = 0.0
    freeze: str = ""
    head_first_steps: int = 0
    muon_on: tuple[str, ...] = ("*kernel",)
    muon_off: tuple[str, ...] = ("embed/projection/*", "head/*")
    muon_heads: str = "matrix"
    muon_beta: float = 0.95
    muon_rms: float = 0.2
