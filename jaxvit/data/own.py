"""A data set or an augmentation of one's own, by name: 'package.module:function'."""

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

# Values of an augmented image beyond this are no strong contrast any more but another scale, such as 0..255.
_FAR_OUTSIDE = 16.0


def check_augmentation(name: str, shape: tuple[int, ...]) -> None:
    """Refuses an augmentation that does not give an image of the same shape, type and scale for an image.

    Args:
      name: 'package.module:function'.
      shape: [H, W, C] of the images that it is given.

    Raises:
      UsageError: names what is wrong.
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
    if not np.abs(values).max() <= _FAR_OUTSIDE:  # nor is NaN
        found = f"values from {values.min():.3g} to {values.max():.3g}"
        raise UsageError(f"{where}: returns {found} for an image in 0..1; it must stay on that scale")


class OwnStore:
    """What a function without arguments gives: ``{'train': (images, labels), 'test': …, 'class_names': (…)}``.

    Images are uint8 [N, H, W, C], all of one size, labels whole numbers [N] from 0. `class_names` may be left out: then
    the classes are called after their numbers. The attributes are those of `jaxvit.data.prepared.PreparedStore`.

    Args:
      name: 'package.module:function'.
      directory: the TFDS directory; nothing is read from it.
      given: what the function would give; then none is called, and the name is only what the set is called.

    Raises:
      UsageError: the function does not give that.
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
