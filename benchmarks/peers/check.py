"""Checks that other frameworks' models compute the same logits as jaxvit's for the same weights and images.

    python -m benchmarks.peers.check [--model NAME …] [--framework keras|torch …] [--images 2]

jaxvit's parameters, with small random changes so that no bias is 0 and no norm scale is 1, are copied into the other
model. Prints the number of parameters and the largest difference of a logit; exits with 1 if a difference exceeds the
tolerance. KERAS_BACKEND sets Keras' backend.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from jaxvit.models import create_model

from .workloads import WORKLOADS, Workload, images

TOLERANCE = 1e-4
Weights = dict[str, np.ndarray]  # keyed by path in jaxvit's parameter tree


def reference(workload: Workload, batch: np.ndarray) -> tuple[Weights, np.ndarray]:
    """jaxvit's weights, and its logits for a batch."""
    model = create_model(workload.model)
    params = jax.jit(lambda key: model.init(key, jnp.zeros((1, *workload.input)), train=False))(jax.random.key(0))
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda x: x + 0.02 * rng.standard_normal(x.shape, dtype=np.float32), params["params"])
    logits = jax.jit(lambda p, x: model.apply({"params": p}, x, train=False))(params, batch)
    return {path: np.asarray(x) for path, x in flatten_dict(params, sep="/").items()}, np.asarray(logits)


def keras_logits(workload: Workload, weights: Weights, batch: np.ndarray) -> np.ndarray:
    """Logits of the Keras model with these weights; raises if a weight has no counterpart."""
    import keras

    from .keras_models import make_model

    model = make_model(workload.model)
    renamed = {"gamma": "scale", "beta": "bias", "attention_output": "out"}
    left = dict(weights)
    for variable in model.trainable_variables:
        layer, *rest = variable.path.split("/")
        rest = [renamed.get(name, name) for name in rest]
        variable.assign(left.pop("/".join([layer.replace(".", "/"), *rest])))
    assert not left, f"no place for {', '.join(left)}"
    return keras.ops.convert_to_numpy(model(batch, training=False))


def torch_logits(workload: Workload, weights: Weights, batch: np.ndarray) -> np.ndarray:
    """Logits of the PyTorch model with these weights; raises if a weight has no counterpart."""
    import torch

    from .torch_models import make_model

    model = make_model(workload.model).eval()
    model.load_state_dict({name: torch.from_numpy(x) for name, x in torch_weights(weights).items()})
    with torch.inference_mode():
        return model(torch.from_numpy(batch).permute(0, 3, 1, 2)).numpy()


def torch_weights(weights: Weights) -> Weights:
    """jaxvit's weights with PyTorch's names and layouts."""
    found: Weights = {}
    for path, x in weights.items():
        *modules, part, kind = path.split("/")
        if part in ("key", "value"):
            continue
        if part == "query":  # query, key and value are one array
            three = [weights["/".join([*modules, one, kind])] for one in ("query", "key", "value")]
            x = np.concatenate([one.reshape(*one.shape[:-2], -1) for one in three], axis=-1)
            part = "qkv"
        if kind == "kernel":
            if part == "out":
                x = x.reshape(-1, x.shape[-1])
            x = x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T
        name = "weight" if kind in ("kernel", "scale") else kind
        found[".".join([*modules, part, name])] = np.array(x, order="C")
    return found


FRAMEWORKS: dict[str, Callable[[Workload, Weights, np.ndarray], np.ndarray]] = {
    "keras": keras_logits,
    "torch": torch_logits,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=list(WORKLOADS), choices=tuple(WORKLOADS))
    parser.add_argument("--framework", nargs="+", default=list(FRAMEWORKS), choices=tuple(FRAMEWORKS))
    parser.add_argument("--images", type=int, default=2)
    options = parser.parse_args()
    wrong = 0
    for name in options.model:
        workload = WORKLOADS[name]
        batch = images(workload, options.images)
        weights, wanted = reference(workload, batch)
        count = sum(x.size for x in weights.values())
        for framework in options.framework:
            found = FRAMEWORKS[framework](workload, weights, batch)
            same = found.shape == wanted.shape
            difference = float(np.max(np.abs(found - wanted))) if same else float("inf")
            wrong += not difference < TOLERANCE
            largest = float(np.max(np.abs(wanted)))
            print(
                f"{name} {framework}: {count:,} parameters, logits {found.shape} up to {largest:.3g}, "
                f"largest difference {difference:.2e}",
                flush=True,
            )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
