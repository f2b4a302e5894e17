"""A data set or an augmentation of one's own, by name: 'package.module:function'."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxvit.data.cache import Decoded
from jaxvit.errors import UsageError, first_line


def load_function(name: str, key: str) -> Callable[..., Any]:
    """The function behind 'package.module:function'; `key` names the config key at fault.

    Raises:
      UsageError: it cannot be imported, or is no function.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"config.{key}='{name}': cannot be imported ({first_line(error)}); it is looked for in the working folder "
            "and on the Python path"
        ) from None
    if not callable(found):
        raise UsageError(f"config.{key}='{name}': is not a function")
    return found


class OwnStore:
    """What a function without arguments gives: ``{'train': (images, labels), 'test': …, 'class_names': (…)}``.

    Images are uint8 [N, H, W, C], all of one size, labels whole numbers [N] from 0. `class_names` may be left out: then
    the classes are called after their numbers. The attributes are those of `jaxvit.data.prepared.PreparedStore`.

    Raises:
      UsageError: the function does not give that.
    """

    version = ""

    def __init__(self, name: str, directory: Path):
        self.name, self.directory = name, directory
        given = load_function(name, "data.name")()
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
        names = tuple(map(str, given.get("class_names", range(classes))))
        if len(names) < classes:
            raise UsageError(
                f"config.data.name='{name}': has {len(names)} class names and labels up to {classes - 1}; every label "
                "needs a name"
            )
        self.class_names = names

    def _checked(self, split: str, value: Any) -> tuple[np.ndarray, np.ndarray]:
        where = f"config.data.name='{self.name}': split '{split}'"
        try:
            images, labels = map(np.asarray, value)
        except (TypeError, ValueError):
            raise UsageError(f"{where} must be a pair (images, labels)") from None
        if images.dtype != np.uint8 or images.ndim != 4:
            raise UsageError(f"{where}: images of {images.dtype} {images.shape} must be uint8 [N, H, W, C]")
        if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer) or not len(labels):
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
