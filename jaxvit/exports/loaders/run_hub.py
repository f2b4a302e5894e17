"""Runs a model of jaxvit: python run_hub.py hub images.npy [out.npy]. Needs jaxvit."""

import sys

import numpy as np

import jaxvit


def load(path, own_code=False):
    model = jaxvit.load(path, own_code=own_code)
    names = model.class_names
    facts = {"class_names": names, "image_shape": model.image_shape}
    return lambda images: np.asarray(model(images))[:, : len(names)], facts


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
