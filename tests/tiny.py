"""The smallest real experiment, shared by tests: a ViT of a few thousand parameters on the first digits."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import jaxvit
from jaxvit.config.keys import base_config


def tiny_config(**changes) -> ConfigDict:
    """A config of 3 epochs of 4 steps; `changes` are 'section__key' = value."""
    config = base_config("vit", patch=4, dim=8, depth=1, heads=2, dropout=0.1)
    config.data.train = "train[:60]"
    config.data.validation = "train[60:90]"
    config.data.test = "test[:25]"
    config.augment.pad_crop = 1
    config.train.batch_size = 16
    config.train.duration = "3 epochs"
    config.log.every = "2 steps"
    for key, value in changes.items():
        section, _, leaf = key.partition("__")
        if leaf:
            config[section][leaf] = value
        else:
            config[section] = value
    return config


# A few thousand parameters of every family.
FAMILIES = {
    "vit": {"patch": 4, "dim": 8, "depth": 2, "heads": 2, "pool": "cls", "registers": 2, "remat": "full"},
    "token_learner_vit": {"patch": 2, "dim": 8, "depth": 3, "heads": 2, "learner_at": (1,), "learner_tokens": 3},
    "fuser": {
        **{"patch": 2, "dim": 8, "depth": 3, "heads": 2, "learner": "v1", "learner_at": (1, 2), "learner_tokens": 3},
        **{"fuse": True, "positions": "sincos"},
    },
    "cct": {"dim": 8, "depth": 2, "heads": 2, "conv_layers": 1, "scan": True},
    "shiftvit": {"patch": 1, "dim": 8, "depths": (2, 1), "divisions": 8, "norm": "channels"},
}


def edit_json(file: Path, old: str, new: str) -> None:
    """Changes a JSON file of a run and removes its checksum."""
    found = json.loads(file.read_text().replace(old, new))
    found.pop("checksum", None)
    file.write_text(json.dumps(found))


def family_config(name: str, attributes: dict[str, Any] | None = None, **changes: Any) -> ConfigDict:
    """`tiny_config` with a model of `FAMILIES`; `attributes` overrides its values."""
    config = tiny_config(**changes)
    family = {"fuser": "token_learner_vit"}.get(name, name)
    config.model = base_config(family, **{**FAMILIES[name], **(attributes or {})}).model
    return config


def train_config(workdir: Path, config: ConfigDict) -> Path:
    """Trains a config; returns `workdir`."""
    with jax.numpy_dtype_promotion("standard"):
        jaxvit.train(config, workdir)
    return workdir


def train_family(workdir: Path, name: str) -> Path:
    """A run of one step of a model of `FAMILIES`; trained once in this process, and copied from then on."""
    kept = Path(_families.name) / name
    if not kept.exists():
        train_config(kept, family_config(name, train__duration="1 steps", data__validation=""))
    return Path(shutil.copytree(kept, workdir))


_families = tempfile.TemporaryDirectory(prefix="jaxvit-families-")


# Of results/rows.toml; to be formatted with weights and target.
TINY_ROW = """[[row]]
name = "tiny"
config = "tiny_row.py"
weights = "{weights}"
document = {{ top1 = 0.05 }}
target = {{ top1 = {target} }}
tolerance = {{}}
n = 25
epochs = 2
minutes = 1
seeds = [0, 1]
quirks = ["small"]
"""
