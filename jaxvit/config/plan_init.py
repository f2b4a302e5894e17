"""Derives the initial values from a config's `init` section. `jaxvit.config.initial_weights` reads weights."""

from __future__ import annotations

import math

from jaxvit.config.plan_types import InitPlan
from jaxvit.config.reader import ConfigReader
from jaxvit.errors import UsageError

ATTENTION = ("", "mimetic", "mimetic_joint")
POSITIONS = ("", "sincos")
STEM = ("", "whitening")


def resolve_init(get: ConfigReader) -> InitPlan:
    """Derives the initial values. The keys of an initialisation that is off are not read."""
    default = InitPlan()
    attention, positions = get.one_of("init.attention", ATTENTION), get.one_of("init.positions", POSITIONS)
    stem = get.one_of("init.stem", STEM)
    source = get("init.from", str)
    return InitPlan(
        attention=attention,
        query_key=_strengths(get, "init.query_key") if attention else default.query_key,
        value_output=_strengths(get, "init.value_output") if attention else default.value_output,
        positions=positions,
        positions_scale=_above_zero(get, "init.positions_scale") if positions else default.positions_scale,
        stem=stem,
        stem_eps=_above_zero(get, "init.stem_eps") if stem else default.stem_eps,
        stem_images=get.at_least("init.stem_images", 1) if stem else default.stem_images,
        source=source,
        hash=get("init.hash", str) if source else "",
        keep=get("init.keep", str) if source else "",
        skip=get("init.skip", str) if source else "",
        allow=get("init.allow", str) if source else "",
        channels=get.one_of("init.channels", ("sum", "mean")) if source else default.channels,
    )


def why_init_unread(key: str) -> str:
    """Names the setting that makes a key of `init` have no effect."""
    if key in ("init.hash", "init.keep", "init.skip", "init.allow", "init.channels"):
        return "config.init.from='' starts from no weights"
    if key in ("init.query_key", "init.value_output"):
        return "config.init.attention='' uses config.model.initialiser"
    if key == "init.positions_scale":
        return "config.init.positions='' uses config.model.initialiser"
    return "config.init.stem='' uses config.model.initialiser"


def _strengths(get: ConfigReader, key: str) -> tuple[float, float]:
    value = get(key, tuple)
    numbers = all(type(v) in (int, float) and math.isfinite(v) and v >= 0 for v in value)
    if len(value) != 2 or not numbers or not any(value):
        raise UsageError(
            f"config.{key}={value}: must be two numbers of 0 or more, not both 0: the strengths of the noise and of "
            "the identity"
        )
    return float(value[0]), float(value[1])


def _above_zero(get: ConfigReader, key: str) -> float:
    value = get(key, float)
    if not 0 < value < math.inf:
        raise UsageError(f"config.{key}={value}: must be above 0, and finite")
    return float(value)
