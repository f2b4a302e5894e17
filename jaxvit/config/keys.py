"""Makes, completes and checks configs of the keys in `jaxvit.config.key_table`.

A config file defines ``get_config(variant='...') -> ConfigDict``. If it has several experiments, it also defines a
tuple ``VARIANTS`` of their names. For `jaxvit sweep` it may define ``get_grid(variant='...')``, values of some keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import cast

from ml_collections import ConfigDict

from jaxvit.config.key_table import KEYS, REMOVED, RENAMED
from jaxvit.errors import UsageError, nearest

SOURCE = "source"  # as the name of a model: that of the weights in init.from
NO_SOURCE = "config.init.from is missing: the run, file or hf://owner/name whose weights and model to start from"


def base_config(model: str = "vit", **attributes: object) -> ConfigDict:
    """Returns a config of all keys at their defaults, with a `model` section for a model.

    Args:
      model: a name for `jaxvit.create_model`, 'package.module:Class', or 'source' = the model of `init.from`.
      **attributes: attributes of the model with other values than the model's own.

    Raises:
      UsageError: there is no such model or attribute.

    Example:
      >>> config = base_config("vit", depth=4)
      >>> config.model.depth, config.train.duration
      (4, '10 epochs')
    """
    config = ConfigDict()
    for path, key in KEYS.items():
        section, leaf = _section(config, path)
        section[leaf] = key.default
    config.model = model_config(model, **attributes)
    return config.lock()


def model_config(name: str, **attributes: object) -> ConfigDict:
    """Returns the `model` section: the name of the model, and all its attributes as plain values.

    ``num_classes = 0`` means the number of classes of the data set.

    Raises:
      UsageError: there is no such model or attribute, or an attribute of your own class has no default.
    """
    from jaxvit.models import registry  # imported here, because the other keys need neither Flax nor JAX

    if name == SOURCE:
        return ConfigDict({"name": SOURCE})
    try:
        section = registry.model_defaults(name)
        needed = registry.attributes_without_default(name)
    except ValueError as error:
        raise UsageError(f"config.model.name: {error}") from None
    if needed:
        raise UsageError(
            f"config.model.name='{name}': attribute '{needed[0]}' has no default, which a config key needs; "
            f"give every attribute of the class a default, such as `{needed[0]}: int = 8`"
        )
    if "num_classes" in section:
        section["num_classes"] = 0
    for key, value in attributes.items():
        if key not in section:
            why = gone(f"model.{key}") or f"{name} has no such attribute{nearest(key, section)}"
            raise UsageError(f"config.model.{key}: {why}")
        section[key] = value
    return ConfigDict({"name": name, **section})


def complete(config: ConfigDict) -> ConfigDict:
    """Adds missing keys and missing attributes of the model with their defaults, and renames renamed keys.

    Attributes of the user's own model, 'module:Class', are not completed, because that would import the user's code.

    Returns:
      The same object if it is complete, else a completed copy.
    """
    leaves = dict(flatten(config))
    absent = {path: key.default for path, key in KEYS.items() if path not in leaves}
    name = leaves.get("model.name")
    if isinstance(name, str) and ":" not in name:
        absent |= {path: value for path, value in model_attributes(name).items() if path not in leaves}
    absent |= {new: leaves[old] for old, new in RENAMED.items() if old in leaves and new in absent}
    stale = [old for old in RENAMED if old in leaves]
    if not absent and not stale:
        return config
    config = config.copy_and_resolve_references()
    for path, value in absent.items():
        set_value(config, path, value)
    with config.unlocked():
        for path in stale:
            section, leaf = _section(config, path)
            del section[leaf]
    return config


def _section(config: ConfigDict, path: str) -> tuple[ConfigDict, str]:
    """Splits a key into its section, which is made if it is missing, and the last part of its name."""
    section, _, leaf = path.rpartition(".")
    if not section:
        return config, leaf
    if section not in config:
        config[section] = ConfigDict()
    return cast(ConfigDict, config[section]), leaf


def set_value(config: ConfigDict, path: str, value: object) -> None:
    """Sets a key such as 'model.depth', also of a locked config."""
    with config.unlocked():
        section, leaf = _section(config, path)
        section[leaf] = value


def model_attributes(name: str) -> dict[str, object]:
    """Returns the keys of a model's attributes with their defaults, such as {'model.depth': 4}; {} for an unknown
    model.

    This imports the user's own class, 'module:Class', so call it only if the user has asked for that class.
    """
    from jaxvit.models import registry

    if ":" not in name and name not in registry.MODELS and name not in registry.FAMILIES:
        return {}
    defaults = registry.model_defaults(name)
    return {f"model.{key}": 0 if key == "num_classes" else value for key, value in defaults.items()}


# JAX's indices are int32, and a seed is a uint32. Sizes of files may be larger.
_LARGEST = {
    **dict.fromkeys(("seed", "seeds", "data.white"), 2**32 - 1),
    **dict.fromkeys(("data.max_pixels", "data.max_bytes"), 2**53),
}
_LARGEST_ATTRIBUTE = 10**6  # largest number in a model's attributes; JAX cannot trace larger sizes
_TUPLES_OF_WORDS = ("log.writers", "optim.muon_off", "optim.muon_on", "train.hooks")  # other tuples hold numbers


def check_value(path: str, value: object) -> None:
    """Checks the type of a key's value, and that its numbers are finite and not too large.

    `jaxvit.config.plan.resolve` checks ranges, and that values fit together.

    Args:
      path: the key, or a model's attribute 'model.NAME'.
      value: its value.

    Raises:
      UsageError: the value is not allowed.
    """
    if path in KEYS:
        example = KEYS[path].default
        wanted = type(example)
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise UsageError(f"config.{path}={value!r}: must be of type {wanted.__name__}, such as {example!r}")
        kinds = (str,) if path in _TUPLES_OF_WORDS else (int, float)
        if isinstance(value, tuple) and not all(type(each) in kinds for each in value):
            of = "words" if str in kinds else "numbers"
            raise UsageError(f"config.{path}={value!r}: must be a tuple of {of}, such as {example!r}")
    attribute = path.startswith("model.")
    most = _LARGEST.get(path, _LARGEST_ATTRIBUTE if attribute else 2**31 - 1)
    for each in value if isinstance(value, tuple) else (value,):
        if isinstance(each, float) and not math.isfinite(each):
            raise UsageError(f"config.{path}={value}: must be finite")
        if isinstance(each, int | float if attribute else int) and abs(each) > most:
            raise UsageError(f"config.{path}={each:.12g}: must be at most {most:,}")


def check_keys(config: ConfigDict) -> None:
    """Checks that a config has all keys, no other keys, and values of the right types.

    Raises:
      UsageError: names the wrong key, and the most similar real one.
    """
    leaves = dict(flatten(config))
    for path, value in leaves.items():
        if path not in KEYS and not path.startswith("model."):
            raise UsageError(f"config.{path}: {gone(path) or f'there is no such key{nearest(path, KEYS)}'}")
        check_value(path, value)
    missing = [path for path in KEYS if path not in leaves]
    if missing:
        raise UsageError(f"config.{missing[0]}: this key is missing; make the config with jaxvit.config.base_config()")


def gone(path: str) -> str:
    """Says what to write instead of a renamed or removed key; '' if there never was such a key."""
    if path in RENAMED:
        return f"this key is called config.{RENAMED[path]} now"
    return f"this key is gone; {REMOVED[path]}" if path in REMOVED else ""


def flatten(config: ConfigDict | Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yields ('section.key', value) for every key, in the config's order."""
    for key in config:
        value = config[key]
        if isinstance(value, ConfigDict | dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def to_plain(config: ConfigDict) -> dict[str, object]:
    """Converts a config to nested dicts. Keeps the order of the keys, which ConfigDict's own conversion sorts."""
    return {k: to_plain(v) if isinstance(v, ConfigDict) else v for k, v in ((k, config[k]) for k in config)}


def from_plain(plain: Mapping[str, object]) -> ConfigDict:
    """Converts nested dicts, as read from JSON, to a config. Lists become tuples."""

    def restore(value: object) -> object:
        if isinstance(value, dict):
            return ConfigDict({k: restore(v) for k, v in value.items()})
        return tuple(restore(v) for v in value) if isinstance(value, list) else value

    return ConfigDict({k: restore(v) for k, v in plain.items()})
