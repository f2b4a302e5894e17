"""Runs a model of jaxvit: python run_savedmodel.py savedmodel images.npy [out.npy]. Needs tensorflow."""

import json
import sys

import numpy as np
import tensorflow as tf


def load(path):
    model = tf.saved_model.load(path)
    facts = json.loads(model.facts.numpy())
    images = tf.TensorSpec((None, *facts["image_shape"]), tf.uint8)
    # model(images) gives the same result; one compiled program makes calls cheaper.
    run = tf.function(model, input_signature=[images], jit_compile=True).get_concrete_function()
    return lambda images: run(tf.constant(images)).numpy(), facts


def shown(name):  # a file's control characters would reach the terminal
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(name))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    model, facts = load(sys.argv[1])
    probabilities = model(np.load(sys.argv[2]))  # uint8 [B, H, W, C] to float32 [B, K]
    for row in probabilities[:8]:
        print(f"{shown(facts['class_names'][row.argmax()])} {row.max():.4f}")
    if len(sys.argv) > 3:
        np.save(sys.argv[3], probabilities)
