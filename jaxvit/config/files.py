"""Config files: `get_config(variant)` of a Python file, and the grid that it may bring for a sweep.

A bare name, 'digits' or 'digits:cct', is always a config of this package. What has a '/' or ends in '.py' is the path
of a file. So a bare name never runs a file that happens to lie in the working folder.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from jaxvit.config.keys import check_keys, complete, model_config
from jaxvit.errors import UsageError, first_line, nearest
from jaxvit.files import local_path, packaged
from jaxvit.own_code import search_working_folder


def packaged_configs() -> tuple[str, ...]:
    """The names of the configs that come with this package: 'cct', 'digits', …"""
    return tuple(sorted(file.stem for file in packaged("configs").glob("[!_]*.py")))


def split_spec(spec: str) -> tuple[str, str]:
    """(name or path, variant) of a value of ``--config``; the variant is '' where none is named.

    A path may have colons of its own: 'runs/3:30/mine.py:small' is ('runs/3:30/mine.py', 'small').
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
    """Run a config file and return its config.

    Args:
      spec: a config of this package, 'digits' or 'digits:cct', or a file, './mine.py' or 'path/to/mine.py:variant'.
      model_name: when given and not the file's own, the `model` section is that model's, at its own defaults: another
        model's sizes would mean something else.

    Raises:
      UsageError: there is no such name, file or variant, or the file is no config file.
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
    if model_name and model_name != config.model.name:
        with config.unlocked():
            config.model = model_config(model_name)
    config = complete(config)
    check_keys(config)
    return config


def load_grid(spec: str) -> dict[str, Sequence[Any]]:
    """The grid, {key: values}, that a config file brings for `jaxvit sweep`: its ``get_grid``'s; {} if it has none.

    Raises:
      UsageError: its get_grid gives no grid.
    """
    get_grid, variant = getattr(_run_config_file(spec), "get_grid", None), split_spec(spec)[1]
    if get_grid is None:
        return {}
    form = "{key: (value, value)}, such as {'model.depth': (2, 4)}"
    if not callable(get_grid):
        raise UsageError(f"--config={spec}: get_grid must be a function that returns {form}")
    if variant and not inspect.signature(get_grid).parameters:
        raise UsageError(
            f"--config={spec}: get_grid() takes no variant; write it as get_grid(variant='{variant}'), or name the "
            "grid by --over"
        )
    grid = _call(spec, "get_grid", get_grid)
    right = isinstance(grid, Mapping) and all(
        isinstance(key, str) and isinstance(values, list | tuple) and values for key, values in grid.items()
    )
    if not right:
        raise UsageError(f"--config={spec}: get_grid() must return {form}")
    return dict(grid)


def _call(spec: str, name: str, function: Callable[..., Any]) -> Any:
    """Calls a config file's function with the variant that `spec` names, if it names one."""
    variant = split_spec(spec)[1]
    try:
        return function(variant) if variant else function()
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"--config={spec}: {name} failed: {type(error).__name__}: {first_line(error)}") from error


def _file_of(spec: str) -> Path:
    """The file that a value of ``--config`` names.

    Raises:
      UsageError: there is none.
    """
    path, variant = split_spec(spec)
    names, of_variant = packaged_configs(), f":{variant}" if variant else ""
    if not _is_path(path):
        if path in names:
            return packaged("configs") / f"{path}.py"
        remedy = f"{nearest(path, names)}; there are {', '.join(names)}; a file is named by its path, ./NAME.py"
        if os.path.isfile(f"{path}.py"):
            remedy = f"; to run the file of that name in this folder, write --config=./{path}.py{of_variant}"
        raise UsageError(f"--config={spec}: jaxvit has no config '{path}'{remedy}")
    file = Path(local_path(path))
    if os.path.isfile(file):
        return file
    if file.stem in names:
        remedy = f"; the config of that name that comes with jaxvit is --config={file.stem}{of_variant}"
    else:
        remedy = nearest(path, [str(p) for p in file.parent.glob("*.py")] if os.path.isdir(file.parent) else [])
    raise UsageError(f"--config={spec}: there is no file '{path}'{remedy}")


def _run_config_file(spec: str) -> ModuleType:
    # A config file is a program of the user's own, run on the user's request, as `python FILE` would be.
    path, file = split_spec(spec)[0], _file_of(spec)
    if _is_path(path):
        search_working_folder()
    module_spec = importlib.util.spec_from_file_location(f"jaxvit_config_{file.stem}", file)
    if module_spec is None or module_spec.loader is None:
        raise UsageError(f"--config={spec}: '{path}' is not a Python file; a config file ends in .py")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # dataclasses look their module up
    try:
        module_spec.loader.exec_module(module)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"--config={spec}: the file does not run: {type(error).__name__}: {first_line(error)}"
        ) from error
    return module
