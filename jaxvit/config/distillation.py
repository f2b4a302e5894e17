"""The teacher of a run, `distill.from`: reads it, and derives the settings of distillation from a config.

The hash of its weights, `distill.hash`, enters the config hash, so a run that was taught by other weights is another
experiment.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from jaxvit.config.keys import set_value
from jaxvit.config.plan_types import DistillPlan
from jaxvit.config.reader import ConfigReader
from jaxvit.errors import UsageError
from jaxvit.files import local_path
from jaxvit.weights.arrays import hash_of
from jaxvit.weights.model_json import ModelFacts
from jaxvit.weights.own_folder import read_own


@dataclass(frozen=True)
class TeacherWeights:
    """A trained model that teaches another.

    Attributes:
      facts: its model, class names and preprocessing.
      model: the model, built.
      variables: {'params': …} and the model's other variables, NumPy arrays.
      hash: 16 hex digits over all arrays.
    """

    facts: ModelFacts
    model: nn.Module
    variables: dict[str, dict]
    hash: str


def resolve_distill(get: ConfigReader) -> DistillPlan:
    """Derives the settings of distillation. Without a teacher the other keys are not read.

    Raises:
      UsageError: a value is not allowed.
    """
    source = get("distill.from", str)
    if not source:
        return DistillPlan()
    weight = get.share("distill.weight")
    temperature, features = get("distill.temperature", float), get("distill.features", float)
    if not 0 < temperature < float("inf"):
        raise UsageError(f"config.distill.temperature={temperature}: must be above 0, and finite")
    if not 0 <= features < float("inf"):
        raise UsageError(f"config.distill.features={features}: must be 0 or more, and finite")
    if not (weight or features):
        raise UsageError(
            "config.distill.weight=0.0 and config.distill.features=0.0: nothing is learned from the teacher"
        )
    return DistillPlan(source, get("distill.hash", str), weight, temperature, features)


def read_teacher(source: str) -> TeacherWeights:
    """Reads the teacher that `distill.from` names: a run's folder, or one of `jaxvit export --to=hub`.

    Raises:
      UsageError: there is no such folder, or it holds no weights.
    """
    path = os.path.abspath(local_path(source))
    if not os.path.isdir(path):
        raise UsageError(f"config.distill.from='{source}': there is no such folder; name that of a run")
    files = [file for pattern in ("*.safetensors", "model.json", "checkpoints/*") for file in Path(path).glob(pattern)]
    return _read(path, tuple(sorted((str(file), file.stat().st_mtime_ns) for file in files)))


@lru_cache(maxsize=1)
def _read(path: str, state: tuple[tuple[str, int], ...]) -> TeacherWeights:
    """Reads a folder once, until its files change."""
    del state
    try:
        found = read_own(Path(path))
    except UsageError as error:
        raise UsageError(f"config.distill.from: {error}") from None
    constants = {"/".join(path): np.asarray(leaf) for path, leaf in flatten_dict(found.constants).items()}
    params = unflatten_dict({tuple(name.split("/")): leaf for name, leaf in found.params.items()})
    return TeacherWeights(
        found.facts, found.model, {"params": params, **found.constants}, hash_of({**constants, **found.params})
    )


def with_teacher(config: ConfigDict) -> ConfigDict:
    """Returns the config with an absolute `distill.from`, and with `distill.hash`.

    Raises:
      UsageError: the teacher cannot be read, or its weights are not those of `distill.hash`.
    """
    get = ConfigReader(config)
    source, given = get("distill.from", str), get("distill.hash", str)
    if not source:
        return config
    found = read_teacher(source)
    if given not in ("", found.hash):
        raise UsageError(
            f"config.distill.hash={given}: {source} holds weights of hash {found.hash}; name the teacher that it means"
        )
    config = config.copy_and_resolve_references()
    set_value(config, "distill.from", os.path.abspath(local_path(source)))
    set_value(config, "distill.hash", found.hash)
    return config
