"""`jaxvit.load`: a trained model from its run's folder alone; neither the data set nor the optimizer is needed."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from jaxvit.data.augment import Augmentation, evaluation_transform
from jaxvit.errors import UsageError
from jaxvit.models.registry import create_model
from jaxvit.run_directory import read_config, read_json

CHECKPOINTS = ("best", "latest")
WEIGHTS = ("chosen", "model", "ema")


@dataclass(frozen=True)
class Loaded:
    """A trained model, ready for use.

    Attributes:
      workdir: the run's folder.
      config: the run's config.
      model: Flax module, called as ``model.apply(variables, images, train=False)`` on preprocessed images.
      variables: {'params': …, and whatever else the model keeps}.
      class_names: K names; ``class_names[label]``. The model's output may have further places, which mean nothing.
      image_shape: [H, W, C] of the uint8 images that `preprocess` takes.
      input_shape: [H, W, C] of what the model sees.
      step: how many steps it had been trained for.
      weights: 'model' or 'ema'.
    """

    workdir: Path
    config: ConfigDict
    model: nn.Module
    variables: dict[str, Any]
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    input_shape: tuple[int, ...]
    step: int
    weights: str
    augmentation: Augmentation

    def preprocess(self, images_BHWC: Any) -> jax.Array:
        """uint8 images [B, *image_shape] to what the model sees, as in the evaluation of the training run.

        Raises:
          UsageError: they have another shape or type.
        """
        if images_BHWC.dtype != np.uint8 or tuple(images_BHWC.shape[1:]) != self.image_shape:
            raise UsageError(
                f"images of {images_BHWC.dtype} {list(images_BHWC.shape)}: this model takes uint8 "
                f"[B, {', '.join(map(str, self.image_shape))}]"
            )
        return evaluation_transform(self.augmentation)(jnp.asarray(images_BHWC))

    def pictures(self, images_BHWC: Any) -> np.ndarray:
        """What the model sees of uint8 images, without the normalisation: float [B, *input_shape], 0..1, to look at."""
        a = self.augmentation
        seen = np.asarray(self.preprocess(images_BHWC)) * np.array(a.std, np.float32) + np.array(a.mean, np.float32)
        return np.clip(seen, 0, 1)

    def apply(self, variables: Any, images_BHWC: Any) -> jax.Array:
        """As `logits`, of other variables of the same model, and not compiled: to be traced into a larger program."""
        return self.model.apply(variables, self.preprocess(images_BHWC), train=False)

    @cached_property
    def _logits(self) -> Any:
        return jax.jit(self.apply)

    def logits(self, images_BHWC: Any) -> jax.Array:
        """Scores [B, K], float32, of uint8 images [B, *image_shape]. Compiles once for each batch size."""
        return self._logits(self.variables, images_BHWC)

    def __call__(self, images_BHWC: Any) -> jax.Array:
        """Probabilities [B, K], float32, of uint8 images [B, *image_shape]."""
        return jax.nn.softmax(self.logits(images_BHWC), axis=-1)


def load(workdir: str | Path, *, checkpoint: str = "best", weights: str = "chosen") -> Loaded:
    """Loads a trained model from a run's folder.

    Args:
      workdir: the folder of a run; it may still be training.
      checkpoint: 'best' (on validation; without one the last) or 'latest'.
      weights: 'chosen' = those that the run's test result is of: averaged where it keeps an average, else 'model'; or
        one of the two, 'model' and 'ema'.

    Raises:
      UsageError: it holds no trained model, or not the weights asked for.
    """
    path = Path(workdir)
    for name, value, known in (("checkpoint", checkpoint, CHECKPOINTS), ("weights", weights, WEIGHTS)):
        if value not in known:
            raise UsageError(f"{name}='{value}': must be one of {', '.join(known)}")
    if not path.is_dir():
        raise UsageError(f"{path}: there is no such folder; name that of a run")
    seeds = sorted(p.name for p in path.glob("seed_*") if p.is_dir())
    if seeds and not (path / "checkpoints").exists():
        raise UsageError(f"{path} holds a run for each of {len(seeds)} seeds; name one, such as {path / seeds[0]}")
    config = read_config(path)
    steps = sorted(int(p.name) for p in (path / "checkpoints").glob("*") if p.name.isdigit())
    if not steps:
        raise UsageError(f"{path} holds no checkpoint yet; train it first")
    try:
        facts = read_json(path / "model.json")
        step = steps[-1]
        if checkpoint == "best":
            step = read_json(path / "checkpoints" / str(step) / "metrics" / "metrics")["best_step"]
            step = step if step in steps else steps[-1]  # none yet: no epoch has ended
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{path} cannot be read: {type(error).__name__}: {error}; it is damaged") from None
    tree = _restore(path / "checkpoints" / str(step) / "state")
    if weights == "ema" and not tree["ema"]:
        raise UsageError(f"{path}: this run keeps no average of its weights; use weights='model'")
    averaged = bool(tree["ema"]) and weights != "model"
    augmentation = Augmentation(**{k: tuple(v) if isinstance(v, list) else v for k, v in facts["augmentation"].items()})
    attributes = {k: _tuples(v) for k, v in facts["attributes"].items()}
    return Loaded(
        workdir=path,
        config=config,
        model=create_model(facts["name"], **attributes),
        variables={"params": tree["ema"] if averaged else tree["params"], **tree["constants"]},
        class_names=tuple(facts["class_names"]),
        image_shape=tuple(facts["image_shape"]),
        input_shape=augmentation.output_shape(tuple(facts["image_shape"])),
        step=step,
        weights="ema" if averaged else "model",
        augmentation=augmentation,
    )


def _restore(directory: Path) -> dict[str, Any]:
    """params, constants and ema of a saved state, on the default device; moments are left where they are."""
    handler = ocp.PyTreeCheckpointHandler()
    with contextlib.closing(handler):
        try:
            stored = handler.metadata(directory.absolute()).tree
            device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            wanted = {name: stored.get(name) or {} for name in ("params", "constants", "ema")}
            abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), wanted)
            full = {name: tree for name, tree in abstract.items() if tree}
            arguments = ocp.args.PyTreeRestore(
                full,
                restore_args=jax.tree.map(lambda x: ocp.ArrayRestoreArgs(sharding=x.sharding), full),
                partial_restore=True,
            )
            return {**wanted, **handler.restore(directory.absolute(), args=arguments)}
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise UsageError(
                f"checkpoint {directory.parent} cannot be read: its files are damaged ({reason})"
            ) from None


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
