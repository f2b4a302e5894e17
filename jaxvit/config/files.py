"""Loads config files, Python files that define `get_config(variant)`, and their grids for sweeps.

A bare name such as 'digits' or 'digits:cct' is always a config of this package. A word with a '/' or ending in '.py' is
the path of a file. So a bare name never runs a file of the working folder.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import cast

from ml_collections import ConfigDict

from jaxvit.config.keys import check_keys, complete, model_config
from jaxvit.errors import UsageError, first_line, nearest
from jaxvit.files import local_path, packaged
from jaxvit.own_code import search_working_folder


def packaged_configs() -> tuple[str, ...]:
    """Returns the names of this package's configs: 'cct', 'digits', …"""
    return tuple(sorted(file.stem for file in packaged("configs").glob("[!_]*.py")))


def split_spec(spec: str) -> tuple[str, str]:
    """Splits a value of ``--config`` into name or path, and variant, which is '' if there is none.

    A path may contain colons.

    Example:
      >>> split_spec("digits:cct"), split_spec("runs/3:30/mine.py:small")
      (('digits', 'cct'), ('runs/3:30/mine.py', 'small'))
    """
    head, _, tail = spec.rpartition(":")
    if _is_path(head) and not _is_path(tail):
        return head, tail
    if _is_path(spec):
        return spec, ""
    name, _, variant = spec.partition(":")
    return name, variant


def _is_path(word: str) -> bool:
    return "/" in word or word.endswith(".py")


def load_config_file(spec: str, model_name: str = "") -> ConfigDict:
    """Runs a config file and returns its config.

    Args:
      spec: config of this package, 'digits' or 'digits:cct', or a file, './mine.py' or 'path/to/mine.py:variant'.
      model_name: name of another model than the file's. The `model` section then has that model's own attributes,
        because the sizes of one model mean something else in another. '' = the file's model.

    Raises:
      UsageError: there is no such name, file or variant, or the file is not a config file.
    """
    path, variant = split_spec(spec)
    module = _run_config_file(spec)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise UsageError(f"--config={spec}: the file defines no function get_config()")
    variants = tuple(getattr(module, "VARIANTS", ()))
    if variant and variants and variant not in variants:
        raise UsageError(
            f"--config={spec}: no variant '{variant}'{nearest(variant, variants)}; {path} has {', '.join(variants)}"
        )
    if variant and not inspect.signature(get_config).parameters:
        raise UsageError(f"--config={spec}: {path} has no variants; leave out ':{variant}'")
    config = _call(spec, "get_config", get_config)
    if not isinstance(config, ConfigDict) or "model" not in config:
        raise UsageError(f"--config={spec}: get_config() must return a ConfigDict made by jaxvit.config.base_config()")
    if model_name and model_name != cast(ConfigDict, config.model).name:
        with config.unlocked():
            config.model = model_config(model_name)
    config = complete(config)
    check_keys(config)
    return config


def load_grid(spec: str) -> dict[str, Sequence[object]]:
    """Returns the grid {key: values} of a config file's ``get_grid`` for `jaxvit sweep`; {} if there is none.

    Raises:
      UsageError: get_grid does not return a grid.
    """
    get_grid, variant = getattr(_run_config_file(spec), "get_grid", None), split_spec(spec)[1]
    if get_grid is None:
        return {}
    form = "{key: (value, value)}, such as {'model.depth': (2, 4)}"
    if not callable(get_grid):
        raise UsageError(f"--config={spec}: get_grid must be a function that returns {form}")
    if variant and not inspect.signature(get_grid).parameters:
        raise UsageError(
            f"--config={spec}: get_grid() takes no variant; define get_grid(variant='{variant}'), or give the grid "
            "with --over"
        )
    grid = _call(spec, "get_grid", get_grid)
    if not isinstance(grid, Mapping) or not all(
        isinstance(key, str) and isinstance(values, list | tuple) and values for key, values in grid.items()
    ):
        raise UsageError(f"--config={spec}: get_grid() must return {form}")
    return dict(grid)


def _call(spec: str, name: str, function: Callable[..., object]) -> object:
    """Calls a function of a config file with the variant of `spec`, if it has one."""
    variant = split_spec(spec)[1]
    try:
        return function(variant) if variant else function()
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"--config={spec}: {name} failed: {type(error).__name__}: {first_line(error)}") from error


def _file_of(spec: str) -> Path:
    """Returns the file that a value of ``--config`` names.

    Raises:
      UsageError: there is no such file.
    """
    path, variant = split_spec(spec)
    names, of_variant = packaged_configs(), f":{variant}" if variant else ""
    if not _is_path(path):
        if path in names:
            return packaged("configs") / f"{path}.py"
        remedy = f"{nearest(path, names)}; it has {', '.join(names)}; for a file, write its path, ./NAME.py"
        if os.path.isfile(f"{path}.py"):
            remedy = f"; for the file of that name in this folder, write --config=./{path}.py{of_variant}"
        raise UsageError(f"--config={spec}: jaxvit has no config '{path}'{remedy}")
    try:
        file = Path(local_path(path))
    except UsageError as error:
        raise UsageError(f"--config={spec}: {error}") from None
    if os.path.isfile(file):
        return file
    if file.stem in names:
        remedy = f"; for jaxvit's config of that name, write --config={file.stem}{of_variant}"
    else:
        remedy = nearest(path, [str(p) for p in file.parent.glob("*.py")] if os.path.isdir(file.parent) else [])
    raise UsageError(f"--config={spec}: there is no file '{path}'{remedy}")


def _run_config_file(spec: str) -> ModuleType:
    """Imports a config file. It is the user's own program and runs on the user's request, as with `python FILE`."""
    path, file = split_spec(spec)[0], _file_of(spec)
    if _is_path(path):
        search_working_folder()
    module_spec = importlib.util.spec_from_file_location(f"jaxvit_config_{file.stem}", file)
    if module_spec is None or module_spec.loader is None:
        raise UsageError(f"--config={spec}: '{path}' is not a Python file; a config file ends in .py")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # dataclasses look up their module
    try:
        module_spec.loader.exec_module(module)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"--config={spec}: the file does not run: {type(error).__name__}: {first_line(error)}"
        ) from error
    return module
