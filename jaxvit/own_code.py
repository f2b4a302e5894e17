"""Loads the user's own code by its name, 'package.module:name', and explains what is wrong with it.

A name that the user writes in a command, a config or a call is trusted, and its module is imported. A name read from
the files of a run folder may come from anybody, and is imported only with ``own_code=True``. Code that reads a run
folder does so inside `named_by`; `_import`, the only place that imports a user's module, enforces the rule.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxvit.errors import UsageError, first_line, nearest

# Keyed by class name, so that this module does not import jax.
_REMEDIES = {
    "TracerArrayConversionError": "use jnp, not numpy",
    "TracerBoolConversionError": "use jnp.where instead of if",
    "TracerIntegerConversionError": "index jnp arrays, not Python lists",
    "ConcretizationTypeError": "values are unknown while JAX traces the function; use jnp's functions",
    "InvalidRngError": "the only rng stream is 'dropout', and it exists only with train=True",
}
_LONGEST = 300
_LIBRARIES = (str(Path(__file__).parent), sysconfig.get_paths()["stdlib"])


# The run folder being read, while its code must not run. '' = names come from the user, or the user allowed the code.
_UNTRUSTED: ContextVar[str] = ContextVar("untrusted folder", default="")


@contextlib.contextmanager
def named_by(folder: Path | str, *, allowed: bool) -> Iterator[None]:
    """Marks names loaded inside the `with` block as coming from `folder`; their code runs only if `allowed`."""
    token = _UNTRUSTED.set("" if allowed else str(folder))
    try:
        yield
    finally:
        _UNTRUSTED.reset(token)


def search_working_folder() -> None:
    """Appends the working folder to `sys.path`, so that the user's own modules are found.

    It comes last: a file in that folder must not replace an installed module.
    """
    with contextlib.suppress(OSError):  # the folder was deleted
        if "" not in sys.path and os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())


def load(name: str, kind: str, key: str = "model.name") -> Any:
    """Imports and returns the object called 'package.module:name'.

    Args:
      name: the name, as the user wrote it.
      kind: what is expected, 'function' or 'Class'; used in error messages.
      key: the config key that holds the name.

    Raises:
      ValueError: the object cannot be found. The message is one line that continues a sentence about the name.
      UsageError: the name comes from a run folder whose code is not allowed to run.
    """
    module_name, _, attribute = name.partition(":")
    if module_name.endswith(".py") or "/" in module_name:
        path = Path(module_name).with_suffix("")
        dotted = path.name if path.is_absolute() or ".." in path.parts else ".".join(path.parts)
        raise ValueError(f"this is a file, not a module: write '{dotted}:{attribute or kind}'")
    if not module_name or module_name.startswith("."):
        raise ValueError(f"the module is missing: write 'module:{attribute.strip('.') or kind}'")
    parent, _, last = module_name.rpartition(".")
    if not attribute and not _is_own(module_name) and _is_own(parent):
        raise ValueError(f"separate the module and the {kind} by a colon: write '{parent}:{last}'")
    module = _import(module_name, name, key)
    public = _public(module, kind)
    if not attribute:
        named = f"'{module_name}:{public[0] if public else kind}'"
        raise ValueError(f"it names only a module: write 'module:{kind}', such as {named}")
    if not hasattr(module, attribute):
        near = nearest(attribute, public or [other for other in vars(module) if not other.startswith("_")])
        has = f"; it has {', '.join(public[:5])}" if public and not near else ""
        raise ValueError(f"module '{module_name}' has no '{attribute}'{near}{has}")
    return getattr(module, attribute)


def load_function(name: str, key: str) -> Callable[..., Any]:
    """Imports and returns the function 'package.module:function', the value of config key `key`.

    Raises:
      UsageError: it cannot be imported, or is not a function.
    """
    try:
        found = load(name, "function", key)
    except ValueError as error:
        raise UsageError(f"config.{key}='{name}': cannot be imported: {error}") from None
    if isinstance(found, type):
        raise UsageError(f"config.{key}='{name}': is a class; name a function")
    if not callable(found):
        raise UsageError(f"config.{key}='{name}': is not a function")
    return found


def is_own_module(name: str) -> bool:
    """True if a name without a colon is a Python file, one of the user's modules, or an attribute of one."""
    return name.endswith(".py") or _is_own(name) or _is_own(name.rpartition(".")[0])


def explain(error: BaseException) -> str:
    """Describes an error in the user's code in one line: class, message, file and line, and a remedy if known."""
    kind, text = type(error).__name__, first_line(error)[:_LONGEST].rstrip(" .:")
    said = kind if text == kind else f"{kind}: {text}"
    names = {base.__name__ for base in type(error).__mro__}
    remedy = next((f"; {remedy}" for name, remedy in _REMEDIES.items() if name in names), "")
    place = None if isinstance(error, SyntaxError) else _place(error)  # the message of a SyntaxError has it
    return f"{said}{f' ({place})' if place else ''}{remedy}"


def parameter_names(function: Any) -> str:
    """The parameters as text, such as '(image, key)', or '' if the function has no signature."""
    try:
        return f"({', '.join(inspect.signature(function).parameters)})"
    except (TypeError, ValueError):
        return ""


def takes(function: Any, *args: Any, **kwargs: Any) -> bool:
    """True if the signature of a function accepts these arguments, or if the function has no signature."""
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:  # no signature, as for some functions written in C
        return True
    return True


# Config key: what its value names, and what is done with that (for error messages).
_ROLES = {"model.name": ("model", "load"), "data.name": ("data set", "open")}


def _import(name: str, whole: str, key: str) -> ModuleType:
    """Imports a module, if its code may run. `whole` is the full name, 'module:attribute'."""
    if folder := _UNTRUSTED.get():
        what, do = _ROLES.get(key, (f"config.{key}", "use"))
        raise UsageError(
            f"{folder}: its {what} '{whole}' is code outside jaxvit, and to {do} it runs module {name}; if you "
            "trust that code, add --own_code, or in Python load(…, own_code=True)"
        )
    search_working_folder()
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and (name == missing or name.startswith(f"{missing}.")):
            near = nearest(name, [path.stem for path in Path.cwd().glob("*.py")])
            raise ValueError(
                f"there is no module '{missing}' in the working folder or on the Python path{near}"
            ) from error
        raise ValueError(f"module '{name}' exists, but importing it fails: {explain(error)}") from error


def _is_own(module: str) -> bool:
    try:
        spec = _find(module)
    except Exception:  # not a valid module name
        return False
    return spec is not None and not _is_library(spec.origin or "")


def _find(module: str) -> ModuleSpec | None:
    """Finds a module without importing anything; `importlib.util.find_spec` would import its parent packages."""
    first, *others = module.split(".")
    spec = importlib.util.find_spec(first) or PathFinder.find_spec(first, [os.getcwd()])
    for part in others:
        if spec is None or not spec.submodule_search_locations:
            return None
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations))
    return spec


def _public(module: ModuleType, kind: str) -> list[str]:
    """Public functions, or classes, that a module defines itself."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and callable(value)
        and isinstance(value, type) == (kind == "Class")
        and getattr(value, "__module__", "") == module.__name__
    ]


def _place(error: BaseException) -> str:
    """The innermost frame in the user's own code, such as 'my_model.py, line 3'."""
    places = [f"{Path(file).name}, line {line}" for file, line in _frames(error) if not _is_library(file)]
    return places[-1] if places else ""


def _frames(error: BaseException) -> Iterator[tuple[str, int]]:
    trace = error.__traceback__
    while trace:
        yield trace.tb_frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next


def _is_library(file: str) -> bool:
    installed = "site-packages" in file or "dist-packages" in file
    return installed or not file.endswith(".py") or file.startswith(_LIBRARIES)
