"""Derives the settings of the optimizer and its schedule from a config's `optim` section."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict

from jaxvit.config.plan_types import TrainPlan
from jaxvit.config.reader import ConfigReader, parse_duration
from jaxvit.errors import UsageError, nearest
from jaxvit.own_code import is_own_module, load_function
from jaxvit.training.own_optim import check_own
from jaxvit.training.settings import DECAY_MASKS, OPTIMIZERS, SCHEDULES, OptimizerSettings

# The keys that each optimizer reads besides those that all of them read. The user's own optimizer may read all.
_READS = {
    "adamw": ("b1", "b2", "eps"),
    "adam": ("b1", "b2", "eps"),
    "lion": ("b1", "b2"),
    "sgd": ("momentum",),
    "muon": ("b1", "b2", "eps", "muon_on", "muon_off", "muon_heads", "muon_beta", "muon_rms"),
}
# The keys that the user's own optimizer or schedule may leave unread, and the settings that they become.
_OPTIMIZER_MAY_READ = {
    key: key for key in ("weight_decay", "decay", "decay_mask", *dict.fromkeys(sum(_READS.values(), ())))
}
_SCHEDULE_MAY_READ = {
    **{key: key for key in ("start_lr", "peak_lr", "end_lr")},
    **{"warmup": "warmup_steps", "length": "total_steps", "cooldown": "cooldown_steps"},
}


def resolve_optim(get: ConfigReader, train: TrainPlan) -> OptimizerSettings:
    """Derives the settings of the optimizer and its schedule, in steps.

    Raises:
      UsageError: a value is out of range, or the user's own function does not return an optimizer or a schedule.
    """

    def length(key: str, whole: int) -> int:
        return parse_duration(get(key, str), key=key, steps_per_epoch=train.steps_per_epoch, whole=whole)

    name, schedule = _built_in_or_own(get, "optim.name", OPTIMIZERS), _built_in_or_own(get, "optim.schedule", SCHEDULES)
    # A constant schedule without cooldown does not use its length. The cooldown may be a share of the length.
    longest = parse_duration(
        get.peek("optim.length", str), key="optim.length", steps_per_epoch=train.steps_per_epoch, whole=train.steps
    )
    cooldown = length("optim.cooldown", longest)
    has_end = schedule != "constant" or cooldown > 0
    total = length("optim.length", train.steps) if has_end else train.steps
    warmup = length("optim.warmup", total)
    if warmup > train.steps:
        raise UsageError(
            f"config.optim.warmup='{get('optim.warmup', str)}': the warm-up of {warmup} steps is longer than the "
            f"training of {train.steps}; shorten it or lengthen train.duration"
        )
    if warmup + cooldown > total:
        key = "cooldown" if cooldown else "warmup"
        raise UsageError(
            f"config.optim.{key}='{get(f'optim.{key}', str)}': the warm-up of {warmup} steps"
            f"{f' with the cooldown of {cooldown}' if cooldown else ''} is longer than the schedule of {total}"
        )
    peak = get.at_least("optim.peak_lr", 0.0)
    start = get.at_least("optim.start_lr", 0.0) if warmup else 0.0
    if start > peak:
        raise UsageError(f"config.optim.start_lr={start}: must not be above optim.peak_lr={peak}")
    # Adam has no decoupled weight decay; AdamW is Adam with it.
    weight_decay = get.at_least("optim.weight_decay", 0.0) if name != "adam" else 0.0
    reads = _READS.get(name, tuple(_OPTIMIZER_MAY_READ))
    settings = OptimizerSettings(
        name=name,
        cooldown_steps=cooldown,
        schedule=schedule,
        start_lr=start,
        peak_lr=peak,
        end_lr=get.at_least("optim.end_lr", 0.0) if has_end else peak,
        warmup_steps=warmup,
        total_steps=total,
        weight_decay=weight_decay,
        decay_mask=get.one_of("optim.decay_mask", DECAY_MASKS) if weight_decay else "kernels",
        decay=get.one_of("optim.decay", ("lr_scaled", "independent")) if weight_decay else "lr_scaled",
        layer_decay=get.factor("optim.layer_decay"),
        b1=get.between("optim.b1", 0.0, 1.0) if "b1" in reads else 0.0,
        b2=get.between("optim.b2", 0.0, 1.0) if "b2" in reads else 0.0,
        eps=get.at_least("optim.eps", 0.0) if "eps" in reads else 0.0,
        momentum=get.between("optim.momentum", 0.0, 1.0) if "momentum" in reads else 0.0,
        clip_norm=get.at_least("optim.clip_norm", 0.0),
        freeze=get("optim.freeze", str),
        head_first_steps=_head_first(get, name, length("optim.head_first", train.steps), train),
        **(_resolve_muon(get) if "muon_on" in reads else _Muon()),
    )
    _discard_unread_by_own_code(get, settings, train)
    return settings


def _head_first(get: ConfigReader, name: str, steps: int, train: TrainPlan) -> int:
    text = get("optim.head_first", str)
    if steps >= train.steps:
        raise UsageError(
            f"config.optim.head_first='{text}': the {train.steps} steps of this run end before the rest is trained; to "
            "train the head alone, freeze the rest with optim.freeze"
        )
    if steps and ":" in name:
        raise UsageError(
            f"config.optim.head_first='{text}': does not go with an optimizer of your own; use optim.freeze"
        )
    return steps


def _built_in_or_own(get: ConfigReader, path: str, built_in: Iterable[str]) -> str:
    """Reads a name, a built-in one or 'package.module:function'."""
    value, built_in = get(path, str), tuple(built_in)
    if value in built_in or ":" in value:
        return value
    if is_own_module(value):
        load_function(value, path)  # raises the error: the name lacks its function
    raise UsageError(
        f"config.{path}='{value}': must be one of {', '.join(built_in)}, or 'package.module:function'"
        f"{nearest(value, built_in)}"
    )


class _Muon(TypedDict, total=False):
    muon_on: tuple[str, ...]
    muon_off: tuple[str, ...]
    muon_heads: str
    muon_beta: float
    muon_rms: float


def _resolve_muon(get: ConfigReader) -> _Muon:
    patterns = {key: get(f"optim.{key}", tuple) for key in ("muon_on", "muon_off")}
    for key, value in patterns.items():
        if not all(isinstance(pattern, str) for pattern in value):
            raise UsageError(f"config.optim.{key}={value}: must be patterns, such as ('encoder/*kernel',)")
    rms = get("optim.muon_rms", float)
    if not rms > 0:
        raise UsageError(f"config.optim.muon_rms={rms}: must be above 0")
    return _Muon(
        muon_on=patterns["muon_on"],
        muon_off=patterns["muon_off"],
        muon_heads=get.one_of("optim.muon_heads", ("matrix", "per_head")),
        muon_beta=get.between("optim.muon_beta", 0.0, 1.0),
        muon_rms=rms,
    )


def _discard_unread_by_own_code(get: ConfigReader, settings: OptimizerSettings, train: TrainPlan) -> None:
    """Tries the user's own optimizer and schedule, and marks the keys that they do not read as unread."""
    may_read = {
        **(_OPTIMIZER_MAY_READ if ":" in settings.name else {}),
        **(_SCHEDULE_MAY_READ if ":" in settings.schedule else {}),
    }
    if may_read:
        read = check_own(settings, train.steps)
        get.read -= {f"optim.{key}" for key, setting in may_read.items() if setting not in read}


def why_unread(key: str, get: ConfigReader) -> str:
    """Names the setting that makes a key of `optim` have no effect."""
    leaf, name, schedule = key.removeprefix("optim."), get("optim.name", str), get("optim.schedule", str)
    if leaf in _SCHEDULE_MAY_READ and ":" in schedule:
        return f"config.optim.schedule='{schedule}' does not read settings.{_SCHEDULE_MAY_READ[leaf]}"
    if leaf in _OPTIMIZER_MAY_READ and ":" in name:
        return f"config.optim.name='{name}' does not read settings.{_OPTIMIZER_MAY_READ[leaf]}"
    if leaf in ("length", "end_lr"):
        return f"the schedule is '{schedule}', with optim.cooldown='{get('optim.cooldown', str)}'"
    if leaf == "start_lr":
        return f"there is no warm-up (config.optim.warmup='{get('optim.warmup', str)}')"
    if leaf == "weight_decay":
        return "config.optim.name='adam' has no weight decay; 'adamw' has"
    if leaf in ("decay_mask", "decay"):
        return f"config.optim.name='{name}' with weight_decay={get('optim.weight_decay', float)} has no weight decay"
    return f"config.optim.name='{name}' has no such setting"
