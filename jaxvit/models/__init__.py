"""Model families, one file each, and the registry of names."""

from jaxvit.models.registry import (
    create_model,
    input_shape,
    list_models,
    model_defaults,
    resolve_class,
)
from jaxvit.models.vit import ViT

__all__ = ["ViT", "create_model", "input_shape", "list_models", "model_defaults", "resolve_class"]
