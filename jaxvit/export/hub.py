"""hub/: a folder to give away: model.safetensors, model.json, config.json, environment.json, README.md, the model card.

`jaxvit.load` takes such a folder as it takes a run's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from jaxvit._version import __version__
from jaxvit.errors import UsageError, first_line
from jaxvit.export.card import model_card, public_name
from jaxvit.export.model import ExportModel
from jaxvit.export.weights import Int8, restore
from jaxvit.run_directory import read_environment, read_json, write_json

FILE = "model.safetensors"
_SCALE = ".scale"  # behind the name of an int8 array
REMEDY = "it is damaged: get it again"


def write(model: ExportModel, path: Path) -> None:
    """Writes the folder.

    Raises:
      UsageError: a name within the model has a dot, by which safetensors' names are joined.
    """
    loaded = model.loaded
    path.mkdir()
    tree = {**loaded.variables, "params": model.stored}
    tensors: dict[str, np.ndarray] = {}
    for names, leaf in traverse_util.flatten_dict(tree, is_leaf=lambda _, x: not isinstance(x, dict)).items():
        if any("." in name for name in names):
            raise UsageError(
                f"{'/'.join(names)}: a name with a dot cannot be written as safetensors; rename the module"
            )
        name = ".".join(names)
        if isinstance(leaf, Int8):
            tensors[name], tensors[name + _SCALE] = leaf.values, np.asarray(leaf.scale)
        else:
            tensors[name] = np.asarray(leaf)
    metadata = {"format": "flax", "step": str(loaded.step), "weights": loaded.weights, "dtype": model.kind}
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path / FILE, metadata)
    facts, config = (read_json(loaded.workdir / name) for name in ("model.json", "config.json"))
    for attributes in (facts["attributes"], config["config"]["model"]):
        if "dtype" in attributes:
            attributes["dtype"] = "float32"  # that of every exported model, whatever it was trained in
    write_json(path / "model.json", facts)
    config["config"]["data"] |= {"dir": "", "name": public_name(loaded.config.data.name)}
    write_json(path / "config.json", {**config, "jaxvit": __version__})
    write_json(path / "environment.json", {"data": read_environment(loaded.workdir)["data"], "starts": []})
    (path / "README.md").write_text(model_card(model))


def read(path: Path) -> tuple[dict[str, Any], int, str]:
    """(variables as float32, step, 'model' or 'ema') of such a folder, which may be anybody's.

    Raises:
      UsageError: its weights cannot be read, or are none.
    """
    file = path / FILE
    try:
        with safetensors.safe_open(file, framework="numpy") as stored:
            said = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118, no mapping
        step, weights = int(said["step"]), said["weights"]
        if step < 0 or weights not in ("model", "ema"):
            raise ValueError(f"step {step}, weights {weights!r:.20}")
        tree = _tree(tensors)
        return {**tree, "params": restore(tree.get("params", {}))}, step, weights
    except Exception as error:  # what libraries say to files that nobody wrote with them
        reason = f"{type(error).__name__}: {first_line(error)[:200]}"
        raise UsageError(f"{file} cannot be read ({reason}); {REMEDY}") from None


def _tree(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """Nested dicts of arrays and `Int8`.

    Raises:
      ValueError: a name goes on from another, an array is of another type than weights are, a scale does not fit.
    """
    quantised = {name for name, array in tensors.items() if array.dtype == np.int8}
    scales = {name + _SCALE for name in quantised}
    tree: dict[str, Any] = {}
    for name, array in sorted(tensors.items()):
        if name in scales:
            continue
        weight = array.dtype in (np.float32, jnp.bfloat16)
        if name not in quantised and not weight and (name.startswith("params.") or array.dtype.kind not in "biu"):
            raise ValueError(f"{name} is {array.dtype}")
        leaf: Any = array
        if name in quantised:
            leaf = Int8(array, tensors[name + _SCALE])
            fits = all(mine in (1, size) for mine, size in zip(leaf.scale.shape, array.shape, strict=True))
            if not fits or leaf.scale.dtype != np.float32:
                raise ValueError(f"{name}{_SCALE} is {leaf.scale.dtype} {list(leaf.scale.shape)}")
        *above, last = name.split(".")
        inner = tree
        for part in above:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ValueError(f"{name} goes on from the name of an array")
        inner[last] = leaf
    return tree
