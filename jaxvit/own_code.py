"""Code of one's own, named 'package.module:name': whether it may run, where it is, what is wrong with it.

What the user names in a command, a config or a call is the user's own code, and runs. What the files of a run's folder
name is somebody's, and runs only with `own_code`: whoever reads such a folder does so within `named_by`, and `_import`,
the one place where a name becomes an import, keeps to that.
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

# By the error's name, for looking up a model's name needs no jax.
_REMEDIES = {
    "TracerArrayConversionError": "use jnp, not numpy",
    "TracerBoolConversionError": "use jnp.where in place of if",
    "TracerIntegerConversionError": "use jnp's indexing in place of Python's",
    "ConcretizationTypeError": "values are not known while the program is compiled; use jnp's functions",
    "InvalidRngError": "the one stream of randomness is 'dropout', and it is there with train=True only",
}
_LONGEST = 300
_LIBRARIES = (str(Path(__file__).parent), sysconfig.get_paths()["stdlib"])


# The folder whose files name what is loaded now, where none of it may run; '' = the user has named it, or allowed it.
_UNTRUSTED: ContextVar[str] = ContextVar("untrusted folder", default="")


@contextlib.contextmanager
def named_by(folder: Path | str, *, allowed: bool) -> Iterator[None]:
    """While it lasts, names come from the files of a run's folder, and their code runs only if that is allowed."""
    token = _UNTRUSTED.set("" if allowed else str(folder))
    try:
        yield
    finally:
        _UNTRUSTED.reset(token)


def search_working_folder() -> None:
    """Has Python look for modules where the user works as well, after all other places.

    Only for code of the user's own: a file that happens to lie there must not take an installed module's place.
    """
    with contextlib.suppress(OSError):  # the folder is gone
        if "" not in sys.path and os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())


def load(name: str, kind: str, key: str = "model.name") -> Any:
    """What 'package.module:name' names.

    Args:
      name: as the user wrote it.
      kind: 'function' or 'Class', whichever is wanted.
      key: of the config, whose value the name is.

    Raises:
      ValueError: there is no such thing. The message is one line, to be put after the name.
      UsageError: a folder's files name it, and it is not allowed to run.
    """
    module_name, _, attribute = name.partition(":")
    if module_name.endswith(".py") or "/" in module_name:
        path = Path(module_name).with_suffix("")
        dotted = path.name if path.is_absolute() or ".." in path.parts else ".".join(path.parts)
        raise ValueError(f"a module is named, not a file: write '{dotted}:{attribute or kind}'")
    if not module_name or module_name.startswith("."):
        raise ValueError(f"it names no module: write 'module:{attribute.strip('.') or kind}'")
    parent, _, last = module_name.rpartition(".")
    if not attribute and not _is_own(module_name) and _is_own(parent):
        raise ValueError(f"between the module and the {kind} stands a colon: write '{parent}:{last}'")
    module = _import(module_name, name, key)
    public = _public(module, kind)
    if not attribute:
        named = f"'{module_name}:{public[0] if public else kind}'"
        raise ValueError(f"it names a module, and nothing in it: write 'module:{kind}', such as {named}")
    if not hasattr(module, attribute):
        near = nearest(attribute, public or [other for other in vars(module) if not other.startswith("_")])
        has = f"; it has {', '.join(public[:5])}" if public and not near else ""
        raise ValueError(f"module '{module_name}' has no '{attribute}'{near}{has}")
    return getattr(module, attribute)


def load_function(name: str, key: str) -> Callable[..., Any]:
    """The function behind 'package.module:function'; `key` names the config key at fault.

    Raises:
      UsageError: it cannot be imported, or is no function.
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
    """Whether a name without a colon is a Python file, a module of the user's own, or something in one."""
    return name.endswith(".py") or _is_own(name) or _is_own(name.rpartition(".")[0])


def explain(error: BaseException) -> str:
    """An error of the user's code: its kind, first line and place in the user's file, and a remedy if one is known."""
    kind, text = type(error).__name__, first_line(error)[:_LONGEST].rstrip(" .:")
    said = kind if text == kind else f"{kind}: {text}"
    names = {base.__name__ for base in type(error).__mro__}
    remedy = next((f"; {remedy}" for name, remedy in _REMEDIES.items() if name in names), "")
    place = None if isinstance(error, SyntaxError) else _place(error)  # a SyntaxError's text has it
    return f"{said}{f' ({place})' if place else ''}{remedy}"


def parameter_names(function: Any) -> str:
    """'(image, key)', or an empty string where Python cannot tell."""
    try:
        return f"({', '.join(inspect.signature(function).parameters)})"
    except (TypeError, ValueError):
        return ""


def takes(function: Any, *args: Any, **kwargs: Any) -> bool:
    """Whether a function can be called with such arguments, as far as its signature tells."""
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:  # it has no signature, like some functions of C
        return True
    return True


# What a name is of, by its key, and what one does with it.
_ROLES = {"model.name": ("model", "load"), "data.name": ("data set", "open")}


def _import(name: str, whole: str, key: str) -> ModuleType:
    """The module, if it may run; `whole` is the name that it is the first part of."""
    if folder := _UNTRUSTED.get():
        what, do = _ROLES.get(key, (f"config.{key}", "use"))
        raise UsageError(
            f"{folder}: its {what} '{whole}' is code outside this package, and to {do} it runs module {name}; if you "
            "trust that, say so by --own_code, in Python by load(…, own_code=True)"
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
        raise ValueError(f"module '{name}' is there, but its own import fails: {explain(error)}") from error


def _is_own(module: str) -> bool:
    try:
        spec = _find(module)
    except Exception:  # the name cannot be a module's
        return False
    return spec is not None and not _is_library(spec.origin or "")


def _find(module: str) -> ModuleSpec | None:
    """Where a module lies. Nothing is imported: `importlib.util.find_spec` would import the packages around it."""
    first, *others = module.split(".")
    spec = importlib.util.find_spec(first) or PathFinder.find_spec(first, [os.getcwd()])
    for part in others:
        if spec is None or not spec.submodule_search_locations:
            return None
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations))
    return spec


def _public(module: ModuleType, kind: str) -> list[str]:
    """What of this kind a module defines itself, for use by others."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and callable(value)
        and isinstance(value, type) == (kind == "Class")
        and getattr(value, "__module__", "") == module.__name__
    ]


def _place(error: BaseException) -> str:
    """'my_model.py, line 3': the innermost place in a file that belongs to no library."""
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
