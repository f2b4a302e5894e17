"""The definition of an importer: how to recognise files of a project, guess their model, and map their names."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from jaxvit.weights.mapping import Arrays, Line

Value = bool | int | float | str | tuple


@dataclass(frozen=True)
class Guess:
    """The model of a file's arrays, guessed from their shapes.

    Attributes:
      model: a name of `jaxvit.create_model`.
      attributes: its attributes.
      input: (height, width, channels) of its images.
      unsure: {attribute: why its value is a guess}.
    """

    model: str
    attributes: dict[str, Value]
    input: tuple[int, int, int]
    unsure: dict[str, str] = field(default_factory=dict)


class NotImportable(ValueError):
    """The arrays are of a model that this project does not have. One line that names what is missing."""


def _write_all(attributes: Mapping[str, Value]) -> tuple[str, ...]:
    del attributes
    return ()


def _prepare_nothing(arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Value]) -> Arrays:
    del attributes
    return dict(arrays)


def _restore_nothing(arrays: Mapping[str, np.ndarray]) -> Arrays:
    return dict(arrays)


@dataclass(frozen=True)
class Origin:
    """An importer.

    Attributes:
      name: in flags: 'timm'.
      title: in sentences: 'timm (huggingface/pytorch-image-models)'.
      fits: whether {name: array} is of this origin.
      guess: the model they hold. Raises `NotImportable` for a model that this project does not have.
      lines: the table of names.
      prepare: what is done to their arrays before the table is applied, where one array is not one of ours; it is
        given the model's attributes too.
      restore: its reverse.
      not_written: from a model's attributes to starts of names that its files do not have, where two of their names
        stand for one of ours.
      ignored: patterns of names to ignore: buffers, unused heads.
      positions: how the origin resizes its position table, a method of `jaxvit.ops.resize_positions`.
    """

    name: str
    title: str
    fits: Callable[[Mapping[str, np.ndarray]], bool]
    guess: Callable[[Mapping[str, np.ndarray]], Guess]
    lines: tuple[Line, ...]
    prepare: Callable[[Mapping[str, np.ndarray], Mapping[str, Value]], Arrays] = _prepare_nothing
    restore: Callable[[Mapping[str, np.ndarray]], Arrays] = _restore_nothing
    not_written: Callable[[Mapping[str, Value]], tuple[str, ...]] = _write_all
    ignored: tuple[str, ...] = ()
    positions: str = "timm"


def grid_of(tokens: int, patch: int, channels: int) -> tuple[int, int, int]:
    """The square image, (height, width, channels), that is cut into so many patches.

    Raises:
      NotImportable: no square image is.
    """
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise NotImportable(
            f"a position table of {tokens} places, which do not form a square, as all published ones do"
        )
    return side * patch, side * patch, channels


def heads_of(dim: int) -> int:
    """The number of heads of a ViT: one per 64 channels, except in the largest published sizes; 0 = unknown."""
    if dim in _WIDE_HEADS:
        return _WIDE_HEADS[dim]
    return 0 if dim % 64 else dim // 64


# Channels of ViT-So400m, -H, -g, -G and -e (big_vision's `decode_variant`): 16 heads each.
_WIDE_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16, 1792: 16}


def count(arrays: Mapping[str, np.ndarray], name: str) -> int:
    """Counts the arrays whose name is `name` with a number for `{i}`: 0, 1, 2, …"""
    before, after = name.split("{i}")
    pattern = re.compile(re.escape(before) + r"(\d+)" + re.escape(after))
    return len({found[1] for other in arrays if (found := pattern.fullmatch(other))})
