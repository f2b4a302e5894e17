"""Reads a file of weights into {name: array}, whatever format it has: PyTorch, safetensors or NumPy."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors

from jaxvit.errors import UsageError, first_line
from jaxvit.files import check_regular, read_json
from jaxvit.shown import terminal
from jaxvit.weights import torch_file

INDEX = ".index.json"  # ends the name of a list of the files that weights are spread over
_NESTED = ("model", "state_dict", "model_ema", "state_dict_ema", "ema", "params", "net", "module")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_MOST_RATIO = 200  # how many times its own size an .npz may unfold to
_BESIDE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")  # names of files that an index may list
_MOST_HEADER = 100 << 20  # bytes of a safetensors header


def read_arrays(path: Path, part: str = "") -> dict[str, np.ndarray]:
    """Reads the weights in a file.

    Args:
      path: a PyTorch zip archive, a safetensors file, an `.npz`, or an index (`model.safetensors.index.json`) of
        several such files beside it. The format is told by the content, not by the name.
      part: which entry of a PyTorch checkpoint holds the weights, 'model_ema' for example; '' takes 'model', else
        'state_dict', else the first that does.

    Returns:
      {name: array}, with the prefixes `module.` and `_orig_mod.` that wrappers add taken off. Arrays keep their dtype.

    Raises:
      UsageError: the file is missing, damaged, of another format, or holds no arrays; or has no such part.
    """
    if path.name.endswith(INDEX):
        return _read_index(path, part)
    kind = _kind(path)
    if kind == "safetensors":
        arrays = _read_safetensors(path)
    elif kind == "npz":
        arrays = _read_npz(path)
    else:
        arrays = state_dict(torch_file.read_torch(path), path, part)
    if part and kind != "torch":
        raise UsageError(f"{path} has no parts: leave {part!r} out")
    if not arrays:
        raise UsageError(f"{path} holds no arrays; take the file with the model's weights")
    return without_prefix(arrays)


def _kind(path: Path) -> str:
    """'torch', 'npz' or 'safetensors', by a file's first bytes.

    Raises:
      UsageError: the file has another format; the message names it.
    """
    try:
        size = check_regular(path).st_size
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror or first_line(error)}); check the path") from None
    if not size:
        raise UsageError(f"{path} is empty, as after a download that failed; download it again")
    if start.startswith(b"version https://git-lfs"):
        raise UsageError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull` where it came from")
    if start.startswith(torch_file.LEGACY):
        return "torch"
    if start.startswith(torch_file.MAGIC):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)[:200]}"
            raise UsageError(f"{path} is a damaged or truncated archive ({reason}); download it again") from None
        return "npz" if names and all(name.endswith(".npy") for name in names) else "torch"
    if len(start) > 8 and start[8:9] == b"{":
        if 8 + int.from_bytes(start[:8], "little") > size:
            raise UsageError(f"{path} is a truncated safetensors file; download it again")
        return "safetensors"
    if start.lstrip()[:1] == b"<":
        raise UsageError(f"{path} is a web page, not weights; download the file that the page links to")
    if start[:1] == b"\x80":
        raise UsageError(
            f"{path} is a bare pickle, which is a program, not data; save the weights as .npz or safetensors"
        )
    raise UsageError(
        f"{path} is not a file of weights: known are PyTorch zip archives (.pth), .safetensors, .npz and *{INDEX}"
    )


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as file:
            if int.from_bytes(file.read(8), "little") > _MOST_HEADER:
                raise ValueError("its header is too long")
        with safetensors.safe_open(path, framework="numpy") as stored:
            found = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118, no mapping
    except AttributeError as error:  # NumPy has no such type
        kind = first_line(error).rpartition("attribute ")[2].strip("'")
        raise UsageError(f"{path} holds numbers of a kind that is not read here ({kind}); save it as float32") from None
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)[:200]}"
        raise UsageError(f"{path} cannot be read ({reason}); download it again") from None
    return _real(found)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
            if size > _MOST_RATIO * max(path.stat().st_size, 1 << 16):
                raise ValueError(f"it unfolds to {size:,} bytes")
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)[:200]}"
        raise UsageError(f"{path} cannot be read ({reason}); download it again") from None
    arrays = {name: _bfloat16(array) for name, array in arrays.items()}
    return _real(arrays)


def _real(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of real numbers, and of bools; the others, such as text and complex numbers, are no weights."""
    return {name: array for name, array in arrays.items() if array.dtype.kind in "biuf" or _is_bfloat16(array)}


def _bfloat16(array: np.ndarray) -> np.ndarray:
    """NumPy stores bfloat16 as two bytes without a type."""
    return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array


def _is_bfloat16(array: np.ndarray) -> bool:
    return array.dtype == ml_dtypes.bfloat16


def index_files(path: Path) -> list[str]:
    """The names of the files that an index lists, each of a file beside it.

    Raises:
      UsageError: it cannot be read, is no index, or names something else.
    """
    found = read_json(path, "download it again")
    table = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise UsageError(f"{path} is not an index of weights: it has no weight_map")
    for name in table.values():
        if not _BESIDE.fullmatch(name) or name.endswith(INDEX):
            raise UsageError(f"{path} names {json.dumps(name)}, which is not a file beside it")
    return sorted(set(table.values()))


def _read_index(path: Path, part: str) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for name in index_files(path):
        file = path.with_name(name)
        if not file.exists():
            raise UsageError(f"{file} is missing, which {path.name} names; download it to the same folder")
        arrays |= read_arrays(file, part)
    return arrays


def state_dict(tree: object, path: Path, part: str = "") -> dict[str, np.ndarray]:
    """Finds the weights in what a PyTorch file holds; see `read_arrays`."""
    if part:
        if not (isinstance(tree, Mapping) and part in tree):
            parts = [terminal(key) for key in tree] if isinstance(tree, Mapping) else []
            raise UsageError(f"{path} has no part {part!r}; it has {', '.join(parts[:8]) or 'none'}")
        tree = tree[part]
    for _ in range(4):  # {'state_dict': {'model': ...}}
        if not isinstance(tree, Mapping):
            break
        arrays = {
            name: value for name, value in tree.items() if isinstance(name, str) and isinstance(value, np.ndarray)
        }
        nested = [key for key in _NESTED if isinstance(tree.get(key), Mapping)]
        if not nested or len(arrays) > len(tree) // 2:
            return arrays
        tree = tree[nested[0]]
    raise UsageError(f"{path} holds no named tensors; save `model.state_dict()`")


def hash_of(arrays: Mapping[str, np.ndarray]) -> str:
    """16 hex digits of the SHA-256 of all names, dtypes, shapes and values; the order does not matter.

    Example:
      >>> one, two = np.zeros(2), np.ones(3)
      >>> hash_of({"a": one, "b": two}) == hash_of({"b": two, "a": one}) != hash_of({"a": one})
      True
    """
    total = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        array = np.ascontiguousarray(array)
        total.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()[:16]


def without_prefix(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Takes off the prefixes that DataParallel, `torch.compile` and wrappers put before every name."""
    found = dict(arrays)
    while prefix := next((p for p in _PREFIXES if found and all(name.startswith(p) for name in found)), ""):
        found = {name.removeprefix(prefix): array for name, array in found.items()}
    return found
