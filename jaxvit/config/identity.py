"""Compares configs: the config hash, and the keys in which two configs differ.

A missing key or attribute of a model counts as its default. Keys and attributes that are younger than the first
recorded hashes enter the hash only if their value is not the default, and a renamed key enters it under its first name.
So an old run keeps its hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from jaxvit.config.key_table import KEYS, RENAMED
from jaxvit.config.keys import complete, flatten, model_attributes
from jaxvit.data.sources import located

_ABSENT = "(absent)"


def changes_result(path: str) -> bool:
    """Whether a key can change the result of a run. True for all attributes of models."""
    return KEYS[path].changes_result if path in KEYS else True


def config_hash(config: ConfigDict, extensions: Sequence[Mapping[str, object]] = ()) -> str:
    """Returns the hash, 16 hex digits, of all keys that can change the result. Equal hashes mean the same experiment.

    Args:
      config: config of an experiment.
      extensions: changes of the config that extended a finished run. An extended run differs from one that had its
        length from the start.
    """
    values = _values(config)
    idle = {path for path, default in _added(values).items() if values.get(path) == default}
    first = {new: old for old, new in reversed(RENAMED.items())}
    relevant: dict[str, object] = {
        first.get(path, path): value for path, value in values.items() if changes_result(path) and path not in idle
    }
    if extensions:
        relevant["extensions"] = list(extensions)
    text = json.dumps(relevant, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _values(config: ConfigDict) -> dict[str, object]:
    """The values of all keys. The path of an image folder is made absolute."""
    values = dict(flatten(complete(config)))
    name = values.get("data.name")
    if isinstance(name, str):
        values["data.name"] = located(name)
    return values


def _added(values: Mapping[str, object]) -> dict[str, object]:
    """The keys and attributes that are younger than the first recorded hashes, with their defaults."""
    from jaxvit.models.registry import ADDED_ATTRIBUTES

    added: dict[str, object] = {path: key.default for path, key in KEYS.items() if key.added}
    name = values.get("model.name", "")
    if isinstance(name, str) and ":" not in name:
        attributes = model_attributes(name)
        added |= {path: value for path, value in attributes.items() if path.removeprefix("model.") in ADDED_ATTRIBUTES}
    return added


def differences(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[object, object]]:
    """Returns {key: (old value, new value)} for all keys that can change the result and that differ.

    A missing key counts as its default. If it has none, such as an attribute that this version of a model does not
    know, its value is '(absent)'.
    """
    a, b = _values(old), _values(new)
    name = b.get("model.name", "")
    if isinstance(name, str) and ":" in name and a.get("model.name") == name:
        # `complete` does not import the user's class, but making `new` has imported it.
        defaults = model_attributes(name)
        a, b = {**defaults, **a}, {**defaults, **b}
    return {
        path: (a.get(path, _ABSENT), b.get(path, _ABSENT))
        for path in dict.fromkeys([*a, *b])
        if changes_result(path) and a.get(path, _ABSENT) != b.get(path, _ABSENT)
    }
