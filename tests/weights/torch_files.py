"""Writes PyTorch's zip format without PyTorch, right and wrong, for tests."""

import collections
import io
import pickle
import sys
import types
import zipfile

import ml_dtypes
import numpy as np

KINDS = {
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
}


class Storage:
    def __init__(self, array, key):
        self.array, self.key = array, key


class Tensor:
    """Reduces to the call that PyTorch writes for a tensor."""

    def __init__(self, storage, offset, size, stride):
        self.parts = storage, offset, size, stride

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, (*self.parts, False, collections.OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            kind = getattr(sys.modules["torch"], KINDS[obj.array.dtype])
            return "storage", kind, obj.key, "cpu", obj.array.size
        return None


def _named(module, name):
    made = type(name, (), {"__module__": module})
    made.__qualname__ = name
    setattr(sys.modules[module], name, made)


def _as_tensors(tree, storages):
    if isinstance(tree, np.ndarray):
        tree = tree.copy(order="C")
        storage = Storage(tree.reshape(-1), str(len(storages)))
        storages.append(storage)
        stride = tuple(step // tree.itemsize for step in tree.strides)
        return Tensor(storage, 0, tree.shape, stride)
    if isinstance(tree, dict):
        return type(tree)((key, _as_tensors(value, storages)) for key, value in tree.items())
    return tree


def save(path, tree, *, pickled=None, compression=zipfile.ZIP_STORED, extra=(), order="little"):
    """Writes a tree of dicts and arrays, or the bytes of a pickle with the storages of the tree."""
    before = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
    try:
        for name in before:
            sys.modules[name] = types.ModuleType(name)
        for kind in KINDS.values():
            _named("torch", kind)
        _named("torch._utils", "_rebuild_tensor_v2")
        storages = []
        tree = _as_tensors(tree, storages)
        stream = io.BytesIO()
        _Pickler(stream, protocol=2).dump(tree)
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", stream.getvalue() if pickled is None else pickled)
        archive.writestr("archive/byteorder", order)
        for storage in storages:
            array = storage.array if order == "little" else storage.array.byteswap()
            archive.writestr(f"archive/data/{storage.key}", array.tobytes())
        for name, data in extra:
            archive.writestr(f"archive/{name}", data)
    return path
