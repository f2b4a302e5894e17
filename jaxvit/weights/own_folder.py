"""Weights of this project: run folders, and the folders that `jaxvit export --to=hub` and `jaxvit convert` write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxvit.errors import UsageError, first_line
from jaxvit.training.checkpoint import best_step, restore_weights, saved_steps
from jaxvit.weights import hub
from jaxvit.weights.mapping import Arrays
from jaxvit.weights.model_json import REMEDY, ModelFacts, read_model

PARTS = ("model", "ema")


@dataclass(frozen=True)
class OwnWeights:
    """The weights of a trained model of this project.

    Attributes:
      facts: its model, class names and preprocessing.
      model: the model, built.
      params: {path: array} of its parameters, paths joined by '/', float32.
      constants: its other collections, or {}.
      step: number of steps trained.
      part: 'model' or 'ema'.
    """

    facts: ModelFacts
    model: nn.Module
    params: Arrays
    constants: dict
    step: int
    part: str


def find_own(path: Path) -> Path | None:
    """The folder of this project that a path means: itself, or the folder of its model.safetensors; else None."""
    if path.is_dir():
        return path
    if path.name == hub.FILE and (path.parent / "model.json").exists():
        return path.parent
    return None


def read_own(folder: Path, part: str = "", *, own_code: bool = False) -> OwnWeights:
    """Reads the weights of a run, of its best checkpoint, or of an exported folder; none of them needs to be trusted.

    Args:
      folder: the folder.
      part: 'model', 'ema', or '' = those of the run's test result: the EMA weights if the run keeps them.
      own_code: as in `jaxvit.load`.

    Raises:
      UsageError: the folder is none of these, is damaged, has no such part, or its files do not fit together.
    """
    if part not in ("", *PARTS):
        raise UsageError(f"{folder} has no part {part!r}: it is a run's, with 'model' or 'ema'")
    exported, checkpoints = (folder / hub.FILE).exists(), folder / "checkpoints"
    steps = [] if exported else saved_steps(checkpoints)
    if not (exported or steps):
        raise UsageError(f"{folder} holds no weights: name a file, a folder from jaxvit export --to=hub, or a run's")
    facts = read_model(folder)
    if exported:
        variables, step, found = hub.read(folder)
        if part not in ("", found):
            raise UsageError(f"{folder} has no part {part!r}: it holds only {found!r}")
    else:
        step = best_step(checkpoints, steps[-1])
        stored = restore_weights(checkpoints, step)
        if part == "ema" and not stored.ema:
            raise UsageError(f"{folder} has no part 'ema': this run keeps no average of its weights")
        found = "ema" if stored.ema and part != "model" else "model"
        variables = {"params": stored.ema if found == "ema" else stored.params, **stored.constants}
    arrays = {"/".join(path): np.asarray(leaf) for path, leaf in flatten_dict(variables).items()}
    facts.check_layers(len(arrays), step)
    model = facts.create(own_code=own_code)
    try:
        images = jax.ShapeDtypeStruct((1, *facts.input_shape), jnp.float32)
        wanted = jax.eval_shape(lambda key, x: model.init(key, x, train=False), jax.random.key(0), images)
        leaves = cast(dict[tuple[str, ...], jax.ShapeDtypeStruct], flatten_dict(wanted))
        shapes = {"/".join(path): leaf.shape for path, leaf in leaves.items()}
    except Exception as error:  # a model may raise anything for attributes that do not fit its images
        reason = f"{type(error).__name__}: {first_line(error)[:200]}"
        raise UsageError(f"{facts.file}: the model does not work on its images ({reason}); {REMEDY}") from None
    for name in sorted(shapes.keys() | arrays.keys()):
        if name not in shapes or name not in arrays or shapes[name] != arrays[name].shape:
            raise UsageError(f"{facts.file} does not fit the weights of step {step}, in {name}; {REMEDY}")
    start = "params/"
    params = {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}
    rest = {tuple(name.split("/")): array for name, array in arrays.items() if not name.startswith(start)}
    return OwnWeights(facts, model, params, unflatten_dict(rest), step, found)
