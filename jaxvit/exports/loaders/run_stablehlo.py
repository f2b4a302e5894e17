"""Runs a model of jaxvit: python run_stablehlo.py model.stablehlo images.npy [out.npy]. Needs jax and flatbuffers."""

import json
import sys
import zipfile

import jax
import numpy as np
from jax import export
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import sdy, stablehlo

# By default jaxlib 0.10 uses a slow library for matrix products on CPUs.
slow = jax.__version__.startswith("0.10.") and jax.default_backend() == "cpu"
OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""} if slow else None
KNOWN = {"shape_assertion"}  # custom calls of exported models; an untrusted file could call anything else


def check(program):
    def visit(op):
        call = op.name.endswith("custom_call")
        target = op.attributes["call_target_name"].value if call else op.name
        if target not in KNOWN and (call or op.name.endswith((".infeed", ".outfeed", ".send", ".recv"))):
            foreign.append(target)
        return ir.WalkResult.ADVANCE

    foreign = []
    with ir.Context() as context:
        sdy.register_dialect(context)
        module = stablehlo.deserialize_portable_artifact(context, program.mlir_module_serialized)
        module.operation.walk(visit)
    if foreign:
        raise ValueError(f"the program calls {foreign[0]!r}, which no exported model does: not run")


def load(path):
    with zipfile.ZipFile(path) as file:
        if any(each.compress_type for each in file.infolist()):  # a small file could unpack to any size
            raise ValueError("its parts are compressed, which no exported model's are: not read")
        program = export.deserialize(bytearray(file.read("program")))
        check(program)
        return jax.jit(program.call, compiler_options=OPTIONS), json.loads(file.read("model.json"))


def shown(name):  # a file's control characters would reach the terminal
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(name))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        model, facts = load(sys.argv[1])
    except ValueError as error:
        sys.exit(f"{sys.argv[1]}: {error}")
    probabilities = np.asarray(model(np.load(sys.argv[2])))  # uint8 [B, H, W, C] to float32 [B, K]
    for row in probabilities[:8]:
        print(f"{shown(facts['class_names'][row.argmax()])} {row.max():.4f}")
    if len(sys.argv) > 3:
        np.save(sys.argv[3], probabilities)
