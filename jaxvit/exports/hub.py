"""The hub format: a folder to share, with model.safetensors, three JSON files and a model card.

`jaxvit.load` reads such a folder like a run folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from jaxvit._version import __version__
from jaxvit.errors import UsageError
from jaxvit.exports.card import WEIGHTS, model_card, public_name, public_source
from jaxvit.exports.model import ExportModel
from jaxvit.files import read_json, write_json
from jaxvit.run.folder import read_environment
from jaxvit.weights.hub import FILE, SCALE, digest
from jaxvit.weights.stored import Int8

# Facts about each split that are published: statistics of its images, but no file, path, command or machine name.
PUBLISHED = ("count", "classes", "mean", "std", "sha256", "content", "sampled", "skipped")


# The keys of model.json that are read from an exported folder.
_FACTS = ("name", "attributes", "class_names", "image_shape", "augmentation", "origin")


def published(data: dict[str, Any]) -> dict[str, Any]:
    """The publishable part of `data` in environment.json: only numbers and hashes of the three splits."""
    return {
        part: {name: value for name, value in data[part].items() if name in PUBLISHED and _is_figure(value)}
        for part in ("train", "validation", "test")
        if _is_figure(data.get(part, {}).get("sha256"))
    }


def _is_figure(value: Any) -> bool:
    """True for a number, a list of numbers, or a hash."""
    if isinstance(value, list):
        return all(isinstance(each, int | float) for each in value)
    return isinstance(value, int | float) or (isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{16}", value)))


def save_weights(tree: Mapping[str, Any], path: Path, *, step: int, weights: str, kind: str) -> None:
    """Writes the model.safetensors that `jaxvit.weights.hub.read` reads.

    Args:
      tree: variables, with parameters as `jaxvit.weights.stored.store` returns them.
      path: the folder.
      step: number of steps trained.
      weights: 'model' or 'ema'.
      kind: dtype of the stored parameters, see `jaxvit.weights.stored`.

    Raises:
      UsageError: a module name contains a dot, the separator in the names of the tensors.
    """
    tensors: dict[str, np.ndarray] = {}
    for names, leaf in traverse_util.flatten_dict(tree, is_leaf=lambda _, x: not isinstance(x, dict)).items():
        if any("." in name for name in names):
            raise UsageError(f"{'/'.join(names)}: safetensors cannot store a name with a dot; rename the module")
        name = ".".join(names)
        if isinstance(leaf, Int8):
            tensors[name], tensors[name + SCALE] = leaf.values, np.asarray(leaf.scale)
        else:
            tensors[name] = np.asarray(leaf)
    # The reshape is needed because np.ascontiguousarray turns a scalar into a vector.
    tensors = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in tensors.items()}
    metadata = {"format": "flax", "step": str(step), "weights": weights, "dtype": kind}
    metadata["sha256"] = digest(tensors, step, weights)
    safetensors.numpy.save_file(tensors, path / FILE, metadata)


def write(model: ExportModel, path: Path) -> None:
    """Writes the folder.

    Raises:
      UsageError: a module name contains a dot, the separator in the names of the tensors.
    """
    loaded = model.loaded
    path.mkdir()
    tree = {**loaded.variables, "params": model.stored}
    save_weights(tree, path, step=loaded.step, weights=loaded.weights, kind=model.kind)
    facts, config = (read_json(loaded.workdir / name) for name in ("model.json", "config.json"))
    for attributes in (facts["attributes"], config["config"]["model"]):
        if "dtype" in attributes:
            attributes["dtype"] = "float32"  # exported models compute in float32, whatever they were trained in
        if model.reduce:
            attributes["reduce"] = model.reduce
        if fewer := getattr(loaded.model, "learner_keep", 0):
            attributes["learner_keep"] = fewer
    facts = {name: facts[name] for name in _FACTS if name in facts}
    write_json(path / "model.json", facts, with_checksum=True)
    config["config"]["data"] |= {"dir": "", "name": public_name(loaded.config.data.name)}
    for section, _, key in (place.partition(".") for place in WEIGHTS):
        if weights := config["config"].get(section, {}).get(key):
            config["config"][section][key] = public_source(weights)
    kept = {name: config[name] for name in ("config_hash", "extensions", "config") if name in config}
    write_json(path / "config.json", {"jaxvit": __version__, **kept}, with_checksum=True)
    environment = {"data": published(read_environment(loaded.workdir)["data"]), "starts": []}
    write_json(path / "environment.json", environment, with_checksum=True)
    (path / "README.md").write_text(model_card(model), encoding="utf-8")
