"""`--config.key=value`: config keys set on the command line, typed, with the nearest real key for a wrong one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxvit.config.files import load_config_file
from jaxvit.config.keys import KEYS, check_value, flatten, gone
from jaxvit.errors import UsageError, first_line, nearest


def parse_config_arguments(spec: str, tokens: Sequence[str]) -> tuple[Any, dict[str, Any], list[str]]:
    """Loads a config and applies ``--config.key=value`` overrides through ml_collections.

    Args:
      spec: value of ``--config``: a config of this package or a file, see `jaxvit.config.load_config_file`.
      tokens: the command line's remaining words.

    Returns:
      (config, overrides {key: value}, words that are no overrides).

    Raises:
      UsageError: unknown key, or a value of the wrong type.
    """
    overrides, _ = split_overrides(tokens)
    chosen_model = [value for key, value, _ in overrides if key == "model.name"]
    return parse_overrides(load_config_file(spec, chosen_model[-1] if chosen_model else ""), tokens)


def parse_overrides(config: Any, tokens: Sequence[str]) -> tuple[Any, dict[str, Any], list[str]]:
    """Applies ``--config.key=value`` overrides to a config; see `parse_config_arguments`."""
    from absl import flags
    from ml_collections import ConfigDict, config_flags

    overrides, rest = split_overrides(tokens)
    types = {path: type(value) for path, value in flatten(config)}
    for key, _, token in overrides:
        if key not in types:
            if isinstance(_lookup(config, key), ConfigDict):
                inner = [path for path in types if path.startswith(key + ".")]
                raise UsageError(f"{token}: '{key}' is a section; set one of its keys, such as config.{inner[0]}")
            why = gone(key) or _why_no_model_key(config, key)
            raise UsageError(f"{token}: there is no key config.{key}{f': {why}' if why else _suggest(key, types)}")
    values = flags.FlagValues()
    argv = ["jaxvit", *(token for _, _, token in overrides)]
    for (key, value, _), position in zip(overrides, range(1, len(argv)), strict=True):
        if types[key] is not bool:  # one spelling for absl: --config.key=value
            argv[position] = f"--config.{key}={value}"
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        values(argv)
    except (flags.Error, ValueError, TypeError) as error:
        raise UsageError(_explain_value_error(overrides, types, error)) from None
    applied = dict(values["config"].override_values)
    for key, value in applied.items():
        # absl's parser takes what is no Python literal for a tuple of one string.
        if types[key] is tuple and any(isinstance(v, str) and v.startswith(("(", "[")) for v in value):
            raise UsageError(f"--config.{key}={value[0]}: expected {_TYPE_NAMES[tuple]}")
        check_value(key, value)
    return values.config, applied, rest


def parse_model_overrides(config: Any, tokens: Sequence[str]) -> tuple[Any, dict[str, Any], list[str]]:
    """As `parse_overrides`, where another flag, `--model`, has named the config's model already.

    Raises:
      UsageError: as `parse_overrides`; or a word names a model.
    """
    if any(key == "model.name" for key, _, _ in split_overrides(tokens)[0]):
        raise UsageError("--config.model.name: the model is named by --model")
    return parse_overrides(config, tokens)


def set_dtype(config: Any, dtype: str) -> None:
    """Sets what the model computes in, as a verb's `--dtype` names it; '' leaves it as it is.

    Raises:
      UsageError: the model has no such attribute.
    """
    if not dtype:
        return
    if "dtype" not in config.model:
        raise UsageError(f"--dtype={dtype}: {config.model.name} has no attribute dtype; leave it out")
    config.model.dtype = dtype


def _why_no_model_key(config: Any, key: str) -> str:
    """What a class of one's own lacks for one of its attributes to be a key."""
    section, _, attribute = key.partition(".")
    name = _lookup(config, "model.name") or ""
    if section != "model" or ":" not in name:
        return ""
    from jaxvit.models.registry import why_no_key

    return why_no_key(name, attribute)


def split_overrides(tokens: Sequence[str]) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Sorts words into overrides (key, value, as written) and the rest; takes `--config.k=v`, `--config.k v`.

    A switch takes the next word only if that is true or false: `--config.augment.flip DIR` is a flag and a word.
    """
    switches = {path for path, key in KEYS.items() if isinstance(key.default, bool)}
    overrides, rest = [], []
    words = list(tokens)
    while words:
        word = words.pop(0)
        if not word.startswith(("--config.", "--noconfig.")):
            rest.append(word)
            continue
        name, equals, value = word.partition("=")
        key = name.removeprefix("--no").removeprefix("--").removeprefix("config.")
        takes_next = words and not words[0].startswith("--")
        if key in switches:
            takes_next = takes_next and words[0].lower() in ("true", "false", "0", "1", "t", "f")
        if not equals and not word.startswith("--no") and takes_next:
            value = words.pop(0)
            word = f"{name}={value}"
        overrides.append((key, value, word))
    return overrides, rest


def _lookup(config: Any, path: str) -> Any:
    for part in path.split("."):
        if not hasattr(config, "keys") or part not in config:
            return None
        config = config[part]
    return config


# What other trainers call it.
ELSEWHERE = {
    "epochs": "train.duration",
    "num_epochs": "train.duration",
    "steps": "train.duration",
    "lr": "optim.peak_lr",
    "learning_rate": "optim.peak_lr",
    "wd": "optim.weight_decay",
    "batch": "train.batch_size",
    "batch_size": "train.batch_size",
    "dataset": "data.name",
    "data": "data.name",
    "optimizer": "optim.name",
}


def _suggest(key: str, known: Sequence[str] | dict) -> str:
    elsewhere = ELSEWHERE.get(key.rpartition(".")[2])
    if elsewhere in known:
        return f" (did you mean '{elsewhere}'?)"
    leaves = {path.rpartition(".")[2]: path for path in known}
    if "." not in key and key in leaves:
        return f" (did you mean '{leaves[key]}'?)"
    direct = nearest(key, known)
    if direct:
        return direct
    by_leaf = nearest(key.rpartition(".")[2], leaves)
    return by_leaf and f" (did you mean '{leaves[by_leaf.split(chr(39))[1]]}'?)"


_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", tuple: "a tuple such as '(1, 2)'"}


def _explain_value_error(overrides: Sequence[tuple[str, str, str]], types: dict[str, type], error: Exception) -> str:
    for key, value, token in overrides:
        if not value and types[key] in (int, float):
            return f"{token}: the value is missing; write --config.{key}={'0.1' if types[key] is float else '1'}"
        if f"config.{key}" in str(error):
            return f"{token}: expected {_TYPE_NAMES.get(types[key], types[key].__name__)}, got '{value}'"
    return first_line(error)
