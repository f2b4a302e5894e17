"""Config files: `get_config(variant)` of a Python file, and the grid that it may bring for a sweep."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from jaxvit.config.keys import check_keys, complete, model_config
from jaxvit.errors import UsageError, first_line, nearest


def load_config_file(spec: str, model_name: str = "") -> ConfigDict:
    """Run a config file and return its config.

    Args:
      spec: 'path/to/file.py' or 'path/to/file.py:variant'.
      model_name: when given and not the file's own, the `model` section is that model's, at its own defaults: another
        model's sizes would mean something else.

    Raises:
      UsageError: there is no such file or variant, or the file is no config file.
    """
    path, _, variant = spec.partition(":")
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
    get_grid, variant = getattr(_run_config_file(spec), "get_grid", None), spec.partition(":")[2]
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
    """What a config file's function gives for the variant that `spec` names."""
    variant = spec.partition(":")[2]
    try:
        return function(variant) if variant else function()
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"--config={spec}: {name} failed: {type(error).__name__}: {first_line(error)}") from error


def _run_config_file(spec: str) -> ModuleType:
    # A config file is a program of the user's own, run on the user's request, as `python FILE` would be.
    path = spec.partition(":")[0]
    file = Path(path).expanduser()
    if not file.is_file():
        siblings = [str(p) for p in file.parent.glob("*.py")] if file.parent.is_dir() else []
        raise UsageError(f"--config={spec}: there is no file '{path}'{nearest(path, siblings)}")
    module_spec = importlib.util.spec_from_file_location(f"jaxvit_config_{file.stem}", file)
    if module_spec is None or module_spec.loader is None:
        raise UsageError(f"--config={spec}: '{path}' is not a Python file; a config file ends in .py")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"--config={spec}: the file does not run: {type(error).__name__}: {first_line(error)}"
        ) from error
    return module
