"""Rewrites an ONNX graph of jax2onnx for onnxruntime, without changing the function that it computes.

jax2onnx writes matrix products as Einsum, which onnxruntime runs slowly (see `docs/export.md`), and 2-D max-pooling as
pooling over four spatial axes, which onnxruntime does not support.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import onnx
from onnx import helper, numpy_helper


@dataclasses.dataclass(frozen=True)
class _Scope:
    """Facts about a graph.

    Attributes:
      constants: constants of this graph and of enclosing graphs.
      reads: how often this graph and nested graphs read each name.
      taken: names in use.
    """

    constants: dict[str, onnx.TensorProto]
    reads: collections.Counter[str]
    taken: set[str]

    def fresh(self, name: str) -> str:
        """Returns an unused name: `name`, with underscores appended if it is taken."""
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name


def rewrite(graph: onnx.GraphProto) -> None:
    """Rewrites matrix products and 2-D max-pooling in place, also in branches and loops.

    Drops the recorded shapes of intermediate values, since some of these no longer exist; onnxruntime infers them
    again. Removes constants that are no longer read.
    """
    taken = {name for inner in _graphs(graph) for node in inner.node for name in (*node.input, *node.output)}
    _rewrite(graph, _Scope({}, collections.Counter(), taken))


def _rewrite(graph: onnx.GraphProto, around: _Scope) -> None:
    constants = {**around.constants, **{constant.name: constant for constant in graph.initializer}}
    scope = _Scope(constants, _reads(graph), around.taken)
    old, new = list(graph.node), []
    while old:
        if made := _pooling_of_maps(old[:4], scope):
            old = old[4:]
        else:
            node = old.pop(0)
            for inner in _inner(node):
                _rewrite(inner, scope)
            made = _matrix_product(node, scope) or [node]
        new += made
    del graph.node[:], graph.value_info[:]
    graph.node.extend(new)
    orphans = scope.reads.keys() - _reads(graph).keys()
    for constant in [constant for constant in graph.initializer if constant.name in orphans]:
        graph.initializer.remove(constant)


def _inner(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The nested graphs of a node: loop bodies and branches."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for inner in _inner(node):
            yield from _graphs(inner)


def _reads(graph: onnx.GraphProto) -> collections.Counter[str]:
    """How often each name is read in a graph and its nested graphs; being an output counts as a read."""
    return collections.Counter(
        name
        for each in _graphs(graph)
        for name in itertools.chain((output.name for output in each.output), *(node.input for node in each.node))
    )


def _matrix_product(node: onnx.NodeProto, scope: _Scope) -> list[onnx.NodeProto]:
    """Converts an Einsum of two arrays to Transpose and MatMul nodes; returns [] if it is not a matrix product."""
    if node.op_type != "Einsum":
        return []
    equation = _attributes(node)["equation"].decode().replace(" ", "")
    operands, _, result = equation.partition("->")
    if operands.count(",") != 1 or not operands.replace(",", "").isalpha():
        return []
    left, right = operands.split(",")
    if any(len(set(axes)) < len(axes) for axes in (left, right, result)) or set(result) - set(left) - set(right):
        return []
    batch = [axis for axis in result if axis in left and axis in right]
    rows = [axis for axis in result if axis in left and axis not in right]
    columns = [axis for axis in result if axis in right and axis not in left]
    summed = [axis for axis in left if axis in right and axis not in result]
    alone = set(left + right) - {*batch, *rows, *columns, *summed}
    # MatMul broadcasts the right matrix over several row axes, but only without batch axes.
    if alone or len(summed) != 1 or len(columns) != 1 or not rows or (batch and len(rows) > 1):
        return []
    made: list[onnx.NodeProto] = []

    def ordered(array: str, axes: str, wanted: Sequence[str]) -> str:
        if list(axes) == list(wanted):
            return array
        output = scope.fresh(f"{node.output[0]}_{''.join(wanted)}")
        made.append(helper.make_node("Transpose", [array], [output], perm=[axes.index(axis) for axis in wanted]))
        return output

    factors = [ordered(node.input[0], left, [*batch, *rows, *summed])]
    factors.append(ordered(node.input[1], right, [*batch, *summed, *columns]))
    found = "".join([*batch, *rows, *columns])
    if found == result:
        return [*made, helper.make_node("MatMul", factors, node.output)]
    product = scope.fresh(f"{node.output[0]}_{found}")
    turned = helper.make_node("Transpose", [product], node.output, perm=[found.index(axis) for axis in result])
    return [*made, helper.make_node("MatMul", factors, [product]), turned]


def _pooling_of_maps(nodes: Sequence[onnx.NodeProto], scope: _Scope) -> list[onnx.NodeProto]:
    """Converts the four nodes that jax2onnx writes for max-pooling of maps [B, H, W, C].

    They add two leading axes, pool over the four others, and remove the two. Returns [] for other nodes.
    """
    if [node.op_type for node in nodes] != ["Unsqueeze", "Unsqueeze", "MaxPool", "Squeeze"]:
        return []
    if any(b.input[0] != a.output[0] or scope.reads[a.output[0]] > 1 for a, b in itertools.pairwise(nodes)):
        return []
    axes = [scope.constants.get(nodes[i].input[1]) for i in (0, 1, 3)]
    if None in axes or [numpy_helper.to_array(each).tolist() for each in axes] != [[0], [1], [0, 1]]:
        return []
    told = _attributes(nodes[2])
    kernel = told.pop("kernel_shape")
    strides, dilations = (told.pop(name, [1] * len(kernel)) for name in ("strides", "dilations"))
    pads = told.pop("pads", [0] * 2 * len(kernel))
    if len(kernel) != 4 or [*kernel[::3], *strides[::3]] != [1] * 4 or any([*pads[::4], *pads[3::4]]) or told:
        return []
    first = scope.fresh(f"{nodes[2].output[0]}_channels_first")
    return [
        helper.make_node("Transpose", [nodes[0].input[0]], [first], perm=[0, 3, 1, 2]),
        helper.make_node(
            "MaxPool",
            [first],
            [nodes[2].output[0]],
            kernel_shape=kernel[1:3],
            strides=strides[1:3],
            dilations=dilations[1:3],
            pads=[*pads[1:3], *pads[5:7]],
        ),
        helper.make_node("Transpose", [nodes[2].output[0]], [nodes[3].output[0]], perm=[0, 2, 3, 1]),
    ]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
