"""Runs a model of jaxvit: python run_hub.py hub images.npy [out.npy]. Needs jaxvit."""

import sys

import numpy as np

import jaxvit


def load(path, own_code=False):
    model = jaxvit.load(path, own_code=own_code)
    names = model.class_names
    facts = {"class_names": names, "image_shape": model.image_shape}
    return lambda images: np.asarray(model(images))[:, : len(names)], facts


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    model, facts = load(sys.argv[1])
    probabilities = model(np.load(sys.argv[2]))  # uint8 [B, H, W, C] to float32 [B, K]
    for row in probabilities[:8]:
        print(f"{facts['class_names'][row.argmax()]} {row.max():.4f}")
    if len(sys.argv) > 3:
        np.save(sys.argv[3], probabilities)
