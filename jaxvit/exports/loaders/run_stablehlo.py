"""Runs a model of jaxvit: python run_stablehlo.py model.stablehlo images.npy [out.npy]. Needs jax and flatbuffers."""

import json
import sys
import zipfile

import jax
import numpy as np
from jax import export

# jaxlib 0.10 leaves the CPU's products to a slow library unless it is told not to.
slow = jax.__version__.startswith("0.10.") and jax.default_backend() == "cpu"
OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""} if slow else None


def load(path):
    with zipfile.ZipFile(path) as file:
        program = export.deserialize(bytearray(file.read("program")))
        return jax.jit(program.call, compiler_options=OPTIONS), json.loads(file.read("model.json"))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    model, facts = load(sys.argv[1])
    probabilities = np.asarray(model(np.load(sys.argv[2])))  # uint8 [B, H, W, C] to float32 [B, K]
    for row in probabilities[:8]:
        print(f"{facts['class_names'][row.argmax()]} {row.max():.4f}")
    if len(sys.argv) > 3:
        np.save(sys.argv[3], probabilities)
