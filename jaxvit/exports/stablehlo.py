"""The StableHLO format: a ZIP file with a program of `jax.export` and the metadata, model.json."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import export

from jaxvit.exports.model import ExportModel

PLATFORMS = ("cpu", "cuda", "tpu")


def write(model: ExportModel, path: Path) -> None:
    """Writes the program, with weights, for any batch size and all platforms."""
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *model.loaded.image_shape), jnp.uint8)
    exported = export.export(jax.jit(model.probabilities), platforms=PLATFORMS)(images)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("program", bytes(exported.serialize()))
        file.writestr("model.json", json.dumps(model.facts(), indent=1))
