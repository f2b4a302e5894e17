"""Efficient vision transformers in JAX and Flax linen.

``import jaxvit`` is lazy: it pulls in neither jax nor flax until a name is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from jaxvit._version import __version__

if TYPE_CHECKING:
    from jaxvit import layers, models, ops
    from jaxvit.exports.write import export
    from jaxvit.models.registry import create_model, list_models
    from jaxvit.models.summarize import summary
    from jaxvit.run.train import train
    from jaxvit.trained.embed import embed
    from jaxvit.trained.evaluate import evaluate
    from jaxvit.trained.history import History
    from jaxvit.trained.load import load
    from jaxvit.trained.predict import predict
    from jaxvit.weights.pretrained import load_weights

# name -> module that holds it
_FUNCTIONS = {
    "History": "jaxvit.trained.history",
    "create_model": "jaxvit.models.registry",
    "embed": "jaxvit.trained.embed",
    "evaluate": "jaxvit.trained.evaluate",
    "export": "jaxvit.exports.write",
    "list_models": "jaxvit.models.registry",
    "load": "jaxvit.trained.load",
    "load_weights": "jaxvit.weights.pretrained",
    "predict": "jaxvit.trained.predict",
    "summary": "jaxvit.models.summarize",
    "train": "jaxvit.run.train",
}
_PACKAGES = ("layers", "models", "ops")

__all__ = [
    "History",
    "__version__",
    "create_model",
    "embed",
    "evaluate",
    "export",
    "layers",
    "list_models",
    "load",
    "load_weights",
    "models",
    "ops",
    "predict",
    "summary",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"jaxvit.{name}")
    raise AttributeError(f"module 'jaxvit' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
