"""Reads the text of a compiled program: its computations, their instructions, and the arrays of these.

`jax.stages.Compiled.as_text` returns the text: scheduled HLO, with one instruction per line. The text of
`jax.stages.Lowered.as_text("hlo")`, which has no `%`, can be read too.

    %name = f32[8,128]{1,0:T(8,128)S(1)} opcode(%operand, …), attribute=…, metadata={op_name="jit(f)/scope/op" …}

A layout `{1,0:T(8,128)S(1)}` names the axes from the fastest to the slowest, tiles that the array is padded to, and a
memory: S(1) of a TPU is the memory beside its compute units (VMEM), S(0), which is not written, that of the device.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

_BITS = {
    **{"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "f16": 16, "bf16": 16},
    **{"s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128},
    **{"f8e4m3fn": 8, "f8e5m2": 8},
}
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+)(?: \(.*\) -> .*)? \{$")
_START = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_CALLED = re.compile(r"\b(calls|body|condition|to_apply|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)")
_OP_NAME = re.compile(r'metadata=\{[^}]*?op_name="([^"]*)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclass(frozen=True)
class Array:
    """Shape, type and place of an array.

    Attributes:
      dtype: as HLO names it: 'f32', 'bf16', 's32', …
      shape: sizes of the axes.
      size: bytes, with the padding of its tiles.
      memory: number of the memory that holds it; 0 = the device's.
    """

    dtype: str
    shape: tuple[int, ...]
    size: int
    memory: int

    @property
    def elements(self) -> int:
        """Number of elements, without padding."""
        return math.prod(self.shape)

    @property
    def net(self) -> int:
        """Bytes without padding."""
        return -(-self.elements * _BITS[self.dtype] // 8)


@dataclass
class Instruction:
    """One instruction.

    Attributes:
      name: its name in its computation.
      opcode: kind of operation, for example 'fusion', 'all-reduce' or 'copy'.
      arrays: its result; several for a tuple.
      operands: names of the instructions whose results it takes.
      text: the rest of the line: its attributes.
      root: whether its result is that of the computation.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    text: str
    root: bool

    @property
    def scope(self) -> str:
        """Its origin in the program: named scopes and the operation, as JAX wrote them; '' = not known."""
        found = _OP_NAME.search(self.text)
        return found[1] if found else ""

    @property
    def called(self) -> dict[str, list[str]]:
        """{attribute: computations} that it calls: calls, body, condition, to_apply, branch_computations."""
        return {kind: re.findall(r"[\w.\-]+", names) for kind, names in _CALLED.findall(self.text)}

    @property
    def trips(self) -> int:
        """How often a `while` runs; 1 where the compiler does not know."""
        found = _TRIPS.search(self.text)
        return int(found[1]) if found else 1

    def attribute(self, name: str) -> str:
        """The value of an attribute such as `dim_labels`; '' = it has none."""
        found = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^,\s]+)", self.text)
        return found[1].strip("{}") if found else ""


@dataclass
class Computation:
    """Instructions in the order of their execution; the last one marked `root` is the result."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._by_name: dict[str, Instruction] = {}

    def add(self, instruction: Instruction) -> None:
        self.instructions.append(instruction)
        self._by_name[instruction.name] = instruction

    def __getitem__(self, name: str) -> Instruction:
        return self._by_name[name]

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    @property
    def root(self) -> Instruction:
        return next((i for i in reversed(self.instructions) if i.root), self.instructions[-1])

    @property
    def parameters(self) -> list[Instruction]:
        """The parameters by their number."""
        found = [i for i in self.instructions if i.opcode == "parameter"]
        return sorted(found, key=lambda i: int(i.text.split(")", 1)[0] or 0))

    def users(self, name: str) -> list[Instruction]:
        return [i for i in self.instructions if name in i.operands]


@dataclass(frozen=True)
class Module:
    """A compiled program: all its computations by name, and the one that runs first."""

    computations: dict[str, Computation]
    entry: Computation


def parse(text: str) -> Module:
    """Parses the text of a compiled program.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry = current = None
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            current = computations.setdefault(header[2], Computation(header[2]))
            entry = current if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (start := _START.match(line)):
            current.add(_instruction(line[start.end() :], start[2], bool(start[1])))
    if entry is None:
        raise ValueError("the text has no entry computation; it is not that of a compiled program")
    return Module(computations, entry)


def _instruction(rest: str, name: str, root: bool) -> Instruction:
    rest = re.sub(r"/\*.*?\*/", "", rest)
    shape_end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:shape_end], rest[shape_end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    opcode, inside, attributes = rest[:opening], rest[opening + 1 : closing], rest[closing + 1 :]
    operands = tuple(word.split()[-1].lstrip("%") for word in _split(inside) if word.strip())
    if opcode == "parameter":
        attributes = inside + ")" + attributes
    return Instruction(name, opcode, parse_arrays(shape), operands, attributes, root)


def _split(text: str) -> list[str]:
    """Cuts at the commas that are outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _closing(text: str, start: int) -> int:
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    raise ValueError(f"unbalanced parentheses: {text[start : start + 80]}")


def parse_arrays(text: str) -> tuple[Array, ...]:
    """The arrays of a shape: one, or those of a tuple. Tokens and other things without elements are left out."""
    found = []
    for dtype, sizes, layout in _ARRAY.findall(text):
        if dtype not in _BITS:
            continue
        shape = tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size)
        memory = re.search(r"S\((\d+)\)", layout)
        found.append(Array(dtype, shape, _bytes(dtype, shape, layout), int(memory[1]) if memory else 0))
    return tuple(found)


def _bytes(dtype: str, shape: tuple[int, ...], layout: str) -> int:
    order, _, tiling = layout.partition(":")
    tile = re.search(r"T\(([\d,]+)\)", tiling)
    sizes = list(shape)
    if tile and shape and order:
        sizes = [shape[int(axis)] for axis in reversed(order.split(","))]  # from the slowest to the fastest
        tiles = [int(size) for size in tile[1].split(",")][-len(sizes) :]
        for i, size in enumerate(tiles, start=len(sizes) - len(tiles)):
            sizes[i] = -(-sizes[i] // size) * size
    return -(-math.prod(sizes) * _BITS[dtype] // 8)
