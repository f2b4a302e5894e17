"""Reads PyTorch checkpoints (`.pth`, `.pt`, `.bin`) without PyTorch, as data.

`torch.save` writes a zip archive: a pickle, `data.pkl`, that describes tensors, and one uncompressed member with the
numbers of each storage. A pickle is a program for a small machine that may call any importable function, so it is
read here by an unpickler that knows a fixed list of names: tensors, plain containers, numbers, and a few classes whose
content is ignored. Any other name ends the reading before anything is called.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from jaxvit.errors import UsageError, first_line
from jaxvit.files import check_regular

MAGIC = b"PK\x03\x04"
LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # the pickled number of files before PyTorch 1.6
_MOST_PICKLE = 1 << 28  # bytes; the descriptions of 100,000 tensors take some 20 MB

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

    def __init__(self, *args: object, **kwargs: object) -> None:
        del args, kwargs

    def __setstate__(self, state: object) -> None:
        del state

    def __setitem__(self, key: object, value: object) -> None:
        del key, value

    def append(self, value: object) -> None:
        del value

    def __repr__(self) -> str:
        return "<ignored>"


class _Storage(NamedTuple):
    dtype: np.dtype
    key: str
    numel: int


class _Forbidden(Exception):
    """The pickle names something that is neither a tensor nor a plain container."""


def _tensor(archive: _Archive) -> Callable[..., np.ndarray]:
    def rebuild(storage: object, offset: object, size: object, stride: object, *rest: object) -> np.ndarray:
        del rest  # requires_grad, hooks, metadata
        return archive.view(storage, offset, size, stride)

    return rebuild


def _first(value: object, *rest: object) -> object:
    """A parameter is its tensor."""
    del rest
    return value


def _ordered_dict(*pairs: object) -> collections.OrderedDict:
    return collections.OrderedDict(*pairs)


class _Unpickler(pickle.Unpickler):
    """An unpickler that resolves the names of `_known` and no others."""

    def __init__(self, archive: _Archive, data: bytes):
        super().__init__(io.BytesIO(data))
        self._archive = archive
        self._known: dict[tuple[str, str], object] = {
            ("collections", "OrderedDict"): _ordered_dict,
            ("torch", "Size"): tuple,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor(archive),
            ("torch._utils", "_rebuild_parameter"): _first,
            ("torch.nn.parameter", "Parameter"): _first,
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
                Ignored,
            ),
        }

    def find_class(self, module: str, name: str) -> object:
        try:
            return self._known[module, name]
        except KeyError:
            raise _Forbidden(f"{module}.{name}") from None

    def persistent_load(self, reference: object) -> _Storage:
        if not (isinstance(reference, tuple) and len(reference) == 5 and reference[0] == "storage"):
            raise ValueError("a reference to an unknown object")
        _, dtype, key, _, numel = reference
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
            return _Unpickler(self, self._read("data.pkl", _MOST_PICKLE)).load()
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
        swapped = raw[:expected].reshape(-1, storage.dtype.itemsize)[:, ::-1]
        return np.ascontiguousarray(swapped).reshape(-1).view(storage.dtype)


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
