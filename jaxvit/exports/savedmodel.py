"""The SavedModel format of TensorFlow, converted by jax2tf; the metadata is in its variable `facts`."""

from __future__ import annotations

import json
from pathlib import Path

from jaxvit.exports.model import ExportModel


def write(model: ExportModel, path: Path) -> None:
    """Writes the program, with weights, for any batch size."""
    import tensorflow as tf
    from jax.experimental import jax2tf

    shape = model.loaded.image_shape
    run = jax2tf.convert(
        # TensorFlow reads an older StableHLO than jax writes, without jax's erf.
        lambda images_BHWC: model.probabilities(images_BHWC, {"gelu": "rational"}),
        polymorphic_shapes=[f"(b, {', '.join(map(str, shape))})"],
        native_serialization_platforms=("cpu", "cuda", "tpu"),
        with_gradient=False,
    )
    module = tf.Module()
    module.__call__ = tf.function(
        run, autograph=False, input_signature=[tf.TensorSpec((None, *shape), tf.uint8, name="images")]
    )
    module.facts = tf.Variable(json.dumps(model.facts()), trainable=False)
    tf.saved_model.save(module, str(path))
