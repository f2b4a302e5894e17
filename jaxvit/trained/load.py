"""`jaxvit.load`: loads a trained model from a run's folder or an exported one (`jaxvit export --to=hub`).

Nothing outside the folder is read.
"""

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
from PIL import Image

from jaxvit.config.key_table import RENAMED
from jaxvit.data.augment import preprocess
from jaxvit.data.colour import denormalize
from jaxvit.data.decoding import Limits
from jaxvit.data.depth import Depth
from jaxvit.data.settings import Preprocessing
from jaxvit.devices.runtime import forward_options
from jaxvit.errors import UsageError, first_line
from jaxvit.files import local_path
from jaxvit.models import reduction
from jaxvit.ops import implementations
from jaxvit.run.folder import checkpoint_folder, read_config, refuse_seeds
from jaxvit.trained.image_files import ImageFile, class_of, pixels_in_memory, read_image
from jaxvit.trained.prediction import Prediction, check_finite, most_probable, softmax
from jaxvit.training.checkpoint import best_step, restore_weights, saved_steps
from jaxvit.weights import hub
from jaxvit.weights.model_json import REMEDY, ModelFacts, read_model

CHECKPOINTS = ("best", "latest")
WEIGHTS = ("chosen", "model", "ema")
_TOGETHER = 64  # batch size of `Loaded.predict`


@dataclass(frozen=True)
class Loaded:
    """A trained model, ready for use.

    Attributes:
      workdir: the run's folder.
      config: the run's config.
      model: Flax module; call it as ``model.apply(variables, images, train=False)`` on preprocessed images.
      variables: {'params': …} and the model's other variables.
      class_names: K names; ``class_names[label]``. The model may have further outputs, which have no meaning.
      image_shape: [H, W, C] of the uint8 images that `preprocess` takes.
      input_shape: [H, W, C] of the model's input.
      step: number of steps trained.
      weights: 'model' or 'ema'.
      preprocessing: settings of `preprocess`: those of the run's evaluation.
      own_code: whether code that the run's files name may run; see `load`.
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
        """The `jaxvit.ops.implementations` of its training, which it also runs with: 'fast' or 'plain'."""
        return self.config.train.get("implementations", "fast")

    @property
    def evaluation_batch(self) -> int:
        """The batch size of evaluations during training."""
        return self.config.eval.batch_size or self.config.train.batch_size

    @property
    def limits(self) -> Limits:
        """The limits of the run's config on the size of stored images."""
        return Limits(self.config.data.max_pixels, self.config.data.max_bytes)

    def with_limits(self, max_pixels: int = 0, max_bytes: int = 0) -> Loaded:
        """Returns the same model with other `limits`.

        Args:
          max_pixels: largest height × width of a stored image; 0 = unchanged.
          max_bytes: largest size of its file; 0 = unchanged.

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

    def reduced(self, reduce: str) -> Loaded:
        """Returns the same model with merged or removed tokens; the weights stay as they are.

        Args:
          reduce: 'merge:r=8', 'merge:macs=.7', 'prune:keep=.7' and the like; see `jaxvit.models.reduction`. '' = as it
            is.

        Raises:
          UsageError: the text is wrong, or does not fit the model.

        Example:
          >>> jaxvit.load("runs/digits").reduced("merge:macs=.8").model.reduce  # doctest: +SKIP
          'merge:r=1'
        """
        if not reduce:
            return self
        try:
            model = reduction.reduced(self.model, reduce, self.input_shape)
        except ValueError as error:
            raise UsageError(f"--reduce={reduce}: {first_line(error)}") from None
        return dataclasses.replace(self, model=model)

    def with_tokens(self, tokens: int, flag: str = "") -> Loaded:
        """Returns the same model with fewer learned tokens, for which it was trained by `train.elastic`.

        Args:
          tokens: number of learned tokens; 0 = as it is.
          flag: what to name in an error; '' = `--tokens`.

        Raises:
          UsageError: the model was not trained for this number.
        """
        if not tokens:
            return self
        trained, flag = tuple(self.config.train.get("elastic", ())), flag or f"--tokens={tokens}"
        if not trained:
            raise UsageError(f"{flag}: this model was trained for one number of tokens only; see train.elastic")
        if tokens not in trained:
            raise UsageError(f"{flag}: this model was trained for {', '.join(map(str, trained))} tokens, not {tokens}")
        return dataclasses.replace(self, model=self.model.clone(learner_keep=0 if tokens == trained[-1] else tokens))

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
        """Converts uint8 images [B, *image_shape] to the model's input, as in the run's evaluation.

        Raises:
          UsageError: the images have another shape or dtype.
        """
        return preprocess(jnp.asarray(self._checked(images_BHWC)), self.preprocessing)

    def pictures(self, images_BHWC: Any) -> np.ndarray:
        """Returns the model's input for uint8 images without normalisation, for display: [B, *input_shape] in 0..1."""
        return denormalize(self.preprocess(images_BHWC), self.preprocessing.mean, self.preprocessing.std)

    def apply(self, variables: Any, images_BHWC: Any, by: Mapping[str, str] | None = None) -> jax.Array:
        """Computes the scores [B, K] with given variables, without `jax.jit`: for tracing into a larger program.

        Args:
          variables: variables of the model.
          images_BHWC: uint8 [B, *image_shape].
          by: {operation: implementation}, see `jaxvit.ops.implementations`; other operations run as in training.
        """
        with implementations.use(self.implementations), implementations.use(by or {}):
            return self.model.apply(variables, self.preprocess(images_BHWC), train=False)

    @cached_property
    def _logits(self) -> Any:
        return jax.jit(self.apply, compiler_options=forward_options())

    def logits(self, images_BHWC: Any) -> jax.Array:
        """Returns the scores, float32 [B, K], of uint8 images [B, *image_shape]. Compiles once per batch size."""
        return self._logits(self.variables, self._checked(images_BHWC))

    def predict(self, image: Any, *, top: int = 5) -> Prediction | list[Prediction]:
        """Classifies one image of any size, or several, in the same way as `jaxvit predict`.

        Args:
          image: a file name, a Pillow image, or an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (RGBA) of uint8, or
            of uint16 if grey; or a list of these. `jaxvit.predict` also takes folders and patterns.
          top: number of classes to return, at most K.

        Returns:
          A `Prediction`, or a list of them for a list. A file in a list that cannot be read has an `error`.

        Raises:
          UsageError: a value is not an image, or a single file cannot be read.
          RunFailedError: the scores are not finite.

        Example:
          >>> jaxvit.load("runs/pets").predict("photo.jpg").top[0]  # doctest: +SKIP
          ('cat', 0.93)
        """
        images = [*image] if isinstance(image, list | tuple) else [image]
        depth = Depth(self.config.data.white)
        said: list[Prediction] = []
        for start in range(0, len(images), _TOGETHER):
            said += self._predict(images[start : start + _TOGETHER], top, depth)
        if isinstance(image, list | tuple):
            return said
        if said[0].error:
            raise UsageError(f"{said[0].file}: {said[0].error}")
        return said[0]

    def _predict(self, images: list[Any], top: int, depth: Depth) -> list[Prediction]:
        files = []
        for image in images:
            if isinstance(image, str | Path):
                files.append(read_image(local_path(image), self.image_shape, self.limits, depth))
                continue
            if not isinstance(image, Image.Image):
                try:
                    image = np.asarray(image)
                except (TypeError, ValueError):
                    raise UsageError("not an image: pass a file name, a Pillow image or an array") from None
            files.append(ImageFile("", pixels_in_memory(image, self.image_shape, depth)))
        pixels = [file.pixels for file in files if file.pixels is not None]
        rows = iter(())
        if pixels:
            padding = [np.zeros_like(pixels[0])] * ((1 << (len(pixels) - 1).bit_length()) - len(pixels))
            logits_BK = np.asarray(self.logits(np.stack([*pixels, *padding])))[: len(pixels)]
            rows = iter(softmax(check_finite(logits_BK)))
        return [
            Prediction(
                file.name,
                () if file.error else most_probable(next(rows), self.class_names, top),
                class_of(file.name, self.class_names),
                file.error,
            )
            for file in files
        ]

    def __call__(self, images_BHWC: Any) -> jax.Array:
        """Returns the probabilities, float32 [B, K], of uint8 images [B, *image_shape]."""
        return jax.nn.softmax(self.logits(images_BHWC), axis=-1)


def load(workdir: str | Path, *, checkpoint: str = "best", weights: str = "chosen", own_code: bool = False) -> Loaded:
    """Loads a trained model from a run's folder or a folder written by `jaxvit export --to=hub`.

    Args:
      workdir: the folder. The run may still be training.
      checkpoint: 'best' on validation (the last if there is no validation) or 'latest'. Ignored for an exported folder,
        which has a single checkpoint.
      weights: 'model', 'ema', or 'chosen' = the weights used for the run's test result: the EMA weights if the run
        keeps them, else the raw ones.
      own_code: allows importing, and thus running, a model outside this package, 'module:Class'. By default nothing in
        the folder is run, because it may come from a stranger.

    Raises:
      UsageError: the folder has no trained model or not these weights, its files are damaged or do not match, or its
        model is code that is not allowed.

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
        if (path / "result.json").exists():
            raise UsageError(
                f"{path}: this run is finished, and its checkpoints are missing; put them back into "
                f"{checkpoint_folder(path)}, or train again with another --workdir"
            )
        raise UsageError(f"{path} holds no checkpoint yet; train it first")
    facts = read_model(path, RENAMED)
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
    """Returns (variables, step, 'model' or 'ema') of an exported folder."""
    variables, step, there = hub.read(path)
    if weights not in ("chosen", there):
        raise UsageError(f"{path}: weights='{weights}': it holds only '{there}'")
    return jax.device_put(variables, jax.local_devices()[0]), step, there


def _trained(path: Path, newest: int, checkpoint: str, weights: str) -> tuple[dict[str, Any], int, str]:
    """Returns (variables, step, 'model' or 'ema') of a run's folder with the newest checkpoint at step `newest`."""
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


def _check_that_it_fits(loaded: Loaded, facts: ModelFacts) -> None:
    """Checks, by shapes alone, that the weights fit the model that model.json describes.

    Raises:
      UsageError: the weights belong to another model.
    """

    def first_call(images_BHWC: jax.Array) -> tuple[jax.Array, Any]:
        seen = loaded.preprocess(images_BHWC)
        if seen.shape[1:] != loaded.input_shape:
            raise ValueError(f"its evaluation makes {list(seen.shape[1:])} of them, not {list(loaded.input_shape)}")
        return loaded.model.init_with_output(jax.random.key(0), seen, train=False)

    facts.check_layers(len(jax.tree.leaves(loaded.variables)), loaded.step)
    try:
        images = jax.ShapeDtypeStruct((1, *loaded.image_shape), jnp.uint8)
        logits, variables = jax.eval_shape(first_call, images)
    except Exception as error:  # a model may raise anything for attributes that do not fit its images
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
