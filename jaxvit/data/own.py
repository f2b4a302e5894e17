"""Loads the user's own data sets and augmentations by name: 'package.module:function'."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvit import own_code
from jaxvit.data.cache import Decoded
from jaxvit.errors import UsageError

# Larger values in an augmented image mean another scale, such as 0..255, rather than strong contrast.
_FAR_OUTSIDE = 16.0


def check_augmentation(name: str, shape: tuple[int, ...]) -> None:
    """Checks that an augmentation returns an image of the same shape, dtype and scale.

    Args:
      name: 'package.module:function'.
      shape: [H, W, C] of its input images.

    Raises:
      UsageError: it does not; the message says why.
    """
    where, function = f"config.augment.own='{name}'", own_code.load_function(name, "augment.own")
    parameters = own_code.parameter_names(function)
    if not own_code.takes(function, None, None):
        raise UsageError(f"{where}: must take (key, image); it takes {parameters}")
    if len(order := parameters.strip("()").split(", ")) > 1 and order[1] in ("key", "rng"):
        raise UsageError(f"{where}: must take (key, image), in this order; it takes {parameters}")
    given = f"float32 {tuple(shape)}"
    key, image = jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32)
    fails = f"{where}: fails as function(key, one image {given})"
    try:
        out = jax.eval_shape(function, key, image)
    except Exception as error:  # it is the user's code: whatever it raises
        raise UsageError(f"{fails}: {own_code.explain(error)}") from error
    if not isinstance(out, jax.ShapeDtypeStruct):
        what = "nothing" if out is None else f"a {type(out).__name__}"
        raise UsageError(f"{where}: returns {what} for an image {given}; it must return the changed image")
    if out.shape != tuple(shape) or out.dtype != jnp.float32:
        raise UsageError(
            f"{where}: returns {out.dtype} {out.shape} for an image {given}; it must return the same shape and type"
        )
    ramp = jnp.linspace(0.0, 1.0, int(np.prod(shape)), dtype=jnp.float32).reshape(1, *shape)
    try:
        values = np.asarray(jax.jit(jax.vmap(function))(key[None], ramp))
    except Exception as error:
        raise UsageError(f"{fails}: {own_code.explain(error)}") from error
    if not np.abs(values).max() <= _FAR_OUTSIDE:  # also true for NaN
        found = f"values from {values.min():.3g} to {values.max():.3g}"
        raise UsageError(f"{where}: returns {found} for an image in 0..1; it must stay on that scale")


class OwnStore:
    """The data set that the user's function returns, with the interface of `jaxvit.data.prepared.PreparedStore`.

    The function takes no arguments and returns ``{'train': (images, labels), 'test': …, 'class_names': (…)}``: images
    uint8 [N, H, W, C] of the same size in all splits, and integer labels [N] from 0. Without 'class_names', the classes
    are named '0', '1', ….

    Args:
      name: 'package.module:function'.
      directory: the TFDS directory, which is not read.
      given: a dict to use instead of calling the function; `name` is then only the name of the data set.

    Raises:
      UsageError: the function returns something else, or fails.
    """

    version = ""

    def __init__(self, name: str, directory: Path, given: Mapping[str, Any] | None = None):
        self.name, self.directory = name, directory
        if given is None:
            given = self._call(own_code.load_function(name, "data.name"))
        if not isinstance(given, Mapping) or "train" not in given:
            raise UsageError(f"config.data.name='{name}': must return a dict with (images, labels) for 'train'")
        parts = {split: self._checked(split, value) for split, value in given.items() if split != "class_names"}
        shapes = {images.shape[1:] for images, _ in parts.values()}
        if len(shapes) != 1:
            raise UsageError(f"config.data.name='{name}': the splits' images differ in size: {sorted(shapes)}")
        self._parts = parts
        self.sizes = {split: len(labels) for split, (_, labels) in parts.items()}
        self.image_shape: tuple[int, ...] = shapes.pop()
        self.channels = self.image_shape[-1]
        classes = 1 + max(int(labels.max()) for _, labels in parts.values())
        try:
            names = tuple(map(str, given.get("class_names", range(classes))))
        except TypeError:
            raise UsageError(f"config.data.name='{name}': 'class_names' must be a sequence of names") from None
        if len(names) < classes:
            raise UsageError(
                f"config.data.name='{name}': has {len(names)} class names and labels up to {classes - 1}; every label "
                "needs a name"
            )
        self.class_names = names

    def _call(self, function: Callable[..., Any]) -> Any:
        where = f"config.data.name='{self.name}'"
        if not own_code.takes(function):
            raise UsageError(f"{where}: must take no arguments; it takes {own_code.parameter_names(function)}")
        try:
            return function()
        except UsageError:
            raise
        except Exception as error:  # it is the user's code: whatever it raises
            raise UsageError(f"{where}: the function fails: {own_code.explain(error)}") from error

    def _checked(self, split: str, value: Any) -> tuple[np.ndarray, np.ndarray]:
        where = f"config.data.name='{self.name}': split '{split}'"
        try:
            images, labels = map(np.asarray, value)
        except (TypeError, ValueError):
            raise UsageError(f"{where} must be a pair (images, labels)") from None
        if images.ndim and not len(images):
            raise UsageError(f"{where}: the split is empty; give it images, or leave it out")
        if images.dtype != np.uint8 or images.ndim != 4:
            raise UsageError(f"{where}: images of {images.dtype} {images.shape} must be uint8 [N, H, W, C]")
        if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            raise UsageError(f"{where}: labels of {labels.dtype} {labels.shape} must be whole numbers [{len(images)}]")
        if labels.min() < 0:
            raise UsageError(f"{where}: has a label below 0")
        return images, labels.astype(np.int32)

    def decoded(self, split: str) -> Decoded:
        images, labels = self._parts[split]
        return Decoded(images, labels, "stored", (0, ()), None)

    def records(self, split: str) -> Any:
        raise UsageError(f"config.data.name='{self.name}': is in memory; there is nothing to decode")

    def content(self, split: str) -> str:
        images, labels = self._parts[split]
        return hashlib.blake2b(images.tobytes() + labels.tobytes(), digest_size=16).hexdigest()
