"""Counts a model's multiply-adds from its traced program, by named conventions.

JAX traces the program for one sample with `train=False`, and every matrix product and convolution in it is counted from
its shapes. So this works for any model. Elementwise operations, norms and softmaxes do not count.

| convention | dense | convolutions | per-head projections of attention | products of two activations |
|---|---|---|---|---|
| `all` | yes | yes | yes | yes: two in attention, token pooling and fusing |
| `keras_profiler` | yes | yes | no | no |
| `cct` | yes | yes | yes | no |

`keras_profiler` matches the tool that the tutorials use. It walks TensorFlow's graph and has no rule for Einsum, and
Keras implements attention's projections (kernels of rank three) and products by Einsum. `cct` matches the README of the
CCT authors: products with parameters, not products of two activations.

A product is one of two activations if both operands depend on the input. A convolution counts its whole window at every
place, padding included. Counts are of the plain implementation of each operation (`jaxvit.ops.implementations`).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.extend import core

from jaxvit.ops.implementations import use

CONVENTIONS = ("all", "keras_profiler", "cct")


class _Work(NamedTuple):
    """Multiply-adds by kind."""

    dense: int = 0
    conv: int = 0
    projection: int = 0
    activations: int = 0

    def plus(self, other: "_Work", times: int = 1) -> "_Work":
        return _Work(*(mine + times * theirs for mine, theirs in zip(self, other, strict=True)))


def count_params(variables: dict) -> int:
    """Counts the trainable parameters in a tree of variables (arrays or shapes), which are under 'params'."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables.get("params", {})))


def abstract_variables(model: nn.Module, input_shape: tuple[int, ...]) -> dict:
    """Returns the shapes of a model's variables without computing them.

    Args:
      model: called as `model(images, train=False)`.
      input_shape: shape (H, W, C) of one sample.
    """
    images = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    return jax.eval_shape(lambda key, x: model.init(key, x, train=False), jax.random.key(0), images)


def count_macs(model: nn.Module, input_shape: tuple[int, ...]) -> dict[str, int]:
    """Counts the multiply-adds of one forward pass of one sample.

    Args:
      model: called as `model(images, train=False)`.
      input_shape: shape (H, W, C) of one sample.

    Returns:
      {convention: multiply-adds}, for each of `CONVENTIONS`.
    """
    variables = abstract_variables(model, input_shape)
    images = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    with use("plain"):
        closed = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(variables, images)
    leaves = len(jax.tree.leaves(variables))
    work, _ = _walk(closed.jaxpr, [False] * leaves + [True])
    weights = work.dense + work.conv
    return {
        "all": weights + work.projection + work.activations,
        "keras_profiler": weights,
        "cct": weights + work.projection,
    }


def _walk(jaxpr: core.Jaxpr, fed: list[bool]) -> tuple[_Work, list[bool]]:
    """Returns the work in a program and, per result, whether it depends on the input; `fed` says so per argument."""
    active = {var for var, yes in zip(jaxpr.invars, fed, strict=True) if yes}
    work = _Work()

    def depends(atom) -> bool:
        return not isinstance(atom, core.Literal) and atom in active

    for eqn in jaxpr.eqns:
        flags = [depends(atom) for atom in eqn.invars]
        results = [any(flags)] * len(eqn.outvars)
        name = eqn.primitive.name
        if name == "dot_general":
            work = work.plus(_dot_general(eqn, flags))
        elif name == "conv_general_dilated":
            work = work.plus(_convolution(eqn, flags))
        else:
            for inner, inner_flags, times in _inner(eqn, flags):
                inner_work, inner_results = _walk(inner, inner_flags)
                work = work.plus(inner_work, times)
                if len(inner_results) == len(results):
                    results = [a or b for a, b in zip(results, inner_results, strict=True)]
        active.update(var for var, yes in zip(eqn.outvars, results, strict=True) if yes)
    return work, [depends(atom) for atom in jaxpr.outvars]


def _inner(eqn, flags: list[bool]):
    """Yields the programs in an equation (calls, loops, branches), their arguments' flags, and how often they run."""
    times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
    inner = []
    for value in eqn.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                inner.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                inner.append(item)
    if eqn.primitive.name == "cond":  # one branch runs: count the first; its arguments exclude the branch index
        inner, flags = inner[:1], flags[1:]
    for jaxpr in inner:
        fits = len(jaxpr.invars) == len(flags)
        yield jaxpr, flags if fits else [any(flags)] * len(jaxpr.invars), times


def _dot_general(eqn, flags: list[bool]) -> _Work:
    left, right = (atom.aval.shape for atom in eqn.invars)
    ((contracted, _), _) = eqn.params["dimension_numbers"]
    macs = math.prod(eqn.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    if all(flags):
        return _Work(activations=macs)
    if not any(flags):
        return _Work()  # no operand depends on the input: the same for every sample
    kernel = right if flags[0] else left
    return _Work(projection=macs) if len(kernel) > 2 else _Work(dense=macs)


def _convolution(eqn, flags: list[bool]) -> _Work:
    if not any(flags):
        return _Work()
    kernel = eqn.invars[1].aval.shape
    out_channels = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    # A kernel has, per output channel, the input channels of its group times the window.
    return _Work(conv=int(np.prod(eqn.outvars[0].aval.shape)) * math.prod(kernel) // out_channels)
