"""`read_arrays` recognises formats by content, and names the format of other files."""

import json
import os
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxvit.errors import UsageError
from jaxvit.weights.arrays import read_arrays
from tests.weights.torch_files import save

WEIGHTS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.bias": np.ones(2, ml_dtypes.bfloat16)}


def same(found, expected=WEIGHTS):
    return list(found) == list(expected) and all(
        found[name].dtype == array.dtype and np.array_equal(found[name], array) for name, array in expected.items()
    )


def test_every_format_by_any_name(tmp_path):
    safetensors.numpy.save_file(WEIGHTS, tmp_path / "safe.npz")
    np.savez(tmp_path / "numpy.npz", **WEIGHTS)
    (tmp_path / "numpy.npz").rename(tmp_path / "numpy.pth")
    save(tmp_path / "torch.safetensors", WEIGHTS)
    assert same(dict(sorted(read_arrays(tmp_path / "safe.npz").items(), reverse=True)))
    assert same(read_arrays(tmp_path / "numpy.pth"))
    assert same(read_arrays(tmp_path / "torch.safetensors"))


@pytest.mark.parametrize("nest", [("model",), ("state_dict",), ("state_dict", "model"), ("module",), ()])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_nesting_and_prefixes(tmp_path, nest, prefix):
    tree = {prefix + name: array for name, array in WEIGHTS.items()}
    for key in reversed(nest):
        tree = {key: tree, "epoch": 3, "optimizer": {"state": {}}}
    assert same(read_arrays(save(tmp_path / "a.pth", tree)))


def test_a_part_by_name(tmp_path):
    averaged = {name: array * 2 for name, array in WEIGHTS.items()}
    path = save(tmp_path / "a.pth", {"model_ema": averaged, "model": WEIGHTS})
    assert same(read_arrays(path)) and same(read_arrays(path, "model_ema"), averaged)
    with pytest.raises(UsageError, match="no part 'ema'; it has model_ema, model"):
        read_arrays(path, "ema")
    with pytest.raises(UsageError, match="holds no named tensors"):
        read_arrays(save(tmp_path / "list.pth", [1, 2]))


def test_an_index_of_files(tmp_path):
    names = {"a.weight": "one.safetensors", "a.bias": "two.safetensors"}
    for name, file in names.items():
        safetensors.numpy.save_file({name: WEIGHTS[name]}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert same(read_arrays(index))
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(UsageError, match=r"two\.safetensors is missing, which model\.safetensors\.index\.json names"):
        read_arrays(index)
    for name in ("", "..", ".hidden", "x" * 300, "x\0y", "x\ud800", "a\x1b[2J"):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(UsageError, match="not a file beside it"):
            read_arrays(index)
    for bad in ({"weight_map": {"a": "../x"}}, {"weight_map": {"a": 3}}, [], {"weight_map": {"a": index.name}}):
        index.write_text(json.dumps(bad))
        with pytest.raises(UsageError, match="index"):
            read_arrays(index)


def _truncated(path):
    safetensors.numpy.save_file(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:60])


def _cut_npz(path):
    np.savez(path, **WEIGHTS)
    path.write_bytes(path.read_bytes()[:-200])


def _objects(path):
    np.savez(path, a=np.array([{}], dtype=object))


def _bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(100 << 20))


def _many_bombs(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        for index in range(8):
            archive.writestr(f"{index}.npy", bytes(4 << 20))


def _no_bytes(path):
    header = b"{'descr':'|S0','fortran_order':False,'shape':(1000000000000,)}\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


def _eight_bits(path):
    header = b'{"a":{"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))


BAD = {
    "safetensors of 8 bits": (_eight_bits, r"of a kind that is not read here \(float8_e4m3fn\); save it as float32"),
    "safetensors of complex numbers": (
        lambda path: safetensors.numpy.save_file({"a": np.zeros(2, np.complex64)}, path),
        "holds no arrays",
    ),
    "npz of many that unfold": (_many_bombs, "unfolds to"),
    "npz of 10^12 empty strings": (_no_bytes, "holds no arrays"),
    "npz of records": (lambda path: np.savez(path, a=np.zeros(1, "f4,f4")), "holds no arrays"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "Git LFS": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid"), "git lfs pull"),
    "a page": (lambda path: path.write_text("\n<!DOCTYPE html><html>"), "web page"),
    "a pickle": (lambda path: path.write_bytes(b"\x80\x04}."), "bare pickle"),
    "text": (lambda path: path.write_text("hello"), "not a file of weights"),
    "truncated safetensors": (_truncated, "truncated|cannot be read"),
    "truncated npz": (_cut_npz, "damaged or truncated"),
    "npz of objects": (_objects, "cannot be read"),
    "npz that unfolds": (_bomb, "unfolds to"),
    "a folder": (lambda path: path.mkdir(), "directory"),
    "a pipe": (os.mkfifo, "named pipe"),
    "missing": (lambda path: None, "check the path"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_such_file_is_named(tmp_path, kind):
    make, words = BAD[kind]
    path = tmp_path / "a.npz"
    make(path)
    with pytest.raises(UsageError, match=words) as caught:
        read_arrays(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
