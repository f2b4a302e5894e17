"""An ONNX graph rewritten, so that onnxruntime finds what it is fast at: the same function in other operations.

onnxruntime computes a sum over named axes (Einsum) by moving all its arrays around, one thread a time, and has no
max-pooling of more than three axes. jax2onnx writes matrix products as the former, and takes all four axes of a map for
pixels in the latter. `docs/export.md` has what the two cost.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import onnx
from onnx import helper


def rewrite(graph: onnx.GraphProto) -> None:
    """Matrix products in place of sums over named axes, and max-pooling of maps; in place."""
    old, new = list(graph.node), []
    while old:
        if made := _pooling_of_maps(old[:4]):
            old = old[4:]
        else:
            node = old.pop(0)
            made = _matrix_product(node) if node.op_type == "Einsum" else []
            made = made or [node]
        new += made
    del graph.node[:], graph.value_info[:]  # the latter: shapes of what lies between, which onnxruntime finds by itself
    graph.node.extend(new)
    read = {name for node in new for name in node.input}
    for constant in [constant for constant in graph.initializer if constant.name not in read]:
        graph.initializer.remove(constant)


def _matrix_product(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """A sum over named axes of two arrays as a MatMul between transpositions; none where it is no such product."""
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
    # Several rows need no batch: the matrix on the right is then the same for all of them.
    if alone or len(summed) != 1 or len(columns) != 1 or not rows or (batch and len(rows) > 1):
        return []
    name, made = node.output[0], []

    def ordered(array: str, axes: str, wanted: Sequence[str], output: str) -> str:
        if list(axes) == list(wanted):
            return array
        made.append(helper.make_node("Transpose", [array], [output], perm=[axes.index(axis) for axis in wanted]))
        return output

    factors = [
        ordered(node.input[0], left, [*batch, *rows, *summed], f"{name}_left"),
        ordered(node.input[1], right, [*batch, *summed, *columns], f"{name}_right"),
    ]
    found = "".join([*batch, *rows, *columns])
    product = name if found == result else f"{name}_product"
    made.append(helper.make_node("MatMul", factors, [product]))
    ordered(product, found, result, name)
    return made


def _pooling_of_maps(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Max-pooling of maps [B, H, W, C] for the four nodes of it that jax2onnx writes: two axes are put before the
    others, all others are pooled, and the two are taken away. None where the nodes are something else.
    """
    if [node.op_type for node in nodes] != ["Unsqueeze", "Unsqueeze", "MaxPool", "Squeeze"]:
        return []
    if any(later.input[0] != earlier.output[0] for earlier, later in itertools.pairwise(nodes)):
        return []
    attributes = _attributes(nodes[2])
    kernel = attributes["kernel_shape"]
    strides, pads = attributes.get("strides", [1] * len(kernel)), attributes.get("pads", [0] * 2 * len(kernel))
    if len(kernel) != 4 or [*kernel[::3], *strides[::3]] != [1] * 4 or any([*pads[::4], *pads[3::4]]):
        return []
    name = nodes[2].output[0]
    return [
        helper.make_node("Transpose", [nodes[0].input[0]], [f"{name}_channels_first"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "MaxPool",
            [f"{name}_channels_first"],
            [name],
            kernel_shape=kernel[1:3],
            strides=strides[1:3],
            pads=[*pads[1:3], *pads[5:7]],
        ),
        helper.make_node("Transpose", [name], [nodes[3].output[0]], perm=[0, 2, 3, 1]),
    ]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
