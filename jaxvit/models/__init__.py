"""Model families, one file each, and the registry of named models."""

from jaxvit.models.cct import CCT
from jaxvit.models.count import count_macs, count_params
from jaxvit.models.registry import (
    FAMILIES,
    MODELS,
    create_model,
    input_shape,
    list_models,
    model_defaults,
    resolve_class,
)
from jaxvit.models.shiftvit import ShiftViT
from jaxvit.models.vit import ViT

__all__ = [
    "CCT",
    "FAMILIES",
    "MODELS",
    "ShiftViT",
    "ViT",
    "count_macs",
    "count_params",
    "create_model",
    "input_shape",
    "list_models",
    "model_defaults",
    "resolve_class",
]
