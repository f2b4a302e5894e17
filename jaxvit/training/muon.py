"""The Muon optimizer (Jordan et al. 2024, github.com/KellerJordan/Muon): momentum with equalized singular values.

    M ← β M + (1 − β) G;   N = β M̂ + (1 − β) Ĝ, with bias correction (optax);
    update = N / ‖N‖, then five times X ← 3.4445 X − 4.7750 (X Xᵀ) X + 2.0315 (X Xᵀ)² X, which moves the singular values
    to between 0.7 and 1.2; then · rms · √max(rows, columns).

Rows are the inputs of a kernel and columns its outputs. The last factor, from Liu et al. (2025, arXiv:2502.16982),
gives the update an RMS of about `rms` for every shape, and of exactly `rms` if all singular values are 1. Adam's
updates have an RMS of about 0.2, so learning rate and weight decay keep their meaning when you change from AdamW to
Muon.

Departures from the authors' code:

- Adam trains all other parameters with the same learning rate, decay and clipping by the global norm of all gradients.
  The authors do not clip, and give Adam its own learning rate.
- An attention kernel is one matrix over all heads, (C, heads · head_dim), or one matrix per head. The authors' language
  models have one matrix. A convolution is flattened as theirs, (out, in · h · w).
- `rms` is 0.2 for all kernels. The authors scale by √max(1, outputs / inputs).
- Updates are float32, not bfloat16, and have bias correction, which the authors do not use.

`optax.contrib.muon` gives Adam Nesterov momentum and applies Muon to every array with two axes, including position
tables and heads; here Adam has none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase

import jax
import optax
from jax.tree_util import KeyPath
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from jaxvit.errors import UsageError
from jaxvit.ops.trees import Params
from jaxvit.training.settings import OptimizerSettings

_PROJECTIONS = ("query", "key", "value")  # (C, heads, head_dim): only the first axis is inputs


def matrix_axes(path: str, shape: tuple[int, ...], heads: str = "matrix") -> MuonDimensionNumbers | None:
    """Returns which axes of a parameter are rows (inputs) and which columns (outputs); None if it is not a matrix.

    The last axis is outputs and all others are inputs, as in a convolution (h, w, i, o) and attention's `out` (heads,
    head_dim, C). In `query`, `key` and `value` (C, heads, head_dim), the first axis is inputs. An array with one row or
    one column is a vector, not a matrix.

    Args:
      path: names from the root of the parameter tree, joined by '/'.
      shape: shape of the parameter.
      heads: 'matrix' = an attention kernel is one matrix; 'per_head' = one matrix per head.

    Example:
      >>> matrix_axes('block_0/attention/query/kernel', (128, 4, 32))
      MuonDimensionNumbers(reduction_axis=(0,), output_axis=(1, 2))
    """
    if len(shape) < 2:
        return None
    module = path.split("/")[-2] if "/" in path else ""
    rank, projection = len(shape), module in _PROJECTIONS and len(shape) == 3
    rows = (0,) if projection else tuple(range(rank - 1))
    columns = (1, 2) if projection else (rank - 1,)
    if heads == "per_head" and projection:
        columns = (2,)
    elif heads == "per_head" and module == "out" and rank == 3:
        rows = (1,)
    axes = MuonDimensionNumbers(rows, columns)
    return axes if min(_size(shape, axes)) > 1 else None


def muon_axes(path: str, shape: tuple[int, ...], settings: OptimizerSettings) -> MuonDimensionNumbers | None:
    """As `matrix_axes`; also None for parameters that the patterns `muon_on` and `muon_off` leave to Adam."""
    s = settings
    if not _matches(path, s.muon_on) or _matches(path, s.muon_off):
        return None
    return matrix_axes(path, shape, s.muon_heads)


def scale_by_muon_and_adam(settings: OptimizerSettings) -> optax.GradientTransformation:
    """Makes the transformation before decay and learning rate: Muon for matrices, Adam for all other parameters."""
    s = settings

    def axes(params: optax.Params) -> optax.Params:
        # `params` is Muon's part of the tree; Adam's parameters are empty nodes there.
        return jax.tree_util.tree_map_with_path(lambda path, x: muon_axes(_join(path), x.shape, s), params)

    def owners(params: optax.Params) -> Mapping[str, object]:
        def owner(path: KeyPath, x: jax.Array) -> str:
            return "adam" if muon_axes(_join(path), x.shape, s) is None else "muon"

        return jax.tree_util.tree_map_with_path(owner, params)

    def to_rms(path: KeyPath, update: jax.Array) -> jax.Array:
        found = muon_axes(_join(path), update.shape, s)
        assert found is not None, "Muon updates matrices only"
        return update * (s.muon_rms * math.sqrt(max(_size(update.shape, found))))

    muon = optax.chain(
        scale_by_muon(beta=s.muon_beta, weight_dimension_numbers=axes),
        optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(to_rms, updates)),
    )
    return optax.partition({"muon": muon, "adam": optax.scale_by_adam(b1=s.b1, b2=s.b2, eps=s.eps)}, owners)


def count_on_muon(params: Params, settings: OptimizerSettings) -> dict[str, tuple[int, int]]:
    """Returns {path: (parameters, matrices)} of Muon's part of a parameter tree, which may be abstract."""
    counts = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        axes = muon_axes(_join(path), leaf.shape, settings)
        if axes is not None:
            size = math.prod(leaf.shape)
            counts[_join(path)] = (size, size // math.prod(_size(leaf.shape, axes)))
    return counts


def check_patterns(params: Params, settings: OptimizerSettings) -> None:
    """Checks that the patterns fit a model's parameters.

    Raises:
      UsageError: a pattern of `muon_on` matches no matrix; a pattern of `muon_off` other than the defaults matches
        nothing; or Muon would train nothing.
    """
    s = settings
    shapes = {_join(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    matrices = [path for path, shape in shapes.items() if matrix_axes(path, shape, s.muon_heads) is not None]
    asked = [("muon_on", pattern, matrices) for pattern in s.muon_on]
    asked += [("muon_off", p, [*shapes]) for p in s.muon_off if p not in OptimizerSettings.muon_off]
    for key, pattern, paths in asked:
        if not any(fnmatchcase(path, pattern) for path in paths):
            such = f", such as '{paths[0]}'" if paths else ""
            kind = "matrix" if key == "muon_on" else "parameter"
            raise UsageError(
                f"config.optim.{key}: '{pattern}' matches no {kind} of this model{such}; --dry_run shows "
                "what is on Muon"
            )
    if not count_on_muon(params, s):
        raise UsageError(
            f"config.optim.name='muon': muon_on={s.muon_on} and muon_off={s.muon_off} leave no matrix on Muon; use "
            "'adamw', or change the patterns"
        )


def _size(shape: tuple[int, ...], axes: MuonDimensionNumbers) -> tuple[int, int]:
    """(rows, columns)."""
    rows, columns = (
        (axis,) if isinstance(axis, int) else tuple(axis) for axis in (axes.reduction_axis, axes.output_axis)
    )
    return math.prod(shape[i] for i in rows), math.prod(shape[i] for i in columns)


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def _join(path: KeyPath) -> str:
    return "/".join(str(getattr(part, "key", part)) for part in path)
