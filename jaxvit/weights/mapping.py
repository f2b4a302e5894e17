"""Moves arrays between another project's names and ours, by a table with a line for each kind of array."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from jaxvit.weights.layouts import DENSE, SAME, Layout, Shape

Arrays = dict[str, np.ndarray]


class Line(NamedTuple):
    """One line of a table.

    Attributes:
      theirs: their name, with `{i}`, `{s}` for numbers: 'blocks.{i}.norm1.weight'.
      ours: paths in our parameters with the same numbers, joined by '/'; several where their array is several of ours.
      layout: how the array is laid out there.
    """

    theirs: str
    ours: str | tuple[str, ...]
    layout: Layout = SAME

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.ours,) if isinstance(self.ours, str) else self.ours


def torch_norm(theirs: str, ours: str) -> tuple[Line, Line]:
    """The two lines of a PyTorch norm: weight and bias are scale and bias here."""
    return Line(f"{theirs}.weight", f"{ours}/scale"), Line(f"{theirs}.bias", f"{ours}/bias")


def torch_dense(theirs: str, ours: str, layout: Layout = DENSE) -> tuple[Line, Line]:
    """The two lines of a PyTorch layer with a kernel in some layout, and a bias as it is."""
    return Line(f"{theirs}.weight", f"{ours}/kernel", layout), Line(f"{theirs}.bias", f"{ours}/bias")


class MappingError(ValueError):
    """Arrays do not fit the table or the model. One line."""


class Read(NamedTuple):
    """The result of `read`.

    Attributes:
      params: {our path: array}, float32, for every path of the model that has a counterpart.
      unused: their names that no line of the table has.
      missing: our paths that no array of theirs filled.
    """

    params: Arrays
    unused: tuple[str, ...]
    missing: tuple[str, ...]


@cache
def _pattern(name: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", name)
    return re.compile("".join(f"(?P<{part}>\\d+)" if odd else re.escape(part) for odd, part in _odd(parts)))


def _odd(parts: Sequence[str]) -> Iterable[tuple[bool, str]]:
    return ((index % 2 == 1, part) for index, part in enumerate(parts))


def _find(name: str, lines: Sequence[Line], shapes: Mapping[str, Shape]) -> tuple[Layout, list[str]] | None:
    """The layout of an array and the paths of ours that it fills; None if the model has no such part."""
    for line in lines:
        if found := _pattern(line.theirs).fullmatch(name):
            paths = [path.format(**found.groupdict()) for path in line.paths]
            if all(path in shapes for path in paths):
                return line.layout, paths
    return None


def read(arrays: Mapping[str, np.ndarray], lines: Sequence[Line], shapes: Mapping[str, Shape]) -> Read:
    """Translates their arrays into ours.

    Args:
      arrays: {their name: array}.
      lines: the table.
      shapes: {our path: shape} of the model that the arrays were made for.

    Raises:
      MappingError: an array's shape does not suit its place, or two arrays fill one place.
    """
    params: Arrays = {}
    unused = []
    for name, array in arrays.items():
        found = _find(name, lines, shapes)
        if not found:
            unused.append(name)
            continue
        layout, paths = found
        wanted = [shapes[path] for path in paths]
        try:
            parts = layout.read(np.asarray(array), wanted)
        except ValueError:
            parts = []
        if [part.shape for part in parts] != wanted:
            ours = ", ".join(f"{path} {list(shape)}" for path, shape in zip(paths, wanted, strict=True))
            raise MappingError(f"{name} {list(array.shape)} does not fit {ours}")
        for path, part in zip(paths, parts, strict=True):
            if path in params:
                raise MappingError(f"{name} occurs twice, under two names")
            params[path] = np.ascontiguousarray(part, np.float32)
    missing = tuple(path for path in shapes if path not in params)
    return Read(params, tuple(unused), missing)


def write(params: Mapping[str, np.ndarray], lines: Sequence[Line]) -> Arrays:
    """Translates our arrays into theirs; the reverse of `read`.

    Raises:
      MappingError: an array of ours has no name there.
    """
    arrays: Arrays = {}
    left = dict(params)
    for path in params:
        if path not in left:
            continue
        for line in lines:
            found = _pattern(line.paths[0]).fullmatch(path)
            paths = [other.format(**found.groupdict()) for other in line.paths] if found else []
            if found and all(other in left for other in paths):
                arrays[line.theirs.format(**found.groupdict())] = line.layout.write([left.pop(p) for p in paths])
                break
    if left:
        raise MappingError(f"{next(iter(left))} has no counterpart in this layout")
    return arrays
