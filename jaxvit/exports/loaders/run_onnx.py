"""Runs a model of jaxvit: python run_onnx.py model.onnx images.npy [out.npy]. Needs onnxruntime."""

import json
import sys

import numpy as np
import onnxruntime


def load(path):
    session = onnxruntime.InferenceSession(path)
    facts = json.loads(session.get_modelmeta().custom_metadata_map["jaxvit"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0], facts


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
