"""`jaxvit.load`: a trained model from the folder of its run or of `jaxvit export --to=hub`, and from that alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxvit.data.augment import preprocess
from jaxvit.data.colour import denormalize
from jaxvit.data.decoding import Limits
from jaxvit.data.settings import Preprocessing
from jaxvit.devices.runtime import forward_options
from jaxvit.errors import UsageError, first_line
from jaxvit.files import local_path
from jaxvit.ops import implementations
from jaxvit.run.folder import checkpoint_folder, read_config, refuse_seeds
from jaxvit.trained import hub
from jaxvit.trained.facts import REMEDY, ModelFacts, read_model
from jaxvit.training.checkpoint import best_step, restore_weights, saved_steps

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
      preprocessing: settings of `preprocess`, which are those of the run's evaluation.
      own_code: whether code may be run that the run's files name; see `load`.
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
    preprocessing: Preprocessing
    own_code: bool = False

    @property
    def implementations(self) -> str:
        """The `jaxvit.ops.implementations` it was trained with and runs with: "fast" or "plain"."""
        return self.config.train.get("implementations", "fast")

    @property
    def evaluation_batch(self) -> int:
        """Images at a time in the evaluations of its training."""
        return self.config.eval.batch_size or self.config.train.batch_size

    @property
    def limits(self) -> Limits:
        """How large the images of a data set may be as they are stored: those of the run's config."""
        return Limits(self.config.data.max_pixels, self.config.data.max_bytes)

    def with_limits(self, max_pixels: int = 0, max_bytes: int = 0) -> Loaded:
        """The same with other `limits`: pixels (height × width) of a stored image and bytes of its file; 0 = as here.

        Raises:
          UsageError: a limit is below 0.
        """
        for name, value in (("max_pixels", max_pixels), ("max_bytes", max_bytes)):
            if value < 0:
                raise UsageError(f"{name}={value}: must be 1 or more; 0 = as in the run")
        if not (max_pixels or max_bytes):
            return self
        config = self.config.copy_and_resolve_references()
        config.data.max_pixels = max_pixels or config.data.max_pixels
        config.data.max_bytes = max_bytes or config.data.max_bytes
        return dataclasses.replace(self, config=config)

    def _checked(self, images_BHWC: Any) -> Any:
        if not hasattr(images_BHWC, "dtype"):  # a list of images
            try:
                images_BHWC = np.asarray(images_BHWC)
            except (TypeError, ValueError):
                raise UsageError(f"images of different sizes: {self._takes()}") from None
        if images_BHWC.dtype != np.uint8 or tuple(images_BHWC.shape[1:]) != self.image_shape:
            raise UsageError(f"images of {images_BHWC.dtype} {list(images_BHWC.shape)}: {self._takes()}")
        return images_BHWC

    def _takes(self) -> str:
        return f"this model takes uint8 [B, {', '.join(map(str, self.image_shape))}]"

    def preprocess(self, images_BHWC: Any) -> jax.Array:
        """uint8 images [B, *image_shape] to what the model sees, as in the evaluation of the training run.

        Raises:
          UsageError: they have another shape or type.
        """
        return preprocess(jnp.asarray(self._checked(images_BHWC)), self.preprocessing)

    def pictures(self, images_BHWC: Any) -> np.ndarray:
        """What the model sees of uint8 images, without the normalisation: float [B, *input_shape], 0..1, to look at."""
        return denormalize(self.preprocess(images_BHWC), self.preprocessing.mean, self.preprocessing.std)

    def apply(self, variables: Any, images_BHWC: Any, by: Mapping[str, str] | None = None) -> jax.Array:
        """As `logits`, of other variables of the same model, and not compiled: to be traced into a larger program.

        Args:
          variables: of the model.
          images_BHWC: uint8 [B, *image_shape].
          by: {operation: implementation}, see `jaxvit.ops.implementations`; the others are computed as in training.
        """
        with implementations.use(self.implementations), implementations.use(by or {}):
            return self.model.apply(variables, self.preprocess(images_BHWC), train=False)

    @cached_property
    def _logits(self) -> Any:
        return jax.jit(self.apply, compiler_options=forward_options())

    def logits(self, images_BHWC: Any) -> jax.Array:
        """Scores [B, K], float32, of uint8 images [B, *image_shape]. Compiles once for each batch size."""
        return self._logits(self.variables, self._checked(images_BHWC))

    def __call__(self, images_BHWC: Any) -> jax.Array:
        """Probabilities [B, K], float32, of uint8 images [B, *image_shape]."""
        return jax.nn.softmax(self.logits(images_BHWC), axis=-1)


def load(workdir: str | Path, *, checkpoint: str = "best", weights: str = "chosen", own_code: bool = False) -> Loaded:
    """Loads a trained model from a run's folder, or from one of `jaxvit export --to=hub`.

    Args:
      workdir: the folder; a run may still be training.
      checkpoint: 'best' (on validation; without one the last) or 'latest'. An exported folder holds but one.
      weights: 'chosen' = those that the run's test result is of: averaged where it keeps an average, else 'model'; or
        one of the two, 'model' and 'ema'.
      own_code: allow a model that is code outside this package, 'module:Class', to be imported, and so to be run. The
        folder's files are else only read: they may be somebody else's.

    Raises:
      UsageError: it holds no trained model, or not the weights asked for; its files are damaged or do not fit together;
        its model is code that was not allowed.

    Example:
      >>> model = jaxvit.load("runs/digits")  # doctest: +SKIP
      >>> model(np.zeros((2, *model.image_shape), np.uint8)).shape  # doctest: +SKIP
      (2, 10)
    """
    path = Path(local_path(workdir))
    for name, value, known in (("checkpoint", checkpoint, CHECKPOINTS), ("weights", weights, WEIGHTS)):
        if value not in known:
            raise UsageError(f"{name}='{value}': must be one of {', '.join(known)}")
    if not path.is_dir():
        raise UsageError(f"{path}: there is no such folder; name that of a run")
    exported = (path / "model.safetensors").exists()
    if not exported and not checkpoint_folder(path).exists():
        refuse_seeds(path)
    config = read_config(path)
    if (chosen := config.train.implementations) not in ("fast", "plain"):
        where = f"{path / 'config.json'}: config.train.implementations='{chosen}'"
        raise UsageError(f"{where} is neither 'fast' nor 'plain'; {REMEDY}")
    steps = [] if exported else saved_steps(checkpoint_folder(path))
    if not (exported or steps):
        raise UsageError(f"{path} holds no checkpoint yet; train it first")
    facts = read_model(path)
    model = facts.create(own_code=own_code)
    variables, step, chosen = _exported(path, weights) if exported else _trained(path, steps[-1], checkpoint, weights)
    loaded = Loaded(
        workdir=path,
        config=config,
        model=model,
        variables=variables,
        class_names=facts.class_names,
        image_shape=facts.image_shape,
        input_shape=facts.input_shape,
        step=step,
        weights=chosen,
        preprocessing=facts.preprocessing,
        own_code=own_code,
    )
    _check_that_it_fits(loaded, facts)
    return loaded


def _exported(path: Path, weights: str) -> tuple[dict[str, Any], int, str]:
    """(variables, step, which weights) of an exported folder."""
    variables, step, there = hub.read(path)
    if weights not in ("chosen", there):
        raise UsageError(f"{path}: weights='{weights}': it holds only '{there}'")
    return jax.device_put(variables, jax.local_devices()[0]), step, there


def _trained(path: Path, newest: int, checkpoint: str, weights: str) -> tuple[dict[str, Any], int, str]:
    """(variables, step, which weights) of a run's folder, whose newest checkpoint is that of step `newest`."""
    folder, step = checkpoint_folder(path), newest
    if checkpoint == "best":
        remedy = "this checkpoint is damaged: load(…, checkpoint='latest') does without this file"
        step = best_step(folder, newest, remedy)
    stored = restore_weights(folder, step)
    if weights == "ema" and not stored.ema:
        raise UsageError(f"{path}: this run keeps no average of its weights; use weights='model'")
    averaged = bool(stored.ema) and weights != "model"
    params = stored.ema if averaged else stored.params
    return {"params": params, **stored.constants}, step, "ema" if averaged else "model"


_LAYERS = ("depth", "depths", "conv_layers")  # attributes that count layers


def _check_that_it_fits(loaded: Loaded, facts: ModelFacts) -> None:
    """Compares what model.json describes with the weights, by shapes alone.

    Raises:
      UsageError: another model would be needed for these weights.
    """

    def first_call(images_BHWC: jax.Array) -> tuple[jax.Array, Any]:
        seen = loaded.preprocess(images_BHWC)
        if seen.shape[1:] != loaded.input_shape:
            raise ValueError(f"its evaluation makes {list(seen.shape[1:])} of them, not {list(loaded.input_shape)}")
        return loaded.model.init_with_output(jax.random.key(0), seen, train=False)

    arrays = len(jax.tree.leaves(loaded.variables))
    for name, value in facts.attributes:  # each layer has arrays of its own, and to go through 10^9 takes forever
        layers = sum(value) if isinstance(value, tuple) else value
        if name in _LAYERS and layers > arrays:
            raise UsageError(
                f"{facts.file} does not fit the weights of step {loaded.step}: '{name}' says {layers} layers, and the "
                f"weights are {arrays} arrays; {REMEDY}"
            )
    try:
        images = jax.ShapeDtypeStruct((1, *loaded.image_shape), jnp.uint8)
        logits, variables = jax.eval_shape(first_call, images)
    except Exception as error:  # whatever a model says to attributes and images that do not go together
        raise UsageError(
            f"{facts.file}: the model does not work on its images ({type(error).__name__}: {first_line(error)[:200]}); "
            f"{REMEDY}"
        ) from error
    wanted, there = ({jax.tree_util.keystr(k): v.shape for k, v in _leaves(t)} for t in (variables, loaded.variables))
    for name in sorted(wanted.keys() | there.keys()):
        if wanted.get(name) != there.get(name):
            raise UsageError(
                f"{facts.file} does not fit the weights of step {loaded.step}: {name} is "
                f"{list(there[name]) if name in there else 'not there'}, and this model has "
                f"{list(wanted[name]) if name in wanted else 'none'}; {REMEDY}"
            )
    if logits.ndim != 2 or logits.shape[-1] < len(loaded.class_names):
        raise UsageError(
            f"{facts.file}: it has {len(loaded.class_names)} class names, and its model gives an output of "
            f"{list(logits.shape[1:])} for an image; {REMEDY}"
        )


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_flatten_with_path(tree)[0]
