"""model.onnx, written by jax2onnx; what its user must know is its metadata under 'jaxvit'."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxvit.exports.model import ExportModel
from jaxvit.layers.stack import plainly
from jaxvit.ops.implementations import PLAIN

# What jax2onnx knows of each. Absorbed attention, where it applies, has fewer multiply-adds: onnxruntime computes what
# depends on constants alone, as its products of kernels do, when it loads the file.
_WAYS = {**PLAIN, "attention": "absorbed"}


def write(model: ExportModel, path: Path) -> None:
    """Writes the graph for any batch size, with its weights."""
    import onnx

    from jaxvit.exports.onnx_graph import rewrite

    for name in ("jax2onnx", "onnx_ir"):  # they tell of plugins for libraries that nobody uses here, and of types
        logging.getLogger(name).setLevel(logging.ERROR)
    from jax2onnx import to_onnx

    # Block by block: a loop of blocks is what jax2onnx knows least of.
    model = dataclasses.replace(model, loaded=dataclasses.replace(model.loaded, model=plainly(model.loaded.model)))
    shape = ("B", *model.loaded.image_shape)
    # It puts functions of its own in the place of Flax's; these promote ranks, and print what they do.
    with (
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        graph = to_onnx(
            lambda images_BHWC: model.probabilities(images_BHWC, _WAYS),
            inputs=[jax.ShapeDtypeStruct(shape, jnp.uint8)],
            model_name="jaxvit",
        )
    rewrite(graph.graph)
    onnx.helper.set_model_props(graph, {"jaxvit": json.dumps(model.facts())})
    onnx.save(graph, path)
