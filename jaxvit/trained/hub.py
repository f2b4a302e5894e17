"""Reads the folder that `jaxvit export --to=hub` writes: model.safetensors beside a run's JSON files."""

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
from jaxvit.trained.weights import Int8, restore

FILE = "model.safetensors"
SCALE = ".scale"  # behind the name of an int8 array
REMEDY = "it is damaged: get it again"
_MOST_NESTED = 32  # modules within modules


def read(path: Path) -> tuple[dict[str, Any], int, str]:
    """(variables as float32, step, 'model' or 'ema') of such a folder, which may be anybody's.

    Raises:
      UsageError: its weights cannot be read, or are none.
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
    except Exception as error:  # what libraries say to files that nobody wrote with them
        reason = f"{type(error).__name__}: {first_line(error)[:200]}"
        raise UsageError(f"{file} cannot be read ({reason}); {REMEDY}") from None


def digest(tensors: Mapping[str, np.ndarray], step: int, weights: str) -> str:
    """SHA-256, 64 hex digits, of all that such a file says; it stands in the file's metadata."""
    total = hashlib.sha256(f"{step} {weights}".encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        total.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
        total.update(array.reshape(-1).view(np.uint8))
    return total.hexdigest()


def _tree(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """Nested dicts of arrays and `Int8`.

    Raises:
      ValueError: a name goes on from another, an array is of another type than weights are, a scale does not fit.
    """
    quantised = {name for name, array in tensors.items() if array.dtype == np.int8}
    scales = {name + SCALE for name in quantised}
    tree: dict[str, Any] = {}
    for name, array in sorted(tensors.items()):
        if name in scales:
            continue
        weight = array.dtype in (np.float32, jnp.bfloat16)
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
                raise ValueError(f"{name} goes on from the name of an array")
        inner[last] = leaf
    return tree
