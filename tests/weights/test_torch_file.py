"""PyTorch files are read as data: the right ones whole, the hostile ones not at all."""

import collections
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from jaxvit.errors import UsageError
from jaxvit.weights.torch_file import Ignored, read_torch
from tests.weights.torch_files import Storage, Tensor, save


def test_arrays_of_every_dtype_come_back(tmp_path):
    tree = {
        dtype.name: np.arange(-3, 3).reshape(2, 3).astype(dtype)
        for dtype in map(np.dtype, [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int64])
    }
    tree["scalar"], tree["none"] = np.array(1.5, np.float32), np.zeros((0, 4), np.float32)
    for order in ("little", "big"):
        found = read_torch(save(tmp_path / "a.pth", {"model": collections.OrderedDict(tree), "epoch": 3}, order=order))
        assert found["epoch"] == 3 and list(found["model"]) == list(tree)
        for name, array in tree.items():
            assert found["model"][name].dtype == array.dtype and np.array_equal(found["model"][name], array)


def test_views_share_a_storage(tmp_path):
    storage = Storage(np.arange(12, dtype=np.float32), "0")
    path = save(tmp_path / "a.pth", {"t": Tensor(storage, 0, (4, 3), (1, 4)), "row": Tensor(storage, 4, (4,), (1,))})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", storage.array.tobytes())
    found = read_torch(path)
    assert np.array_equal(found["t"], np.arange(12).reshape(3, 4).T) and np.array_equal(found["row"], [4, 5, 6, 7])
    with pytest.raises(ValueError, match="read-only"):
        found["row"][0] = 1


@pytest.mark.parametrize(
    "tensor",
    [
        (0, (13,), (1,)),
        (1, (12,), (1,)),
        (0, (2, 2), (1, 11)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (1 << 40,), (0,)),
        (0, (100, 100), (0, 0)),
        (0, (1 << 60, 1 << 60), (1, 1)),
        (0, (2, 2), (1,)),
        (0, (1,) * 9, (1,) * 9),
        (0, (2.0,), (1,)),
        (0, (True,), (1,)),
        ("0", (2,), (1,)),
    ],
)
def test_a_tensor_stays_in_its_storage(tmp_path, tensor):
    storage = Storage(np.arange(12, dtype=np.float32), "0")
    path = save(tmp_path / "a.pth", {"t": Tensor(storage, *tensor)}, extra=[("data/0", storage.array.tobytes())])
    with pytest.raises(UsageError, match=r"a\.pth cannot be read \(a tensor"):
        read_torch(path)


def named(module, name, arguments=b"(", opcode=b"R"):
    """A pickle that calls module.name."""
    return b"\x80\x02c" + module.encode() + b"\n" + name.encode() + b"\n" + arguments + b"t" + opcode + b"."


HOSTILE = {
    "system": named("os", "system", b"(X" + struct.pack("<I", 9) + b"touch /oh"),
    "posix": named("posix", "system", b"(X" + struct.pack("<I", 9) + b"touch /oh"),
    "eval": named("builtins", "eval", b"(X" + struct.pack("<I", 4) + b"1+1."),
    "old builtins": named("__builtin__", "exec", b"("),
    "getattr": named("builtins", "getattr", b"("),
    "partial": named("functools", "partial", b"("),
    "import": named("importlib", "import_module", b"("),
    "popen": named("subprocess", "Popen", b"("),
    "hub": named("torch.hub", "load", b"("),
    "torch load": named("torch", "load", b"("),
    "nested name": named("torch._utils", "_rebuild_tensor_v2.__globals__", b"("),
    "numpy load": named("numpy", "load", b"("),
    "ours": named("jaxvit.own_code", "load", b"("),
    "type": named("builtins", "type", b"("),
    "whole module": named("timm.models.vision_transformer", "VisionTransformer", b"("),
    "instance opcode": b"(X\x01\x00\x00\x00aios\nsystem\n.",
    "object opcode": b"(cos\nsystem\nX\x01\x00\x00\x00ao.",
    "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01a\x85R.",
    "new object": b"\x80\x02cos\n_wrap_close\n)\x81.",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_is_refused_before_anything_is_called(tmp_path, kind):
    path = save(tmp_path / "a.pth", {}, pickled=HOSTILE[kind])
    with pytest.raises(UsageError, match=r"a\.pth is refused: it names \S+, and only") as caught:
        read_torch(path)
    assert "\n" not in str(caught.value)


BROKEN = {
    "extension registry": b"\x80\x02\x82\x01.",
    "a reference to no storage": b"\x80\x02X\x01\x00\x00\x00aQ.",
    "a tensor without storage": named("torch._utils", "_rebuild_tensor_v2", b"(NK\x00)N"),
    "cut": b"\x80\x02}q\x00X\x10\x00\x00\x00ab",
    "a length beyond the file": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"a.",
    "nothing": b"",
    "no pickle": b"hello",
    "a call of a type": named("torch", "FloatStorage"),
    "a call of what was read": b"\x80\x02K\x01)R.",
    "a name that is not text": b"\x80\x04K\x01K\x02\x93.",
    "nothing in the memo": b"\x80\x02h\x07.",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_pickle_is_one_line(tmp_path, kind):
    with pytest.raises(UsageError, match=r"a\.pth cannot be read \(.*download it again") as caught:
        read_torch(save(tmp_path / "a.pth", {}, pickled=BROKEN[kind]))
    assert "\n" not in str(caught.value)


def test_nothing_of_the_process_is_changed(tmp_path):
    state = b"(K\x03X\x01\x00\x00\x00|NNNK@K\x01K\x00t"  # of a dtype, whose items become 64 bytes long
    for kind in ("BFloat16Storage", "FloatStorage"):
        read_torch(save(tmp_path / "a.pth", {}, pickled=b"\x80\x02ctorch\n" + kind.encode() + b"\n" + state + b"b."))
    assert np.dtype(ml_dtypes.bfloat16).itemsize == 2 and np.dtype(np.float32).itemsize == 4


BOMBS = {
    "the memo's length": b"\x80\x02}r\xff\xff\xff\x7f.",
    "keys that take forever to hash": b"\x80\x02}N" + b"q\x00h\x00\x86" * 60 + b"Ns.",
    "a key that takes forever to write": b"\x80\x04}(N\x91" + b"q\x000(h\x00h\x00\x85\x91" * 60 + b"Ns.",
    "an unhashable key": b"\x80\x02}]Ns.",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_small_pickle_takes_little(tmp_path, kind):
    assert read_torch(save(tmp_path / "a.pth", {}, pickled=BOMBS[kind])) == {}


def again_and_again(name, item, count):
    """A pickle that gives one list of `count` items to a call, a thousand times, and keeps all results."""
    return b"\x80\x02](" + item * count + b"eq\x00c" + name + b"\nq\x01(" + b"h\x01h\x00\x85R" * 1000 + b"l."


@pytest.mark.parametrize(
    ("pickled", "says"),
    [
        (again_and_again(b"torch\nSize", b"N", 100), "a torch.Size of too many sides"),
        (again_and_again(b"collections\nOrderedDict", b"NN\x86", 5000), "too many pairs of dicts"),
    ],
)
def test_a_list_that_is_copied_again_and_again_is_refused(tmp_path, pickled, says):
    with pytest.raises(UsageError, match=says):
        read_torch(save(tmp_path / "a.pth", {}, pickled=pickled))


def test_parts_of_a_big_endian_storage_are_converted_once(tmp_path):
    array = np.arange(12, dtype=np.float32)
    whole, part = Storage(array, "0"), Storage(array[:5], "0")
    tree = {"a": Tensor(whole, 0, (12,), (1,)), "b": Tensor(part, 0, (5,), (1,))}
    found = read_torch(save(tmp_path / "a.pth", tree, order="big", extra=[("data/0", array.astype(">f4").tobytes())]))
    assert found["a"].tolist() == array.tolist() and found["b"].tolist() == [0, 1, 2, 3, 4]
    assert np.shares_memory(found["a"], found["b"])


def test_tensors_of_a_big_endian_storage_share_it(tmp_path):
    storage = Storage(np.arange(12, dtype=np.float32), "0")
    tree = {"a": Tensor(storage, 0, (4,), (1,)), "b": Tensor(storage, 2, (4,), (1,))}
    extra = [("data/0", storage.array.astype(">f4").tobytes())]
    found = read_torch(save(tmp_path / "a.pth", tree, order="big", extra=extra))
    assert found["b"].tolist() == [2, 3, 4, 5] and np.shares_memory(found["a"], found["b"])


def test_names_are_shown_as_text(tmp_path):
    with pytest.raises(UsageError, match=r"it names a\\x1b\[2J\.b, and"):
        read_torch(save(tmp_path / "a.pth", {}, pickled=named("a\x1b[2J", "b")))


def test_other_archives_are_named(tmp_path):
    tree = {"w": np.zeros((3,), np.float32)}
    script = save(tmp_path / "script.pt", tree, extra=[("code/model.py", "")])
    with pytest.raises(UsageError, match="TorchScript"):
        read_torch(script)
    with pytest.raises(UsageError, match="compressed"):
        read_torch(save(tmp_path / "bomb.pth", tree, compression=zipfile.ZIP_DEFLATED))
    whole = save(tmp_path / "whole.pth", {"w": np.zeros((3000,), np.float32)}).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match="download it again"):
        read_torch(tmp_path / "cut.pth")
    legacy = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
    (tmp_path / "old.pth").write_bytes(legacy + b"more")
    with pytest.raises(UsageError, match=r"before version 1\.6.*torch\.save"):
        read_torch(tmp_path / "old.pth")
    with pytest.raises(UsageError, match="check the path"):
        read_torch(tmp_path / "none.pth")


def test_what_is_kept_beside_the_weights_is_ignored(tmp_path):
    options = b"\x80\x02cargparse\nNamespace\n)\x81}X\x01\x00\x00\x00aK\x01sb."
    assert isinstance(read_torch(save(tmp_path / "a.pth", {}, pickled=options)), Ignored)


def test_files_of_pytorch_itself(tmp_path):
    torch = pytest.importorskip("torch")
    layer = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    tree = {"model": layer.state_dict(), "half": torch.ones(3, dtype=torch.bfloat16), "options": torch.device("cpu")}
    torch.save(tree, tmp_path / "a.pth")
    found = read_torch(tmp_path / "a.pth")
    assert {name: array.tolist() for name, array in found["model"].items()} == {
        name: tensor.tolist() for name, tensor in layer.state_dict().items()
    }
    assert found["half"].dtype == ml_dtypes.bfloat16
    torch.save(layer, tmp_path / "whole.pth")
    with pytest.raises(UsageError, match=r"it names torch\.nn"):
        read_torch(tmp_path / "whole.pth")
    torch.save(tree, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(UsageError, match="before version"):
        read_torch(tmp_path / "old.pth")
