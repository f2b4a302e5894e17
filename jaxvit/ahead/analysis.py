"""Counts what a compiled program does on one chip: products, bytes, kernels, copies and collectives, by their origin.

The counts are of one execution. The body of a loop counts as often as the loop runs, where the compiler knows, and else
once: so a program of several training steps has the counts of one step, and a loop that samples until all is accepted
counts as if it ran once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from jaxvit.ahead.hlo import Array, Computation, Instruction, Module

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

# These take no kernel: they name arrays, or mark the end of an asynchronous operation.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "domain"),
    *("partition-id", "replica-id", "add-dependency", "async-update"),
}
_FREE_TARGETS = (
    "AllocateBuffer",
    "ConcatBitcast",
    "Sharding",
    "SPMDFullToShardShape",
    "SPMDShardToFullShape",
    "AssumeGatherIndices",
)
_MOVES = {"copy", "transpose", "bitcast", "reshape", "parameter", "tuple", "get-tuple-element"}


@dataclass(frozen=True)
class Kernel:
    """One operation of the device.

    Attributes:
      name: name of its instruction.
      opcode: opcode of its instruction, without '-start'.
      origin: part of the step that it belongs to; see `origin_of`.
      scope: named scopes and operation, as JAX wrote them.
      times: how often one execution of the program runs it.
      flops: operations of its matrix products and convolutions, a multiply-add being two, by dtype of their operands.
      bytes: bytes that it reads from and writes to the device's memory.
      is_kernel: False for a prefetch, which brings an array to the memory beside the compute units while other kernels
        run, and for the arithmetic of single numbers on a TPU's scalar unit.
      is_copy: whether it only moves an array within the device's memory.
      collective: kind of the collective that it is, of `COLLECTIVES`; '' = none.
      moved: bytes of the collective's whole array without padding, the larger of operand and result.
      group: number of chips that take part in the collective.
    """

    name: str
    opcode: str
    origin: str
    scope: str
    times: int
    flops: dict[str, int]
    bytes: int
    is_kernel: bool = True
    is_copy: bool = False
    collective: str = ""
    moved: int = 0
    group: int = 1


@dataclass
class Counts:
    """Sums over the kernels of one execution, on one chip."""

    kernels: int = 0
    copies: int = 0
    flops: int = 0
    bytes: int = 0
    collectives: dict[str, dict[str, int]] = field(default_factory=dict)


def count(kernels: list[Kernel]) -> Counts:
    """Sums kernels up; the collectives by kind, with `_` for `-`, as {'count', 'bytes'}, all kinds of `COLLECTIVES`."""
    kinds = {name.replace("-", "_"): {"count": 0, "bytes": 0} for name in COLLECTIVES}
    total = Counts(collectives=kinds)
    for kernel in kernels:
        total.kernels += kernel.times * kernel.is_kernel
        total.copies += kernel.times * kernel.is_copy
        total.flops += kernel.times * sum(kernel.flops.values())
        total.bytes += kernel.times * kernel.bytes
        if kernel.collective:
            kind = kinds[kernel.collective.replace("-", "_")]
            kind["count"] += kernel.times
            kind["bytes"] += kernel.times * kernel.moved
    return total


def origin_of(scope: str) -> str:
    """The part of a training step that an operation belongs to, by its scopes.

    'augment', 'model' (forward pass, loss and metrics), 'backward', 'optimizer', 'norms', or 'other': what has no
    scope, such as the lookup of the batch and what XLA adds.

    Example:
      >>> origin_of("jit(train_program)/model/transpose(jvp(ViT))/encoder/block_0/mul")
      'backward'
    """
    parts = scope.split("/")
    for part in ("augment", "optimizer", "norms"):
        if part in parts:
            return part
    if "model" in parts:
        return "backward" if "transpose(" in scope else "model"
    return "other"


def kernels_of(module: Module, *, fast_memory: bool) -> list[Kernel]:
    """The operations of a compiled program, in their order.

    Args:
      module: the program.
      fast_memory: whether memory 1 is beside the compute units, as on TPUs, so that its arrays do not count as bytes.
    """
    return list(_Counter(module, fast_memory).run(module.entry, 1))


class _Counter:
    def __init__(self, module: Module, fast_memory: bool):
        self._computations, self._fast = module.computations, fast_memory
        self._seen: set[str] = set()  # channels of collectives that were counted

    def run(self, computation: Computation, times: int, scope: str = "") -> Iterator[Kernel]:
        """The kernels of a computation that runs by itself, not inside of a fusion."""
        for i in computation.instructions:
            called = i.called
            if i.opcode == "while":
                for name in (*called.get("body", ()), *called.get("condition", ())):
                    yield from self.run(self._computations[name], times * i.trips, i.scope or scope)
            elif i.opcode == "conditional":
                branches = called.get("branch_computations", []) or called.get("to_apply", [])
                each = [list(self.run(self._computations[name], times, i.scope or scope)) for name in branches]
                yield from max(each, key=lambda kernels: sum(k.bytes for k in kernels), default=[])
            elif i.opcode in ("call", "async-start"):
                for name in (*called.get("to_apply", ()), *called.get("calls", ())):
                    yield from self.run(self._computations[name], times, i.scope or scope)
            elif i.opcode in _FREE or i.opcode.endswith("-done") or any(target in i.text for target in _FREE_TARGETS):
                continue
            else:
                yield self._kernel(computation, i, times, scope)

    def _kernel(self, within: Computation, i: Instruction, times: int, scope: str) -> Kernel:
        opcode = i.opcode.removesuffix("-start")
        is_copy, is_kernel = opcode == "copy", True
        if i.opcode in ("copy-start", "slice-start"):
            # Between memories it is a prefetch.
            is_copy = is_kernel = not self._fast or all(array.memory == 0 for array in i.arrays[:2])
        elif self._fast and opcode not in ("fusion", "custom-call", *COLLECTIVES):
            is_kernel = any(array.elements > 1 for array in (*i.arrays, *self._operands(within, i)))
        where = i.scope or scope
        if opcode == "fusion":
            inner = self._computations[i.called["calls"][0]]
            body = {each.opcode for each in inner.instructions}
            is_copy = body <= _MOVES and bool({"copy", "transpose"} & body)
            where = where or next((each.scope for each in reversed(inner.instructions) if "/" in each.scope), "")
        collective, whole, group = "", 0, 1
        if opcode in COLLECTIVES:
            collective, group = opcode, _group_size(i)
        elif opcode == "fusion" and (fused := [each for each in inner.instructions if each.opcode in COLLECTIVES]):
            # A TPU's compiler writes a reduce-scatter as a fusion of an all-reduce and a slice.
            scatters = fused[0].opcode == "all-reduce" and "dynamic-slice" in body
            # It also spreads a collective over several fusions, whose other parts compute meanwhile: the first counts.
            channel = fused[0].attribute("channel_id")
            if not channel or channel not in self._seen:
                self._seen.add(channel)
                collective, group = "reduce-scatter" if scatters else fused[0].opcode, _group_size(fused[0])
                whole = _whole(inner, fused[0])
        if opcode in COLLECTIVES:
            whole = _whole(within, i)
        return Kernel(
            name=i.name,
            opcode=opcode,
            origin=origin_of(where),
            scope=where,
            times=times,
            flops=self._flops(within, i),
            bytes=self._bytes(within, i),
            is_kernel=is_kernel,
            is_copy=is_copy,
            collective=collective,
            moved=whole,
            group=group,
        )

    def _operands(self, within: Computation, i: Instruction) -> list[Array]:
        return [array for name in i.operands if name in within for array in within[name].arrays]

    def _far(self, array: Array) -> int:
        """Bytes of an array in the device's memory."""
        return 0 if self._fast and array.memory == 1 else array.size

    def _bytes(self, within: Computation, i: Instruction) -> int:
        results = sum(map(self._far, i.arrays))
        if i.opcode == "fusion":
            inner = self._computations[i.called["calls"][0]]
            reads = 0
            for parameter, name in zip(inner.parameters, i.operands, strict=False):
                far = sum(map(self._far, within[name].arrays)) if name in within else 0
                reads += min(far, self._read(inner, parameter.name)) if far else 0
            return reads + self._written(inner, inner.root)
        operands = [sum(map(self._far, within[name].arrays)) if name in within else 0 for name in i.operands]
        if i.opcode in ("dynamic-slice", "slice", "gather"):
            return 2 * results + sum(operands[1:])
        if i.opcode == "dynamic-update-slice":
            return 2 * operands[1]
        if i.opcode == "copy-start":  # (destination, source, …)
            return sum(map(self._far, i.arrays[:2]))
        if i.opcode == "slice-start":  # ((source), destination, …): reads as much as it writes
            return i.arrays[1].size + self._far(i.arrays[1]) if len(i.arrays) > 1 else results
        if i.opcode.endswith("-start"):  # its result repeats its operands
            return results
        return results + sum(operands)

    def _read(self, inner: Computation, name: str) -> int:
        """Bytes of a fusion's operand that the fusion reads."""
        whole, total = sum(a.size for a in inner[name].arrays), 0
        for user in inner.users(name):
            if user.opcode in ("tuple", "custom-call"):
                continue  # passed through, or watched by an asynchronous collective
            if user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
                total += sum(a.size for a in user.arrays)
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                continue  # updated in place
            elif user.opcode == "bitcast":
                total += self._read(inner, user.name)
            elif user.opcode == "fusion":
                nested = self._computations[user.called["calls"][0]]
                places = [p for p, operand in zip(nested.parameters, user.operands, strict=False) if operand == name]
                total += sum(self._read(nested, place.name) for place in places)
            else:
                return whole
        return min(whole, total)

    def _written(self, inner: Computation, root: Instruction) -> int:
        if root.opcode == "tuple":
            return sum(self._written(inner, inner[name]) for name in root.operands if name in inner)
        if root.opcode == "bitcast" and root.operands[0] in inner:
            operand = inner[root.operands[0]]
            if operand.opcode in ("dynamic-update-slice", "bitcast"):
                return self._written(inner, operand)
        if root.opcode == "dynamic-update-slice" and root.operands[1] in inner:
            return min(sum(map(self._far, root.arrays)), sum(a.size for a in inner[root.operands[1]].arrays))
        if root.opcode == "fusion":
            nested = self._computations[root.called["calls"][0]]
            return self._written(nested, nested.root)
        if root.opcode in ("parameter", "custom-call", "get-tuple-element"):
            return 0  # passed through
        return sum(map(self._far, root.arrays))

    def _flops(self, within: Computation, i: Instruction) -> dict[str, int]:
        total: dict[str, int] = {}
        if i.opcode == "fusion":
            inner = self._computations[i.called["calls"][0]]
            for each in inner.instructions:
                for dtype, number in self._flops(inner, each).items():
                    total[dtype] = total.get(dtype, 0) + number
            return total
        shapes = [within[name].arrays[0] if name in within and within[name].arrays else None for name in i.operands]
        number = 0
        if i.opcode == "dot" and shapes[0]:
            axes = [int(axis) for axis in i.attribute("lhs_contracting_dims").split(",") if axis]
            number = 2 * i.arrays[0].elements
            for axis in axes:
                number *= shapes[0].shape[axis]
        elif i.opcode == "convolution" and shapes[0] and shapes[1]:
            number = convolution_flops(i, shapes[0], shapes[1], i.arrays[0])
        elif i.opcode == "custom-call" and shapes and shapes[0]:
            number = _library_flops(i, [shape for shape in shapes if shape])
        if number and shapes[0]:
            total[shapes[0].dtype] = number
        return total


def convolution_flops(i: Instruction, lhs: Array, rhs: Array, out: Array) -> int:
    """Operations of a convolution; products with padding, which no one computes, are not counted.

    Batched matrix products are convolutions to a TPU's compiler too.
    """
    labels = re.fullmatch(r"(\w+)_(\w+)->(\w+)", i.attribute("dim_labels"))
    if not labels:
        return 0
    lhs_labels, rhs_labels, out_labels = labels.groups()
    window = dict(pair.split("=") for pair in re.findall(r"\w+=[\dx_\-]+", i.attribute("window")))
    spatial = [label for label in lhs_labels if label.isdigit()]

    def values(name: str, default: int) -> list[int]:
        return [int(v) for v in window[name].split("x")] if name in window else [default] * len(spatial)

    pads = [tuple(map(int, pair.split("_"))) for pair in window.get("pad", "").split("x") if pair]
    pads = pads or [(0, 0)] * len(spatial)
    strides, stretch, spread = values("stride", 1), values("lhs_dilate", 1), values("rhs_dilate", 1)
    number = 2 * out.shape[out_labels.index("b")] * out.shape[out_labels.index("f")]
    number *= rhs.shape[rhs_labels.index("i")]
    for axis, label in enumerate(spatial):
        size = (lhs.shape[lhs_labels.index(label)] - 1) * stretch[axis] + 1
        window_size, outputs = rhs.shape[rhs_labels.index(label)], out.shape[out_labels.index(label)]
        places = (
            place * strides[axis] + step * spread[axis] - pads[axis][0]
            for place in range(outputs)
            for step in range(window_size)
        )
        number *= sum(0 <= place < size and place % stretch[axis] == 0 for place in places)
    return number


def _library_flops(i: Instruction, shapes: list[Array]) -> int:
    """Operations of a call of a library of NVIDIA: matrix product, convolution or attention."""
    target, out = i.attribute("custom_call_target").strip('"'), i.arrays[0]
    stated = re.search(r'"cost_estimate":\{[^}]*?"flops":"?(\d+)', i.text)
    if stated:  # a Pallas kernel
        return int(stated[1])
    if "fmha" in target:
        # Queries [B, N, M, D] or [B, M, N, D], keys likewise: two products forward, five backward.
        batch, *rest = shapes[0].shape
        one = 2 * shapes[0].elements * shapes[1].elements // (batch * rest[-1])
        heads = min(rest[0], rest[1])
        return (5 if "Backward" in target else 2) * one // heads
    if "gemm" in target or "matmul" in target:
        axes = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', i.text)
        number = 2 * out.elements
        for axis in re.findall(r"\d+", axes[1]) if axes else ():
            number *= shapes[0].shape[int(axis)]
        return number
    if "conv" in target and len(shapes) > 1:
        lhs, rhs = shapes[0], shapes[1]
        if "BackwardInput" in target:
            lhs, out = out, lhs
        elif "BackwardFilter" in target:
            rhs, out = out, rhs
        return convolution_flops(i, lhs, rhs, out)
    return 0


def _whole(within: Computation, i: Instruction) -> int:
    """Bytes of the whole array of a collective, without padding: its operand or its result, if that is larger."""
    operands = sum(a.net for name in i.operands if name in within for a in within[name].arrays)
    results = sum(a.net for a in i.arrays) - (operands if i.opcode.endswith("-start") else 0)
    return max(operands, results)


def _group_size(i: Instruction) -> int:
    """Number of chips in a group of a collective; 1 where the text does not say."""
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", i.text)
    if listed:
        return len(listed[1].split(","))
    # By axes of a mesh: mesh['a'=2,'b'=4], device_ids=(…) {'b'}.
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^ ]*\))? \{([^}]*)\}", i.text)
    if mesh:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", i.text)
    if iota:
        return int(iota[2])
    return 2 if "source_target_pairs" in i.text else 1
