"""Reads PyTorch checkpoints (`.pth`, `.pt`, `.bin`) without PyTorch, as data.

`torch.save` writes a zip archive: a pickle, `data.pkl`, that describes tensors, and one uncompressed member with the
numbers of each storage. A pickle is a program for a small machine that may call any importable function and set any
attribute, so Python's unpickler is not used. Its opcodes are followed here, and give tensors, plain containers,
numbers, and a placeholder for a few classes whose content is not needed. Any other name ends the reading; nothing is
called.
"""

from __future__ import annotations

import collections
import enum
import math
import pickletools
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from jaxvit.errors import UsageError, first_line
from jaxvit.files import check_regular
from jaxvit.shown import terminal

MAGIC = b"PK\x03\x04"
LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # the pickled number of files before PyTorch 1.6
_MOST_PICKLE = 1 << 26  # bytes; the descriptions of 100,000 tensors take some 20 MB
_MOST_SIDES = 64  # entries of a torch.Size
_MOST_PAIRS = 1 << 18  # pairs of all calls of OrderedDict; a pickle can name one list of pairs again and again

_STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}


class Ignored:
    """Stands for an object whose content is not needed, such as the options a training was started with."""

    def __repr__(self) -> str:
        return "<ignored>"


class _Storage(NamedTuple):
    dtype: np.dtype
    key: str
    numel: int


class _Forbidden(Exception):
    """The pickle names something that is neither a tensor nor a plain container."""


class _Known(enum.Enum):
    """The kinds of objects, besides types of storages, that a pickle may name, by the result of calling them."""

    TENSOR = enum.auto()
    PARAMETER = enum.auto()  # its first argument, a tensor
    TUPLE = enum.auto()
    DICT = enum.auto()
    IGNORED = enum.auto()


_NAMES: dict[tuple[str, str], _Known | np.dtype] = {
    ("collections", "OrderedDict"): _Known.DICT,
    ("torch", "Size"): _Known.TUPLE,
    ("torch._utils", "_rebuild_tensor_v2"): _Known.TENSOR,
    ("torch._utils", "_rebuild_parameter"): _Known.PARAMETER,
    ("torch.nn.parameter", "Parameter"): _Known.PARAMETER,
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
    # Objects that training scripts store next to the weights.
    **dict.fromkeys(
        [
            ("argparse", "Namespace"),
            ("collections", "Counter"),
            ("collections", "defaultdict"),
            ("torch", "device"),
            ("torch", "float32"),
            ("torch", "float16"),
            ("torch", "bfloat16"),
            ("torch", "int64"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "scalar"),
            ("numpy._core.multiarray", "scalar"),
            ("_codecs", "encode"),
            ("pathlib", "PosixPath"),
            ("datetime", "datetime"),
        ],
        _Known.IGNORED,
    ),
}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Reader:
    """Follows a pickle's opcodes, as Python's unpickler does, but sets no attribute and calls nothing of the file's.

    Python's own calls `__setstate__` of whatever lies on its stack, such as a NumPy dtype that the process shares, and
    makes as much room for its memo as the file says.
    """

    def __init__(self, archive: _Archive):
        self._archive = archive
        self._stack: list = []
        self._marks: list[list] = []
        self._memo: dict[object, object] = {}  # keys are the numbers that the pickle names
        self._pairs = 0

    def read(self, data: bytes) -> object:
        for opcode, value, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return self._stack.pop()
            self._step(opcode.name, value)
        raise ValueError("its pickle has no end")

    def _step(self, opcode: str, value: object) -> None:
        stack = self._stack
        match opcode:
            case "PROTO" | "FRAME":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[value] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self._memo[value])
            case "MARK":
                self._marks.append(stack)
                self._stack = []
            case "POP":
                stack.pop()
            case "DUP":
                stack.append(stack[-1])
            case "POP_MARK":
                self._since_mark()
            case "EMPTY_TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = _TUPLES[opcode]
                stack.append(tuple(stack.pop() for _ in range(count))[::-1])
            case "TUPLE":
                items = self._since_mark()
                self._stack.append(tuple(items))
            case "EMPTY_LIST":
                stack.append([])
            case "LIST":
                items = self._since_mark()
                self._stack.append(items)
            case "APPEND":
                _extend(stack[-2], [stack.pop()])
            case "APPENDS":
                items = self._since_mark()
                _extend(self._stack[-1], items)
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                items = self._since_mark()
                self._stack.append({})
                _set(self._stack[-1], items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set(stack[-1], [key, value])
            case "SETITEMS":
                items = self._since_mark()
                _set(self._stack[-1], items)
            case "EMPTY_SET":
                stack.append(Ignored())
            case "ADDITEMS":
                self._since_mark()
            case "FROZENSET":
                self._since_mark()
                self._stack.append(Ignored())
            case "GLOBAL":
                module, _, name = str(value).partition(" ")
                stack.append(_named(module, name))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_named(module, name))
            case "INST":
                module, _, name = str(value).partition(" ")
                called, arguments = _named(module, name), self._since_mark()
                self._stack.append(self._call(called, tuple(arguments)))
            case "OBJ":
                called, *arguments = self._since_mark()
                self._stack.append(self._call(called, tuple(arguments)))
            case "REDUCE" | "NEWOBJ":
                arguments, called = stack.pop(), stack.pop()
                stack.append(self._call(called, arguments))
            case "NEWOBJ_EX":
                _, arguments, called = stack.pop(), stack.pop(), stack.pop()
                stack.append(self._call(called, arguments))
            case "BUILD":  # attributes, which nothing here has
                stack.pop()
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case _ if isinstance(value, (bool, int, float, str, bytes, bytearray)) and opcode not in _UNKNOWN:
                stack.append(value)
            case _:
                raise ValueError(f"its pickle has {opcode}")

    def _since_mark(self) -> list:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _call(self, called: object, arguments: object) -> object:
        if not isinstance(arguments, tuple):
            raise ValueError("a call without arguments")
        match called:
            case _Known.TENSOR:
                return self._archive.view(*arguments[:4])  # then: requires_grad, hooks, metadata
            case _Known.PARAMETER:
                return arguments[0]
            case _Known.TUPLE if not arguments or isinstance(arguments[0], (tuple, list)):
                if arguments and len(arguments[0]) > _MOST_SIDES:
                    raise ValueError("a torch.Size of too many sides")
                return tuple(*arguments[:1])
            case _Known.DICT if not arguments or isinstance(arguments[0], (tuple, list)):
                self._pairs += len(arguments[0]) if arguments else 0
                if self._pairs > _MOST_PAIRS:
                    raise ValueError("too many pairs of dicts")
                found = collections.OrderedDict()
                for pair in arguments[0] if arguments else ():
                    _set(found, pair)
                return found
            case _Known.IGNORED:
                return Ignored()
        raise ValueError("a call of what cannot be called")


_UNKNOWN = ("PERSID", "EXT1", "EXT2", "EXT4")


def _named(module: object, name: object) -> _Known | np.dtype:
    if not (isinstance(module, str) and isinstance(name, str)):
        raise ValueError("a name that is not text")
    if (found := _NAMES.get((module, name))) is not None:
        return found
    raise _Forbidden(terminal(f"{module:.100}.{name:.100}"))


def _extend(into: object, items: list) -> None:
    if isinstance(into, list):
        into.extend(items)
    elif not isinstance(into, Ignored):
        raise ValueError("items of what is no list")


def _set(into: object, items: Sequence) -> None:
    """Sets items of a dict. Only plain keys are kept: to hash a tuple of tuples can take forever."""
    if isinstance(into, dict) and isinstance(items, (list, tuple)) and len(items) % 2 == 0:
        into.update((key, value) for key, value in zip(items[::2], items[1::2], strict=True) if type(key) in (str, int))
    elif not isinstance(into, Ignored):
        raise ValueError("items of what is no dict")


def _storage(reference: object) -> _Storage:
    if not (isinstance(reference, tuple) and len(reference) == 5 and type(reference[0]) is str):
        raise ValueError("a reference to an unknown object")
    kind, dtype, key, _, numel = reference
    if kind != "storage":
        raise ValueError("a reference to an unknown object")
    if not (isinstance(dtype, np.dtype) and isinstance(key, str) and type(numel) is int and numel >= 0):
        raise ValueError("a storage of an unknown kind")
    return _Storage(dtype, key, numel)


class _Archive:
    """The zip archive: its pickle, and its storages, each read once."""

    def __init__(self, path: Path):
        self._zip = zipfile.ZipFile(path)
        self._members = {info.filename: info for info in self._zip.infolist()}
        pickles = [name for name in self._members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("a zip archive without the data.pkl of PyTorch")
        self._folder = pickles[0].split("/")[0]
        if any(name.startswith(f"{self._folder}/code/") for name in self._members):
            raise ValueError("TorchScript, which is a program; its weights are what `model.state_dict()` gives")
        order = self._read("byteorder", 16) if f"{self._folder}/byteorder" in self._members else b"little"
        if order not in (b"little", b"big"):
            raise ValueError("an unknown byte order")
        self._order = "<" if order == b"little" else ">"
        self._storages: dict[str, np.ndarray] = {}
        # Big-endian arrays, converted once: many tensors can share a storage, and name parts of it.
        self._swapped: dict[tuple[str, np.dtype], np.ndarray] = {}

    def _read(self, name: str, most: int) -> bytes:
        info = self._members.get(f"{self._folder}/{name}")
        if info is None:
            raise ValueError(f"{name} is missing")
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed, which PyTorch's are not")
        if info.file_size > most:
            raise ValueError(f"{name} has {info.file_size:,} bytes, where at most {most:,} belong")
        return self._zip.read(info)

    def load(self) -> object:
        try:
            return _Reader(self).read(self._read("data.pkl", _MOST_PICKLE))
        finally:
            self._zip.close()

    def view(self, storage: object, offset: object, size: object, stride: object) -> np.ndarray:
        """A tensor of a storage; every number it is described by is checked against the storage's length."""
        if not isinstance(storage, _Storage):
            raise ValueError("a tensor without a storage")
        sizes, strides, (start,) = _counts(size), _counts(stride), _counts((offset,))
        if len(sizes) != len(strides) or len(sizes) > 8:
            raise ValueError("a tensor with an impossible shape")
        flat = self._storage(storage)
        if not math.prod(sizes):
            return np.zeros(sizes, storage.dtype)
        last = start + sum((length - 1) * step for length, step in zip(sizes, strides, strict=True))
        if math.prod(sizes) > storage.numel or last >= storage.numel:
            raise ValueError("a tensor that reaches beyond its storage")
        return np.lib.stride_tricks.as_strided(
            flat[start:], sizes, [step * flat.itemsize for step in strides], writeable=False
        )

    def _storage(self, storage: _Storage) -> np.ndarray:
        expected = storage.numel * storage.dtype.itemsize
        if storage.key not in self._storages:
            data = self._read(f"data/{storage.key}", expected)
            self._storages[storage.key] = np.frombuffer(data, np.uint8)
        raw = self._storages[storage.key]
        if raw.nbytes < expected:
            raise ValueError(f"data/{storage.key} has {raw.nbytes:,} bytes, where {expected:,} belong")
        if self._order == "<":
            return raw[:expected].view(storage.dtype)
        own = storage.key, storage.dtype
        if own not in self._swapped:
            size = storage.dtype.itemsize
            swapped = raw[: raw.nbytes // size * size].reshape(-1, size)[:, ::-1]
            self._swapped[own] = np.ascontiguousarray(swapped).reshape(-1).view(storage.dtype)
        return self._swapped[own][: storage.numel]


def _counts(numbers: object) -> tuple[int, ...]:
    if not isinstance(numbers, tuple) or any(type(n) is not int or not 0 <= n < 1 << 48 for n in numbers):
        raise ValueError("a tensor with an impossible shape")
    return numbers


def read_torch(path: Path) -> object:
    """Reads what `torch.save` wrote: nested dicts and lists with NumPy arrays for tensors.

    Args:
      path: a zip archive as PyTorch 1.6 and later write it.

    Returns:
      The object, where `Ignored` stands for options, devices and the like. Arrays are read-only; bfloat16 arrays have
      the dtype of `ml_dtypes`.

    Raises:
      UsageError: the file is not such an archive, is damaged, or names anything but tensors and plain containers.

    Example:
      >>> read_torch(Path("cct_7_3x1_32.pth"))["classifier.fc.weight"].shape  # doctest: +SKIP
      (10, 256)
    """
    try:
        check_regular(path)
        with open(path, "rb") as file:
            start = file.read(len(LEGACY))
        if start == LEGACY:
            raise UsageError(
                f"{path} is in PyTorch's format from before version 1.6, which only PyTorch reads; rewrite it with: "
                f"python -c \"import torch; torch.save(torch.load('OLD.pth', weights_only=True), 'NEW.pth')\""
            )
        return _Archive(path).load()
    except UsageError:
        raise
    except _Forbidden as error:
        raise UsageError(
            f"{path} is refused: it names {error}, and only tensors and plain containers are read. If you trust it, "
            "save `model.state_dict()` of it with PyTorch"
        ) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror or first_line(error)}); check the path") from None
    except Exception as error:  # zipfile and pickle raise nearly anything on damaged files
        raise UsageError(f"{path} cannot be read ({first_line(error)[:200]}); download it again") from None
