"""Whether two configs are the same experiment: the config hash, and the keys in which two configs differ.

A key or a model's attribute that is absent means its default, in both. Keys and attributes that were added after the
first hashes were recorded enter the hash only where they differ from their default, and a key that was renamed enters
it under its first name, so that neither makes an old run another experiment.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxvit.config.keys import KEYS, RENAMED, complete, flatten, model_attributes
from jaxvit.data.sources import located

_ABSENT = "(absent)"


def changes_result(path: str) -> bool:
    """Whether the key can change a run's result; model attributes and keys of a plug-in always count."""
    return KEYS[path].changes_result if path in KEYS else True


def config_hash(config: ConfigDict, extensions: Sequence[Mapping[str, Any]] = ()) -> str:
    """16 hex digits over every key that can change the result: equal hashes mean the same experiment.

    `extensions` are the changes made when a finished run was taken further: such a run is not the same as one that was
    as long from the start.
    """
    values = _values(config)
    idle = {path for path, default in _added(values).items() if values.get(path) == default}
    first = {new: old for old, new in reversed(RENAMED.items())}
    relevant: dict[str, Any] = {
        first.get(path, path): value for path, value in values.items() if changes_result(path) and path not in idle
    }
    if extensions:
        relevant["extensions"] = list(extensions)
    text = json.dumps(relevant, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _values(config: ConfigDict) -> dict[str, Any]:
    """{key: value}; the path of a folder of images is absolute, however it was written."""
    values = dict(flatten(complete(config)))
    if isinstance(values.get("data.name"), str):
        values["data.name"] = located(values["data.name"])
    return values


def _added(values: Mapping[str, Any]) -> dict[str, Any]:
    """{path: default} of the keys and attributes that were added after the first hashes were recorded."""
    from jaxvit.models.registry import ADDED_ATTRIBUTES

    added = {path: key.default for path, key in KEYS.items() if key.added}
    name = values.get("model.name", "")
    if isinstance(name, str) and ":" not in name:
        attributes = model_attributes(name)
        added |= {path: value for path, value in attributes.items() if path.removeprefix("model.") in ADDED_ATTRIBUTES}
    return added


def differences(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """{key: (old, new)} for every key that can change the result and differs.

    What is absent in one of them counts as its default; where it has none, as for an attribute that this version of a
    model does not know, it shows as '(absent)'.
    """
    a, b = _values(old), _values(new)
    name = b.get("model.name", "")
    if isinstance(name, str) and ":" in name and a.get("model.name") == name:
        # Who made `new` has imported the class already; see `complete`.
        defaults = model_attributes(name)
        a, b = {**defaults, **a}, {**defaults, **b}
    return {
        path: (a.get(path, _ABSENT), b.get(path, _ABSENT))
        for path in dict.fromkeys([*a, *b])
        if changes_result(path) and a.get(path, _ABSENT) != b.get(path, _ABSENT)
    }
