"""Reads the weights in a folder that `jaxvit export --to=hub` or `jaxvit convert` writes: model.safetensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

from jaxvit.errors import UsageError, first_line
from jaxvit.files import check_regular, note_unverified
from jaxvit.weights.stored import Int8, restore

FILE = "model.safetensors"
SCALE = ".scale"  # suffix: the scale of the int8 array NAME is NAME.scale
REMEDY = "it is damaged: download or export it again"
_MOST_NESTED = 32  # modules within modules


def read(path: Path) -> tuple[dict[str, Any], int, str]:
    """Reads the weights of an exported folder, which need not be trusted.

    Returns:
      (variables as float32, step, 'model' or 'ema').

    Raises:
      UsageError: the weights cannot be read, or are invalid.
    """
    file = path / FILE
    try:
        check_regular(file)
        with safetensors.safe_open(file, framework="numpy") as stored:
            said = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118, no mapping
        step, weights = int(said["step"]), said["weights"]
        if "sha256" not in said:
            note_unverified(path, file)
        elif said["sha256"] != digest(tensors, step, weights):
            raise ValueError("its content is not what was written")
        if step < 0 or weights not in ("model", "ema"):
            raise ValueError(f"step {step}, weights {weights!r:.20}")
        tree = _tree(tensors)
        return {**tree, "params": restore(tree.get("params", {}))}, step, weights
    except Exception as error:  # safetensors may raise anything for a damaged or foreign file
        reason = f"{type(error).__name__}: {first_line(error)[:200]}"
        raise UsageError(f"{file} cannot be read ({reason}); {REMEDY}") from None


def digest(tensors: Mapping[str, np.ndarray], step: int, weights: str) -> str:
    """Returns the SHA-256 of tensors, step and kind of weights, as 64 hex digits; the file's metadata contains it."""
    total = hashlib.sha256(f"{step} {weights}".encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        total.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def _tree(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """Builds nested dicts of arrays and `Int8` from dotted names.

    Raises:
      ValueError: a name extends the name of an array, an array has a wrong dtype, or a scale does not fit its array.
    """
    quantised = {name for name, array in tensors.items() if array.dtype == np.int8}
    scales = {name + SCALE for name in quantised}
    tree: dict[str, Any] = {}
    for name, array in sorted(tensors.items()):
        if name in scales:
            continue
        weight = array.dtype in (np.float32, np.float16, jnp.bfloat16)
        if name not in quantised and not weight and (name.startswith("params.") or array.dtype.kind not in "biu"):
            raise ValueError(f"{name} is {array.dtype}")
        leaf: Any = array
        if name in quantised:
            leaf = Int8(array, tensors[name + SCALE])
            fits = all(mine in (1, size) for mine, size in zip(leaf.scale.shape, array.shape, strict=True))
            if not fits or leaf.scale.dtype != np.float32:
                raise ValueError(f"{name}{SCALE} is {leaf.scale.dtype} {list(leaf.scale.shape)}")
        *above, last = name.split(".")
        if len(above) > _MOST_NESTED:  # JAX's functions of trees recurse
            raise ValueError("it has a name of too many parts")
        inner = tree
        for part in above:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ValueError(f"{name} extends the name of an array")
        inner[last] = leaf
    return tree
