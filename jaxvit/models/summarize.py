"""Summarizes a model without running it: parameters, multiply-adds, tokens, modules."""

import math
from typing import TypedDict

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxvit.layers import EncoderBlock, ShiftBlock
from jaxvit.layers.stack import plainly
from jaxvit.models.count import abstract_variables, count_macs, count_params
from jaxvit.models.registry import create_model, input_shape
from jaxvit.ops.implementations import use


class Layer(TypedDict):
    """One module: `output` is the shape of its output without the batch."""

    path: str
    type: str
    output: list[int]
    params: int


class Summary(TypedDict):
    """The result of `summary`."""

    name: str
    params: int
    macs: dict[str, int]
    input: list[int]
    tokens: list[int]
    layers: list[Layer]


def summary(model: str | nn.Module, image_size: int | tuple[int, ...] = 0, **attributes: object) -> Summary:
    """Summarizes a model for one image, without running it.

    Args:
      model: a name for `jaxvit.create_model`, or a linen module called as ``model(images, train=False)``.
      image_size: side in pixels, (rows, columns), or (rows, columns, channels); 0 = the size the name was published
        for, or 32x32x3 for a module.
      **attributes: attributes of the named model that differ from the name's own.

    Returns:
      name; params; macs {'all', 'keras_profiler', 'cct'}; input [H, W, C]; tokens, the number of tokens in each block;
      layers, a dict per module with path, type, output (shape without the batch) and params.

    Raises:
      ValueError: unknown model or attribute, or attributes that do not go together.

    Example:
      >>> jaxvit.summary("tutorial_cct")["params"]
      416331
    """
    if isinstance(model, str):
        name, published = model, input_shape(model)
        model = create_model(model, **attributes)
    elif attributes:
        raise ValueError(f"{next(iter(attributes))}: attributes need a model's name; this model is already built")
    else:
        name, published = type(model).__name__, (32, 32, 3)
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    shape = published if sides == (0, 0) else (*sides, *published[len(sides) :])
    return summarize(model, shape, name=name)


def summarize(model: nn.Module, input_shape: tuple[int, ...], *, name: str = "") -> Summary:
    """Summarizes a module for one input of a given shape; see `summary`.

    Args:
      model: called as `model(images, train=False)`.
      input_shape: (H, W, C).
      name: name in the result; '' = the name of the class.
    """
    model = plainly(model)
    variables = abstract_variables(model, input_shape)
    rows: dict[str, Layer] = {}
    tokens: list[int] = []

    def record(call, args, kwargs, context):
        module = context.module
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        if isinstance(module, (EncoderBlock, ShiftBlock)):
            tokens.append(math.prod(args[0].shape[1:-1]))
        path = "/".join(module.path)
        empty = Layer(path=path, type=type(module).__name__, output=[], params=0)
        row = rows.setdefault(path, empty)  # before the call, so that parents precede children
        out = call(*args, **kwargs)
        row["output"] = list(getattr(getattr(out, "tokens", out), "shape", ())[1:])
        row["params"] = count_params({"params": _at(variables.get("params", {}), module.path)})
        return out

    images = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    with use("plain"), nn.intercept_methods(record):  # 'absorbed' attention would not call its projections
        jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, images)
    return {
        "name": name or type(model).__name__,
        "params": count_params(variables),
        "macs": count_macs(model, input_shape),
        "input": list(input_shape),
        "tokens": tokens,
        "layers": list(rows.values()),
    }


def _at(tree, path: tuple[str, ...]):
    for key in path:
        tree = tree.get(key, {})
    return tree
