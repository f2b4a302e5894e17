"""Puts weights into a model that differs from theirs: other classes, image sizes, patches, channels, fewer parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from jaxvit.ops.patch_kernels import change_channels, resize_patch_kernel
from jaxvit.ops.paths import matches_any, without_match
from jaxvit.ops.positions import resize_positions
from jaxvit.weights.mapping import Arrays

LOADED, RESIZED, FRESH, UNUSED = "loaded", "resized", "fresh", "unused"
_STEM = ("embed/projection/kernel", "embed/conv_0/kernel")
_TABLE = "position_embed/table"


class AdaptError(ValueError):
    """Weights do not fit, and nothing says that they need not. One line."""


@dataclass(frozen=True)
class Decision:
    """The decision about one array.

    Attributes:
      path: in the model, or in the weights where they are not used.
      outcome: 'loaded', 'resized', 'fresh' or 'unused'.
      note: how, or why.
    """

    path: str
    outcome: str
    note: str = ""


@dataclass(frozen=True)
class Rules:
    """The differences that are allowed.

    Attributes:
      keep: patterns (see `jaxvit.ops.paths`) of paths that are loaded; none else are. () = all.
      skip: patterns of paths that are left at their initial values.
      allow: patterns of paths for which a difference is no error: they are left fresh, or unused.
      channels: 'sum' or 'mean', see `jaxvit.ops.patch_kernels.change_channels`.
      positions: how a position table is resized, see `jaxvit.ops.positions.resize_positions`.
    """

    keep: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    channels: str = "sum"
    positions: str = "timm"


@dataclass(frozen=True)
class Places:
    """Layout of the rows of a position table.

    Attributes:
      grid: rows and columns of the map of tokens.
      prefix: rows in front, of tokens without a place.
    """

    grid: tuple[int, int]
    prefix: int


def adapt(
    weights: Mapping[str, np.ndarray],
    fresh: Mapping[str, np.ndarray],
    rules: Rules,
    *,
    source: Places | None = None,
    target: Places | None = None,
    same_classes: bool = True,
    dense_stem: tuple[int, int] | None = None,
) -> tuple[Arrays, list[Decision]]:
    """Chooses each parameter of a model from weights or from its initial values.

    Args:
      weights: {path: array} of the model they were made for, paths joined by '/'.
      fresh: {path: array} of the model they are for, at initial values.
      rules: what may differ.
      source, target: what the rows of the position tables stand for; None where there is no table.
      same_classes: whether the two heads tell the same classes apart; else the head is fresh.
      dense_stem: (patch of the weights, patch of the model) where the stem is dense, on patches as vectors.

    Returns:
      {path: array} for every path of `fresh`, and a decision for each path, those of unused weights last.

    Raises:
      AdaptError: an array does not fit, is missing, or is left over, and no pattern of `rules` allows it; or a pattern
        to keep or skip matches nothing.
    """
    paths = list(dict.fromkeys((*fresh, *weights)))
    for key, patterns in {"init.keep": rules.keep, "init.skip": rules.skip}.items():
        if pattern := without_match(patterns, paths):
            raise AdaptError(f"{key} has '{pattern}', which matches no parameter; one is '{paths[0]}'")
    found: Arrays = {}
    decisions: list[Decision] = []
    for path, value in fresh.items():
        array, decision = _one(path, weights, value, rules, source, target, same_classes, dense_stem)
        found[path] = np.asarray(value) if array is None else array
        decisions.append(decision)
    for path in weights:
        if path in fresh:
            continue
        if not _is_head(path) and not matches_any(path, (*rules.allow, *rules.skip)) and _wanted(path, rules):
            raise AdaptError(f"the weights have {path}, which the model has not: allow it with init.allow='{path}'")
        decisions.append(Decision(path, UNUSED, "the model has no such part"))
    if not any(decision.outcome in (LOADED, RESIZED) for decision in decisions):
        raise AdaptError("nothing would be loaded: check init.keep and init.skip")
    return found, decisions


def _one(
    path: str,
    weights: Mapping[str, np.ndarray],
    value: np.ndarray,
    rules: Rules,
    source: Places | None,
    target: Places | None,
    same_classes: bool,
    dense_stem: tuple[int, int] | None,
) -> tuple[np.ndarray | None, Decision]:
    if not _wanted(path, rules):
        return None, Decision(path, FRESH, "init.skip" if matches_any(path, rules.skip) else "not in init.keep")
    if _is_head(path) and not same_classes:
        return None, Decision(path, FRESH, "other classes")
    if path not in weights:
        if _is_head(path) or matches_any(path, rules.allow):
            return None, Decision(path, FRESH, "the weights have none")
        raise AdaptError(f"the weights have no {path}: allow it with init.allow='{path}', which leaves it fresh")
    array, shape = weights[path], value.shape
    if path.endswith(_TABLE) and source and target:
        array, note = _positions(array, source, target, rules.positions)
    elif path in _STEM:
        array, note = _stem(array, shape, rules.channels, dense_stem)
    else:
        note = ""
    if array.shape == shape:
        return np.asarray(array, np.float32), Decision(path, RESIZED if note else LOADED, note)
    if _is_head(path) or matches_any(path, rules.allow):
        return None, Decision(path, FRESH, f"{list(array.shape)} there, {list(shape)} here")
    raise AdaptError(
        f"{path} is {list(array.shape)} in the weights and {list(shape)} in the model: set the model's attributes as "
        f"theirs, or leave it fresh with init.skip='{path}'"
    )


def _positions(table: np.ndarray, source: Places, target: Places, method: str) -> tuple[np.ndarray, str]:
    notes = []
    prefix, places = table[: source.prefix], table[source.prefix :]
    if source.prefix > target.prefix:
        prefix, _ = prefix[: target.prefix], notes.append("without the rows of tokens that the model has not")
    elif source.prefix < target.prefix:
        more = np.zeros((target.prefix - source.prefix, table.shape[1]), table.dtype)
        prefix, _ = np.concatenate([prefix, more]), notes.append("with zeros for a token that has no place")
    if source.grid != target.grid and len(places) == source.grid[0] * source.grid[1]:
        resized = resize_positions(jnp.asarray(places), source=source.grid, target=target.grid, method=method)
        places, _ = np.asarray(resized), notes.append(f"{_size(source.grid)} to {_size(target.grid)} places ({method})")
    return np.concatenate([prefix, places]), "; ".join(notes)


def _stem(
    kernel: np.ndarray, shape: tuple[int, ...], channels: str, dense: tuple[int, int] | None
) -> tuple[np.ndarray, str]:
    if kernel.shape == shape:
        return kernel, ""
    notes = []
    if dense and kernel.ndim == 2 == len(shape):
        before, after = dense
        kernel = kernel.reshape(before, before, -1, kernel.shape[-1])
        wanted = (after, after, shape[0] // after**2, shape[-1])
    elif kernel.ndim == 4 == len(shape):
        wanted = shape
    else:
        return kernel, ""
    if kernel.shape[2] != wanted[2]:
        notes.append(f"{kernel.shape[2]} to {wanted[2]} channels ({channels})")
        kernel = change_channels(kernel, wanted[2], channels)
    if kernel.shape[:2] != wanted[:2]:
        notes.append(f"patches of {_size(kernel.shape[:2])} to {_size(wanted[:2])} (pseudo-inverse)")
        kernel = resize_patch_kernel(kernel, (wanted[0], wanted[1]))
    return (kernel.reshape(shape) if kernel.size == np.prod(shape) else kernel), "; ".join(notes)


def _size(pair: Sequence[int]) -> str:
    return f"{pair[0]}x{pair[1]}"


def _is_head(path: str) -> bool:
    return path.startswith("head/")


def _wanted(path: str, rules: Rules) -> bool:
    return not matches_any(path, rules.skip) and (not rules.keep or matches_any(path, rules.keep))


def summarize(decisions: Sequence[Decision]) -> str:
    """One line: how many arrays were loaded, resized, left fresh or not used, and which of the few."""
    parts = []
    for outcome in (LOADED, RESIZED, FRESH, UNUSED):
        paths = [decision.path for decision in decisions if decision.outcome == outcome]
        names = f" ({', '.join(paths[:3])}{', …' if len(paths) > 3 else ''})" if outcome != LOADED and paths else ""
        if paths:
            parts.append(f"{len(paths)} {outcome}{names}")
    return ", ".join(parts)
