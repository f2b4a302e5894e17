"""model.onnx, written by jax2onnx; what its user must know is its metadata under 'jaxvit'."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxvit.export.model import ExportModel


def write(model: ExportModel, path: Path) -> None:
    """Writes the graph for any batch size, with its weights."""
    import onnx
    from jax2onnx import to_onnx

    shape = ("B", *model.loaded.image_shape)
    graph = to_onnx(
        lambda images_BHWC: model.probabilities(images_BHWC, plain=True),
        inputs=[jax.ShapeDtypeStruct(shape, jnp.uint8)],
        model_name="jaxvit",
    )
    onnx.helper.set_model_props(graph, {"jaxvit": json.dumps(model.facts())})
    onnx.save(graph, path)
