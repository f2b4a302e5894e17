"""Parses overrides of config keys on the command line, `--config.KEY=VALUE`, and suggests a key for a wrong one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from keyword import iskeyword
from typing import cast

from ml_collections import ConfigDict

from jaxvit.config.files import load_config_file
from jaxvit.config.key_table import KEYS
from jaxvit.config.keys import SOURCE, check_value, flatten, gone, set_value
from jaxvit.errors import UsageError, first_line, nearest


def parse_config_arguments(spec: str, tokens: Sequence[str]) -> tuple[ConfigDict, dict[str, object], list[str]]:
    """Loads a config and applies ``--config.KEY=VALUE`` overrides to it.

    Args:
      spec: value of ``--config``, a config of this package or a file; see `jaxvit.config.load_config_file`.
      tokens: the other words of the command line.

    Returns:
      The config, the overrides {key: value}, and the words that are not overrides.

    Raises:
      UsageError: a key is unknown, or a value has the wrong type.
    """
    overrides, _ = split_overrides(tokens)
    chosen_model = [value for key, value, _ in overrides if key == "model.name"]
    config = load_config_file(spec, chosen_model[-1] if chosen_model else "")
    chosen_weights = [value for key, value, _ in overrides if key == "init.from"]
    if chosen_weights and chosen_weights[-1] and _lookup(config, "model.name") == SOURCE:
        config = _with_model_of(config, chosen_weights[-1], any(key.startswith("model.") for key, _, _ in overrides))
    return parse_overrides(config, tokens)


def _with_model_of(config: ConfigDict, where: str, needed: bool) -> ConfigDict:
    """Puts the model of some weights into a config, whose attributes are keys then.

    Without `needed`, weights that are gone are no error yet: a run that has begun does not need them.
    """
    from jaxvit.config.initial_weights import start_from  # imports the models and the importers

    try:
        config = start_from(config, where)
    except UsageError:
        if needed:
            raise
        return config
    set_value(config, "init.hash", "")  # filled in when the run starts
    return config


def parse_overrides(config: ConfigDict, tokens: Sequence[str]) -> tuple[ConfigDict, dict[str, object], list[str]]:
    """Applies ``--config.KEY=VALUE`` overrides to a config; see `parse_config_arguments`."""
    from absl import flags
    from ml_collections import config_flags

    overrides, rest = split_overrides(tokens)
    types = {path: type(value) for path, value in flatten(config)}
    for key, _, token in overrides:
        if key not in types:
            if isinstance(_lookup(config, key), ConfigDict):
                inner = [path for path in types if path.startswith(key + ".")]
                raise UsageError(f"{token}: '{key}' is a section; set one of its keys, such as config.{inner[0]}")
            why = gone(key) or _why_no_model_key(config, key)
            raise UsageError(f"{token}: there is no key config.{key}{f': {why}' if why else _suggest(key, types)}")
    # ml_collections parses a key as Python code, in which `from` is no name. Such keys hold text.
    direct: dict[str, object] = {key: value for key, value, _ in overrides if iskeyword(key.rpartition(".")[2])}
    overrides = [each for each in overrides if each[0] not in direct]
    values = flags.FlagValues()
    argv = ["jaxvit", *(token for _, _, token in overrides)]
    for (key, value, _), position in zip(overrides, range(1, len(argv)), strict=True):
        if types[key] is not bool:  # absl then sees one spelling only, --config.KEY=VALUE
            argv[position] = f"--config.{key}={value}"
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        values(argv)
    except (flags.Error, ValueError, TypeError) as error:
        raise UsageError(_explain_value_error(overrides, types, error)) from None
    applied: dict[str, object] = dict(getattr(values["config"], "override_values"))  # noqa: B009
    for key, value in direct.items():
        set_value(values.config, key, value)
    applied |= direct
    for key, value in applied.items():
        # absl parses text that is not a Python literal as a tuple of one string.
        if isinstance(value, tuple) and any(isinstance(v, str) and v.startswith(("(", "[")) for v in value):
            raise UsageError(f"--config.{key}={value[0]}: expected {_TYPE_NAMES[tuple]}")
        check_value(key, value)
    return cast(ConfigDict, values.config), applied, rest


def parse_model_overrides(config: ConfigDict, tokens: Sequence[str]) -> tuple[ConfigDict, dict[str, object], list[str]]:
    """Applies overrides to a config whose model the flag `--model` has set; see `parse_overrides`.

    Raises:
      UsageError: a key is unknown, a value has the wrong type, or an override sets another model.
    """
    if any(key == "model.name" for key, _, _ in split_overrides(tokens)[0]):
        raise UsageError("--config.model.name: set the model with --model")
    return parse_overrides(config, tokens)


def set_dtype(config: ConfigDict, dtype: str) -> None:
    """Sets the dtype that the model computes in, from a verb's flag `--dtype`. '' keeps the config's.

    Raises:
      UsageError: the model has no such attribute.
    """
    if not dtype:
        return
    model = cast(ConfigDict, config.model)
    if "dtype" not in model:
        raise UsageError(f"--dtype={dtype}: {model.name} has no attribute dtype; leave the flag out")
    model.dtype = dtype


def _why_no_model_key(config: ConfigDict, key: str) -> str:
    """Says why an attribute of the user's own model class is not a config key; '' if the key is no such attribute."""
    section, _, attribute = key.partition(".")
    name = str(_lookup(config, "model.name") or "")
    if section != "model" or ":" not in name:
        return ""
    from jaxvit.models.registry import why_no_key

    return why_no_key(name, attribute)


def split_overrides(tokens: Sequence[str]) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Sorts words into overrides (key, value, as written) and other words.

    Both `--config.KEY=VALUE` and `--config.KEY VALUE` are overrides. After a boolean key, the next word is its value
    only if the word is true or false, so `--config.augment.flip DIR` is an override and another word.
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


def _lookup(config: ConfigDict, path: str) -> object:
    found: object = config
    for part in path.split("."):
        if not isinstance(found, ConfigDict) or part not in found:
            return None
        found = found[part]
    return found


# Names of keys in other trainers.
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


def _suggest(key: str, known: Iterable[str]) -> str:
    known = tuple(known)
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
