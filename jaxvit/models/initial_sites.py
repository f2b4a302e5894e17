"""Finds the parameters of a model that can start from a formula, and sets them.

`survey` intercepts module calls during initialization, so it finds the layers of `jaxvit.layers` in any model, by type
and not by name. `start_attention`, `start_positions` and `start_stem` are pure functions from parameters to parameters.
The modules do not change.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxvit.layers.attention import Attention
from jaxvit.layers.embed import PositionEmbed
from jaxvit.ops.initial_values import mimetic_attention, place_filters
from jaxvit.ops.positions import sincos_positions
from jaxvit.ops.trees import Params, Variables

Path = tuple[str, ...]  # names of a module's parents, from the model down, and its own
_WITH_KERNEL = (nn.Dense, nn.DenseGeneral, nn.Einsum, nn.Conv, nn.ConvLocal, nn.ConvTranspose)


@dataclass(frozen=True)
class Stem:
    """The first layer with a kernel that a model applies to its images.

    Attributes:
      path: path of the module; its parameter is 'kernel'.
      window: rows and columns of the window of a convolution; () of a dense layer.
      strides: rows and columns of its strides; () of a dense layer.
      values: number of inputs P that each output sums over.
    """

    path: Path
    window: tuple[int, ...]
    strides: tuple[int, ...]
    values: int


@dataclass(frozen=True)
class Sites:
    """The layers of a model whose initial values can follow a formula.

    Attributes:
      attention: paths of all self-attentions. Attention pooling is not among them: its query is not a token.
      positions: path and grid (rows, columns) of each trained position table.
      stem: the first layer with a kernel; None if it is neither a dense layer nor a plain convolution.
    """

    attention: tuple[Path, ...]
    positions: tuple[tuple[Path, tuple[int, int]], ...]
    stem: Stem | None


def survey(model: nn.Module, input_shape: tuple[int, ...]) -> Sites:
    """Finds these layers in a model, by tracing shapes only.

    Args:
      model: called as `model(images, train=False)`.
      input_shape: shape (H, W, C) of one image.
    """
    attention: list[Path] = []
    tables: list[tuple[Path, tuple[int, int]]] = []
    stems: list[Stem | None] = []

    def look(module: nn.Module, args: tuple, kwargs: dict) -> None:
        if isinstance(module, Attention):
            if len(args) == 1 and kwargs.get("kv_BNC") is None:
                attention.append(module.path)
        elif isinstance(module, PositionEmbed):
            if module.kind == "learned" and not module.frozen:
                tables.append((module.path, tuple(kwargs["grid"])))
        elif isinstance(module, _WITH_KERNEL) and not stems:
            stems.append(_stem(module, args[0]))

    images = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    jax.eval_shape(lambda key, x: _init(model, key, x, look), jax.eval_shape(lambda: jax.random.key(0)), images)
    unique = tuple(dict.fromkeys(attention))  # a module may be called twice
    return Sites(unique, tuple(dict.fromkeys(tables)), stems[0] if stems else None)


def _stem(module: nn.Module, x: jax.Array) -> Stem | None:
    if isinstance(module, nn.Dense):
        return Stem(module.path, (), (), x.shape[-1])
    if not isinstance(module, nn.Conv):
        return None
    size = module.kernel_size
    window = (size,) if isinstance(size, int) else tuple(size)
    if len(window) != 2 or x.ndim != 4 or module.feature_group_count != 1:
        return None
    if not {*np.ravel(module.kernel_dilation or 1), *np.ravel(module.input_dilation or 1)} <= {1}:
        return None
    strides = tuple(int(s) for s in np.broadcast_to(module.strides or 1, 2))
    return Stem(module.path, window, strides, window[0] * window[1] * x.shape[-1])


def _init(model: nn.Module, key: jax.Array, images: jax.Array, look: Callable[..., None]) -> Variables:
    """Initializes the variables and calls `look(module, args, kwargs)` before each module call."""

    def watch(call, args, kwargs, context):
        if context.method_name == "__call__":
            look(context.module, args, kwargs)
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        return cast(Variables, model.init(key, images, train=False))


def stem_input(model: nn.Module, stem: Stem, images_BHWC: jax.Array) -> jax.Array:
    """Returns the input of the stem for these images: the images, their patches, or normalised patches.

    Jit it: then XLA drops everything after the stem. Layers before the stem have their initial parameters.
    """
    given: list[jax.Array] = []

    def look(module: nn.Module, args: tuple, kwargs: dict) -> None:
        if module.path == stem.path and not given:
            given.append(args[0])

    _init(model, jax.random.key(0), images_BHWC, look)
    return given[0].astype(jnp.float32)


def start_attention(
    params: Params,
    paths: Sequence[Path],
    key: jax.Array,
    *,
    query_key: tuple[float, float] = (0.7, 0.7),
    value_output: tuple[float, float] = (0.4, 0.4),
    joint: bool = False,
) -> Params:
    """Returns the parameters with the kernels of the attentions at `paths` set by `mimetic_attention`.

    Each attention uses its own random key, derived from `key` and its path. Biases and norms do not change.
    """
    found = dict(params)
    for path in paths:
        channels, heads, head_dim = _leaf(found, (*path, "query", "kernel")).shape
        own = jax.random.fold_in(key, zlib.crc32("/".join(path).encode()))
        kernels = mimetic_attention(
            own, channels, heads, head_dim, query_key=query_key, value_output=value_output, joint=joint
        )
        for name, kernel in kernels.items():
            found = _with(found, (*path, name, "kernel"), kernel)
    return found


def start_positions(params: Params, tables: Sequence[tuple[Path, tuple[int, int]]], *, scale: float = 1.0) -> Params:
    """Returns the parameters with trained position tables set to `scale` times `sincos_positions`.

    Leading rows without a place in the image, such as the class token's, do not change.

    Raises:
      ValueError: `sincos_positions` does not support the number of channels.
    """
    found = dict(params)
    for path, grid in tables:
        table_NC = _leaf(found, (*path, "table"))
        fixed_NC = scale * jnp.asarray(sincos_positions(grid, table_NC.shape[1]))
        prefix = table_NC.shape[0] - fixed_NC.shape[0]
        found = _with(found, (*path, "table"), jnp.concatenate([table_NC[:prefix], fixed_NC.astype(table_NC.dtype)]))
    return found


def start_stem(params: Params, stem: Stem, filters_PP: jax.Array | np.ndarray) -> Params:
    """Returns the parameters with the stem's kernel set by `jaxvit.ops.initial_values.place_filters`."""
    kernel = _leaf(params, (*stem.path, "kernel"))
    return _with(params, (*stem.path, "kernel"), place_filters(kernel, filters_PP))


def _leaf(tree: Params, path: Path) -> jax.Array:
    for name in path[:-1]:
        tree = cast(Params, tree[name])
    return cast(jax.Array, tree[path[-1]])


def _with(tree: Params, path: Path, value: jax.Array) -> Params:
    """Returns a copy of the tree with one leaf replaced; unchanged subtrees are shared."""
    name, *rest = path
    return {**tree, name: _with(cast(Params, tree[name]), tuple(rest), value) if rest else value}
