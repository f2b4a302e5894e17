"""Efficient vision transformers in JAX and Flax linen.

``import jaxvit`` is lazy: it pulls in neither jax nor flax until a name is used.
"""

from __future__ import annotations

import importlib
from typing import Any

from jaxvit._version import __version__

# name -> module that holds it
_LAZY = {
    "History": "jaxvit.history",
    "create_model": "jaxvit.models.registry",
    "list_models": "jaxvit.models.registry",
    "load": "jaxvit.loading",
}
_MODULES = ("layers", "models", "ops", "train")

__all__ = ["History", "__version__", "create_model", "layers", "list_models", "load", "models", "ops", "train"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"jaxvit.{name}")
    raise AttributeError(f"module 'jaxvit' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
