"""savedmodel/: TensorFlow's own format, through jax2tf; what its user must know is its variable `facts`."""

from __future__ import annotations

import json
from pathlib import Path

from jaxvit.exports.model import ExportModel


def write(model: ExportModel, path: Path) -> None:
    """Writes the program for any batch size, with its weights."""
    import tensorflow as tf
    from jax.experimental import jax2tf

    shape = model.loaded.image_shape
    run = jax2tf.convert(
        # TensorFlow's StableHLO is older than jax's, and cannot read its erf.
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
