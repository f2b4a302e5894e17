"""The ONNX format: model.onnx, converted by jax2onnx, with metadata under the key 'jaxvit'."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxvit.exports.model import ExportModel
from jaxvit.layers.stack import plainly
from jaxvit.ops.implementations import PLAIN

# Implementations that jax2onnx can convert. Absorbed attention, where it applies, has fewer multiply-adds: its products
# of kernels are constants, which onnxruntime folds when it loads the file.
_WAYS = {**PLAIN, "attention": "absorbed"}


def write(model: ExportModel, path: Path) -> None:
    """Writes the graph, with weights, for any batch size."""
    import onnx

    # Unroll the blocks: jax2onnx supports scan poorly.
    model = dataclasses.replace(model, loaded=dataclasses.replace(model.loaded, model=plainly(model.loaded.model)))
    graph = convert(model, model.probabilities)
    onnx.helper.set_model_props(graph, {"jaxvit": json.dumps(model.facts())})
    onnx.save(graph, path)


def convert(model: ExportModel, function: Callable[[Any, Mapping[str, str]], Any]) -> Any:
    """Converts a function of images to an ONNX model, as `onnx.ModelProto`.

    Args:
      model: the exported model, for the shape of its images.
      function: takes uint8 images [B, *image_shape] and {operation: implementation}; returns an array or a list.
    """
    for name in ("jax2onnx", "onnx_ir"):  # silence notes on plugins of unused libraries, and on types
        logging.getLogger(name).setLevel(logging.ERROR)
    from jax2onnx import to_onnx

    from jaxvit.exports.onnx_graph import rewrite

    shape = ("B", *model.loaded.image_shape)
    # jax2onnx patches functions of Flax; its versions promote ranks and dtypes, and print to stdout.
    with (
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        graph = to_onnx(
            lambda images_BHWC: function(images_BHWC, _WAYS),
            inputs=[jax.ShapeDtypeStruct(shape, jnp.uint8)],
            model_name="jaxvit",
        )
    rewrite(graph.graph)
    return graph
