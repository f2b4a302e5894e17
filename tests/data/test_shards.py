"""Tar and Parquet shards give what a folder of the same images gives; wrong and hostile ones are refused in a line."""

import io
import json
import os
import re
import struct
import tarfile

import numpy as np
import pytest
from photos import photos
from PIL import Image
from shards import members, write_parquet, write_tar

from jaxvit.data import shard_index, stored
from jaxvit.data.batches import TrainBatches
from jaxvit.data.cut import Cut
from jaxvit.data.decoding import Limits
from jaxvit.data.parts import StreamedSource
from jaxvit.data.shards import find_shards
from jaxvit.data.sources import located, open_dataset
from jaxvit.errors import RunFailedError, UsageError

NAMES = ["cat", "dog"]


@pytest.fixture
def pets(tmp_path):
    folder = tmp_path / "pets"
    photos(folder / "train", cat=9, dog=7)
    photos(folder / "val", cat=2, dog=3)
    return folder


def tar_of(pets, folder, **how):
    listed = members(pets / "train", **how)
    write_tar(folder / "train-0.tar", listed[:10])
    write_tar(folder / "train-1.tar", listed[10:])
    write_tar(folder / "val-0.tar", members(pets / "val", **how))
    return f"tar:{folder}/*.tar"


def by_name(pets, folder):
    return tar_of(pets, folder)


def by_number_in_json(pets, folder):
    folder.mkdir()
    (folder / "classes.txt").write_text("cat\ndog\n")
    return tar_of(pets, folder, label="json", numbers={"cat": 0, "dog": 1})


def as_hugging_face(pets, folder):
    write_parquet(folder / "data" / "train-00000-of-00001.parquet", pets / "train", names=NAMES)
    write_parquet(folder / "data" / "validation-00000-of-00001.parquet", pets / "val", names=NAMES)
    return f"parquet:{folder}/**/*.parquet"


@pytest.mark.parametrize("layout", [by_name, by_number_in_json, as_hugging_face])
@pytest.mark.parametrize("streamed", [False, True])
def test_shards_are_the_folder_of_the_same_images(pets, tmp_path, monkeypatch, layout, streamed):
    name = layout(pets, tmp_path / "shards")
    if streamed:
        monkeypatch.setattr(stored, "CACHE_BYTES", 10)
    folder, shards = (open_dataset(each, tmp_path / "tfds") for each in (f"image_folder:{pets}", name))
    assert shards.class_names == folder.class_names and shards.split_sizes == folder.split_sizes
    assert shards.image_shape == folder.image_shape and shards.is_grey is False
    for split in ("train[2:9]", "validation"):
        ours, theirs = shards.read(split), folder.read(split)
        assert isinstance(ours, StreamedSource) is streamed and ours.fingerprint == theirs.fingerprint
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        assert [os.path.basename(file) for file in ours.files] == [os.path.basename(file) for file in theirs.files]
        for step in (0, 3):  # any step, as after a resume
            one, other = (TrainBatches(source, 4, seed=1)[step] for source in (ours, theirs))
            assert one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("cut", [Cut(), Cut(folds=3, fold=1)])
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_shards_are_cut_by_content_as_a_folder_is(pets, tmp_path, kind, cut):
    if kind == "tar":
        name = f"tar:{write_tar(tmp_path / 'shards' / 'pets.tar', members(pets / 'train'))}"
    else:
        name = f"parquet:{write_parquet(tmp_path / 'shards' / 'pets.parquet', pets / 'train')}"
    folder, shards = (
        open_dataset(each, tmp_path / "tfds", cut=cut) for each in (f"image_folder:{pets / 'train'}", name)
    )
    assert folder.split_sizes == shards.split_sizes and set(shards.split_sizes) == {"train", "validation", "test"}
    for split in folder.split_sizes:
        np.testing.assert_array_equal(shards.read(split).images, folder.read(split).images)


def test_bytes_without_paths_have_an_order_of_their_own(pets, tmp_path):
    name = f"parquet:{write_parquet(tmp_path / 'pets.parquet', pets / 'train', plain=True)}"
    source = open_dataset(name, tmp_path / "tfds").read("train")
    assert set(source.labels[:8]) == {0, 1} and len({image.tobytes() for image in source.images}) == 16
    assert source.files[0].startswith("pets.parquet/")


@pytest.mark.parametrize(
    ("names", "pattern", "parts"),
    [
        (["train-0.tar", "val-0.tar"], "*.tar", {"train": 1, "validation": 1}),
        (["train/0.tar", "train/1.tar", "test/0.tar"], "*/*.tar", {"train": 2, "test": 1}),
        (["a-train-000.tar", "a-train-001.tar"], "a-train-{000..001}.tar", {"train": 2}),
        (["train-0.tar", "dev-0.tar", "x.tar"], "{train,dev}-*.tar", {"train": 1, "validation": 1}),
        (["a.tar", "b.tar"], "*.tar", {"train": 2}),
        (["a.tar", "test.tar"], "*.tar", {"train": 1, "test": 1}),
        (["deep/er/train-0.tar"], "**/*.tar", {"train": 1}),
        (["we[ir]d/a.tar"], "we[ir]d/a.tar", {"train": 1}),
    ],
)
def test_parts_by_the_names_of_shards(tmp_path, names, pattern, parts):
    for name in names:
        write_tar(tmp_path / name, [])
    found = find_shards(f"{tmp_path}/{pattern}", "--data=x")
    assert {part: len(shards) for part, shards in found.parts.items()} == parts
    assert str(found).startswith(f"{parts[next(iter(parts))]} {next(iter(parts))} (")


def test_shards_of_no_part_are_left_out_and_two_parts_in_a_name_are_refused(tmp_path):
    for name in ("train-0.tar", "extra.tar"):
        write_tar(tmp_path / name, [])
    assert str(find_shards(f"{tmp_path}/*.tar", "x").left_out[0]) == "shards of no part: 1 (extra.tar)"
    write_tar(tmp_path / "train-test-0.tar", [])
    with pytest.raises(UsageError, match=r"train-test-0\.tar tells two parts \(test and train\); rename it"):
        find_shards(f"{tmp_path}/*.tar", "x")
    for pattern, says in (("no-*.tar", "no file matches"), ("{a,b}.tar", r"there is no file .*/a\.tar")):
        with pytest.raises(UsageError, match=says):
            find_shards(f"{tmp_path}/{pattern}", "x")
    with pytest.raises(UsageError, match="braces stand for no number; write the smaller one first"):
        find_shards(f"{tmp_path}/{{5..1}}.tar", "x")
    with pytest.raises(UsageError, match="more than 100,000 names"):
        find_shards(f"{tmp_path}/{{0..999999}}.tar", "x")


PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("listed", "says"),
    [
        (
            [("a.png", PNG), ("a.jpg", b"x"), ("a.cls", b"1")],
            r"t\.tar: the key 'a' has two images, 'a\.png' and 'a\.jpg'",
        ),
        ([("a.png", PNG), ("a.cls", b"1"), ("b.png", PNG), ("a.png", PNG)], r"t\.tar: the key 'a' has two images"),
        ([("a.png", PNG), ("a.cls", b"1"), ("a.cls", b"1")], r"t\.tar: the member 'a\.cls' occurs twice"),
        (
            [("a.png", PNG), ("a.cls", b"1"), ("a.json", b'{"label": 2}')],
            r"the key 'a' has two labels, in a\.cls and a\.json",
        ),
        ([("a.png", PNG)], r"t\.tar: a\.png has no label; each image needs one"),
        ([("a.png", PNG), ("a.json", b"{}")], r"t\.tar: a\.png has no label"),
        ([("a.png", PNG), ("a.cls", b"")], r"t\.tar: the member 'a\.cls': '' is neither a whole number"),
        ([("a.png", PNG), ("a.cls", b"\xff\xfe")], r"t\.tar: the member 'a\.cls' is not text"),
        ([("a.png", PNG), ("a.json", b"{")], r"t\.tar: the member 'a\.json' is not JSON"),
        ([("a.png", PNG), ("a.json", b'{"label": 1.5}')], r"the member 'a\.json': 1\.5 is neither"),
        ([("a.png", PNG), ("a.json", b'{"label": [1]}')], r"the member 'a\.json': \[1\] is neither"),
        ([("a.png", PNG), ("a.json", b'{"label": true}')], r"the member 'a\.json': True is neither"),
        ([("a.png", PNG), ("a.cls", b"x" * 300)], r"the member 'a\.cls': 'xxx"),
        (
            [("a.png", PNG), ("a.cls", b"x" * (2 << 20))],
            r"the member 'a\.cls' has 2,097,152 bytes, too many for a label",
        ),
        (
            [("a.png", PNG), ("a.cls", b"1"), ("b.png", PNG), ("b.cls", b"cat")],
            r"b\.png has the label 'cat', but others",
        ),
        (
            [("x.txt", b"hello")],
            r"hold no images with labels \(left out: files that are not images: 1 \(t\.tar: x\.txt\)\)",
        ),
    ],
)
def test_a_wrong_shard_is_refused_in_one_line_that_names_shard_and_member(tmp_path, listed, says):
    with pytest.raises(UsageError, match=says) as error:
        open_dataset(f"tar:{write_tar(tmp_path / 't.tar', listed)}", tmp_path)
    assert "\n" not in str(error.value)


def test_labels_beyond_the_listed_classes(pets, tmp_path):
    name = tar_of(pets, tmp_path / "shards", numbers={"cat": 0, "dog": 2})
    (tmp_path / "shards" / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(UsageError, match=r"train-1\.tar: dog/0\.png has the label 2, .* 2 listed classes \(cat, dog\)"):
        open_dataset(name, tmp_path)
    (tmp_path / "shards" / "classes.txt").write_text("cat\nfish\ndog\n")
    dataset = open_dataset(name, tmp_path)
    assert dataset.class_names == ("cat", "dog")
    assert "classes without an image: 1 (fish)" in [str(one) for one in dataset.left_out]
    (tmp_path / "shards" / "classes.txt").write_text("cat\ncat\ncat\n")
    with pytest.raises(UsageError, match=r"classes\.txt names a class twice"):
        open_dataset(name, tmp_path)


def test_whole_numbers_without_names_are_sorted_as_numbers(tmp_path):
    pixels = io.BytesIO()
    Image.new("RGB", (8, 8)).save(pixels, "png")
    listed = [
        (f"{i}.{kind}", data)
        for i in (2, 10, 1)
        for kind, data in (("png", pixels.getvalue()), ("cls", f"{i}".encode()))
    ]
    dataset = open_dataset(f"tar:{write_tar(tmp_path / 't.tar', listed)}", tmp_path)
    assert dataset.class_names == ("1", "2", "10") and sorted(dataset.read("train").labels) == [0, 1, 2]


def test_images_without_label_are_left_out_if_asked(pets, tmp_path):
    name = f"tar:{write_tar(tmp_path / 't.tar', [*members(pets / 'train'), ('lone.png', PNG)])}"
    dataset = open_dataset(name, tmp_path, on_error="skip")
    assert dataset.count("train") == 16
    assert [str(one) for one in dataset.left_out] == [f"images without a label: 1 ({tmp_path}/t.tar: lone.png)"]


def test_hidden_files_links_devices_and_sparse_members_are_left_out(pets, tmp_path):
    file = write_tar(tmp_path / "t.tar", [*members(pets / "train"), ("cat/._0.png", b"x"), ("__MACOSX/1.png", b"x")])
    with tarfile.open(file, "a") as archive:
        for kind, name in (
            (tarfile.SYMTYPE, "l.png"),
            (tarfile.LNKTYPE, "h.png"),
            (tarfile.CHRTYPE, "d.png"),
            (tarfile.FIFOTYPE, "f.png"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        sparse = tarfile.TarInfo("s.png")
        sparse.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "s.png",
            "GNU.sparse.realsize": "999999999999",
        }
        data = b"1\n0\n0\n".ljust(512, b"\0")
        sparse.size = len(data)
        archive.addfile(sparse, io.BytesIO(data))
    dataset = open_dataset(f"tar:{file}", tmp_path / "tfds")
    assert dataset.count("train") == 16
    said = {one.what: one.count for one in dataset.left_out}
    assert said == {
        "hidden files or folders": 1,
        "system folders": 1,
        "links, devices, sparse members and other members that are not plain files": 5,
    }
    assert not (tmp_path / "etc").exists()


@pytest.mark.parametrize("name", ["/etc/a.png", "../../a.png", "./a.png", "x\x1b[2J.png", "é/高.png"])
def test_no_name_of_a_member_is_ever_a_path(tmp_path, name):
    pixels = io.BytesIO()
    Image.new("RGB", (8, 8)).save(pixels, "png")
    stem = name.removesuffix(".png")
    listed = [(name, pixels.getvalue()), (f"{stem}.cls", b"a"), ("b.png", pixels.getvalue()), ("b.cls", b"b")]
    file = write_tar(tmp_path / "in" / "t.tar", listed)
    before = {*tmp_path.rglob("*")}
    dataset = open_dataset(f"tar:{file}", tmp_path / "tfds")
    assert dataset.read("train").images.shape == (2, 8, 8, 3)
    new = {str(path.relative_to(tmp_path)) for path in {*tmp_path.rglob("*")} - before}
    assert {path.split("/")[0] for path in new} <= {"in", "tfds"}
    assert {path for path in new if path.startswith("in")} == {"in/.jaxvit", "in/.jaxvit/t.tar.index"}


@pytest.mark.parametrize(("mode", "command"), [("w:gz", "gunzip"), ("w:bz2", "bunzip2"), ("w:xz", "unxz")])
def test_a_compressed_shard_is_refused_with_the_remedy(tmp_path, mode, command):
    file = tmp_path / "t.tar.z"
    with tarfile.open(file, mode) as archive:
        archive.addfile(tarfile.TarInfo("a"))
    with pytest.raises(UsageError, match=rf"is compressed.*`{command} "):
        open_dataset(f"tar:{file}", tmp_path)


def checksummed(header):
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return header


def with_size(name, size, kind=b"0"):
    """A header that states any size."""
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    header[124:136] = struct.pack(">4sq", b"\x80\0\0\0" if size >= 0 else b"\xff" * 4, size)
    header[156:157] = kind
    return bytes(checksummed(header))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda data: b"", "cannot be read as a tar file"),
        (lambda data: b"no tar" * 500, "cannot be read as a tar file"),
        (lambda data: b"PK\x03\x04" + data, r"is a zip archive; unpack it once with `unzip"),
        (lambda data: data[:700], r"is cut off: its member 'cat/0\.png' has"),
        (lambda data: data[:1024] + b"\x07" * 512 + data[1536:], "is damaged at byte 1,024"),
        (lambda data: with_size("a.png", 1 << 50) + data, r"is cut off: its member 'a\.png'"),
        (lambda data: with_size("a.png", -1024) + data, "impossible size|cannot be read as a tar"),
        (lambda data: with_size("././@LongLink", 1 << 40, b"L") + data, "a header has more than"),
        (lambda data: with_size("x", 1 << 40, b"x") + data, "a header has more than"),
        (lambda data: with_size("x", -512, b"x") + data, "cannot be read as a tar"),
        (lambda data: b"".join([with_size("x", 0, b"x")] * 5000) + data, "cannot be read as a tar|is damaged"),
    ],
)
def test_a_damaged_or_hostile_archive_is_refused_in_one_line(pets, tmp_path, spoil, says):
    file = write_tar(tmp_path / "t.tar", members(pets / "train"))
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(UsageError, match=says) as error:
        open_dataset(f"tar:{file}", tmp_path)
    assert "\n" not in str(error.value)


def test_a_shard_without_its_end_mark_is_told(pets, tmp_path):
    file = write_tar(tmp_path / "t.tar", members(pets / "train"))
    file.write_bytes(file.read_bytes().rstrip(b"\0").ljust(1, b"\0"))
    whole = file.read_bytes()
    file.write_bytes(whole.ljust(-(-len(whole) // 512) * 512, b"\0"))
    dataset = open_dataset(f"tar:{file}", tmp_path)
    assert [str(one) for one in dataset.left_out] == [
        "shards without an end mark, which may have been cut off: 1 (t.tar)"
    ]


def counted(monkeypatch):
    from jaxvit.data import shard_store

    made = []
    plain = shard_store.list_tar
    monkeypatch.setattr(shard_store, "list_tar", lambda *a: made.append(a[0].name) or plain(*a))
    return made


def test_the_index_is_kept_and_renewed_for_a_changed_shard_only(pets, tmp_path, monkeypatch, capsys):
    name, made = tar_of(pets, tmp_path / "shards"), counted(monkeypatch)
    first = open_dataset(name, tmp_path / "tfds").read("train").fingerprint
    assert sorted(made) == ["train-0.tar", "train-1.tar", "val-0.tar"]
    assert open_dataset(name, tmp_path / "tfds").read("train").fingerprint == first and len(made) == 3
    shard = tmp_path / "shards" / "train-1.tar"
    os.utime(shard, ns=(1, 1))
    open_dataset(name, tmp_path / "tfds")
    assert made[3:] == ["train-1.tar"]
    index = tmp_path / "shards" / ".jaxvit" / "val-0.tar.index"
    for spoil in (
        lambda b: b[:-9],
        lambda b: b[:30] + b"9" + b[31:],
        lambda b: b"",
        lambda b: b[:-1] + bytes([b[-1] ^ 1]),
    ):
        index.write_bytes(spoil(index.read_bytes()))
        open_dataset(name, tmp_path / "tfds")
        assert made.pop() == "val-0.tar" and "it is built again" in capsys.readouterr().err


def test_a_forged_index_reads_nothing_outside_of_its_shard(pets, tmp_path, capsys):
    name = tar_of(pets, tmp_path / "shards")
    open_dataset(name, tmp_path / "tfds")
    index = tmp_path / "shards" / ".jaxvit" / "val-0.tar.index"
    head, _, body = index.read_bytes().partition(b"\n")
    line = json.loads(head)
    body = (1 << 40).to_bytes(8, "little") + body[8:]
    line["sha256"] = shard_index.hashlib.sha256(body).hexdigest()
    line.pop("checksum")
    index.write_bytes(json.dumps({**line, "checksum": shard_index.checksum(line)}).encode() + b"\n" + body)
    open_dataset(name, tmp_path / "tfds")
    assert "it names places outside of the file" in capsys.readouterr().err


NO_VALUE = object()
FORGED = [
    *((key, NO_VALUE) for key in ("images", "labels", "class_names", "passed_over", "bytes")),
    *((key, value) for key in ("labels", "class_names", "passed_over") for value in (None, 1.5, "x", {"a": 1}, [None])),
    *(("labels", [value, "dog"]) for value in (-1, True, 10**30, "a\nb", "\x1b[2J", "\ud800", "", "x" * 10_000)),
    ("images", 10**30),
    ("images", True),
    ("passed_over", {"a": ["many", []]}),
]


@pytest.mark.parametrize(("key", "value"), FORGED)
def test_a_forged_index_is_built_again(pets, tmp_path, capsys, key, value):
    name = f"tar:{write_tar(tmp_path / 't.tar', members(pets / 'train'))}"
    before = open_dataset(name, tmp_path / "tfds")
    index = tmp_path / ".jaxvit" / "t.tar.index"
    head, _, body = index.read_bytes().partition(b"\n")
    line = json.loads(head)
    line.pop("checksum")
    if value is NO_VALUE:
        del line[key]
    else:
        line[key] = value
    index.write_bytes(json.dumps({**line, "checksum": shard_index.checksum(line)}).encode() + b"\n" + body)
    assert open_dataset(name, tmp_path / "tfds").class_names == before.class_names
    assert index.read_bytes().partition(b"\n")[0] == head
    said = capsys.readouterr().err.splitlines()
    assert not said if key == "bytes" else len(said) == 1 and "it is built again" in said[0]


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "x" * 10_000, " cat", "\ud800"])
def test_a_strange_class_name_is_refused(pets, tmp_path, name):
    file = write_parquet(tmp_path / "p" / "t.parquet", pets / "train", names=["dog", "cat", name])
    with pytest.raises(UsageError, match=r"the metadata of .*t\.parquet has the class name .*printable text") as error:
        open_dataset(f"parquet:{file}", tmp_path)
    assert len(str(error.value)) < 500 + len(str(tmp_path)) * 3 and "\n" not in str(error.value)
    if name.isascii() and name.strip() == name and "\n" not in name:
        write_tar(tmp_path / "t" / "t.tar", [("a.png", PNG), ("a.cls", b"0")])
        (tmp_path / "t" / "classes.txt").write_text(f"{name}\nother\n")
        with pytest.raises(UsageError, match=r"classes\.txt has the class name"):
            open_dataset(f"tar:{tmp_path}/t/t.tar", tmp_path)


def test_a_shard_that_changes_under_a_run_is_noticed(pets, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "CACHE_BYTES", 10)
    name = tar_of(pets, tmp_path / "shards")
    source = open_dataset(name, tmp_path / "tfds").read("train")
    source.batch(np.arange(4))
    os.utime(tmp_path / "shards" / "train-0.tar", ns=(1, 1))
    with pytest.raises(RunFailedError, match=r"train-0\.tar: .* cannot be decoded \(its shard has changed"):
        source.batch(np.arange(16))


def test_a_pipe_in_the_place_of_a_shard_is_noticed_at_once(pets, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "CACHE_BYTES", 10)
    file = write_tar(tmp_path / "t.tar", members(pets / "train"))
    source = open_dataset(f"tar:{file}", tmp_path / "tfds").read("train")
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(RunFailedError, match="its shard has changed since the start"):
        source.batch(np.arange(4))


@pytest.mark.parametrize(
    "put",
    [
        lambda index: index.parent.write_text("a file"),
        lambda index: index.parent.mkdir() or os.mkfifo(index),
        lambda index: index.parent.mkdir() or index.mkdir(),
        lambda index: index.parent.mkdir() or index.symlink_to(index),
        lambda index: index.parent.mkdir() or index.symlink_to("/dev/zero"),
    ],
)
def test_what_lies_in_the_place_of_an_index_is_named(pets, tmp_path, put):
    file = write_tar(tmp_path / "t.tar", members(pets / "train"))
    put(tmp_path / ".jaxvit" / "t.tar.index")
    with pytest.raises(UsageError, match=r"t\.tar\.index cannot be read \(.*\); delete .*\.jaxvit") as error:
        open_dataset(f"tar:{file}", tmp_path / "tfds")
    assert "\n" not in str(error.value)


def test_a_link_in_the_place_of_an_index_or_a_copy_is_replaced_and_not_followed(pets, tmp_path):
    (tmp_path / "precious").write_text("mine")
    for folder, ending, write in (("t", "index", write_tar), ("p", "images", write_parquet)):
        content = members(pets / "train") if folder == "t" else pets / "train"
        file = write(tmp_path / folder / "a.shard", content)
        (tmp_path / folder / ".jaxvit").mkdir()
        (tmp_path / folder / ".jaxvit" / f"a.shard.{ending}").symlink_to(tmp_path / "precious")
        open_dataset(f"{'tar' if folder == 't' else 'parquet'}:{file}", tmp_path / "tfds")
        assert not (tmp_path / folder / ".jaxvit" / f"a.shard.{ending}").is_symlink()
    assert (tmp_path / "precious").read_text() == "mine"


def test_changed_bytes_of_a_copy_out_of_parquet_are_noticed(pets, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "CACHE_BYTES", 10)
    name = as_hugging_face(pets, tmp_path / "shards")
    source = open_dataset(name, tmp_path / "tfds").read("train")
    [copy] = (tmp_path / "shards" / "data" / ".jaxvit").glob("train*.images")
    data = bytearray(copy.read_bytes())
    data[200] ^= 1
    copy.write_bytes(data)
    with pytest.raises(RunFailedError, match=r"its bytes have changed since they were indexed"):
        source.batch(np.arange(16))


def test_damaged_and_large_images_follow_the_rules_of_files(pets, tmp_path):
    listed = [*members(pets / "train"), ("cat/x.png", b"no image"), ("cat/x.cls", b"cat")]
    name = f"tar:{write_tar(tmp_path / 't.tar', listed)}"
    with pytest.raises(RunFailedError, match=r"t\.tar: cat/x\.png cannot be decoded \(not an image\)"):
        open_dataset(name, tmp_path / "tfds").read("train")
    dataset = open_dataset(name, tmp_path / "tfds", on_error="skip")
    source = dataset.read("train")
    assert len(source) == 16 and source.notes["skipped_names"] == [f"{tmp_path}/t.tar: cat/x.png"]
    assert "t.tar/cat/x.png" not in source.files and len(source.files) == 16
    with pytest.raises(RunFailedError, match=r"max_bytes allows 20\); raise --config\.data\.max_bytes"):
        open_dataset(name, tmp_path / "tfds", limits=Limits(bytes=20), side=8).read("train")


def test_orientation_is_applied_and_no_other_exif_is_passed_on(tmp_path):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (8, 12, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "SECRET CAMERA"
    listed = []
    for key in "ab":
        file = io.BytesIO()
        picture.save(file, "png", exif=exif)
        listed += [(f"{key}.png", file.getvalue()), (f"{key}.cls", key.encode())]
    source = open_dataset(f"tar:{write_tar(tmp_path / 't.tar', listed)}", tmp_path / "tfds").read("train")
    np.testing.assert_array_equal(source.images[0], np.rot90(np.asarray(picture), -1))
    for file in [*(tmp_path / "tfds").rglob("*"), *(tmp_path / ".jaxvit").rglob("*")]:
        assert not file.is_file() or b"SECRET" not in file.read_bytes()


def parquet(file, **columns):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), file)
    return f"parquet:{file}"


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"image": [PNG], "caption": ["x"]}, r"t\.parquet has no column 'label'; it has image, caption"),
        ({"text": ["x"], "label": [1]}, r"t\.parquet has no column 'image'"),
        ({"image": [PNG, None], "label": [1, 2]}, r"t\.parquet: row 1 has no image"),
        ({"image": ["1.png", "2.png"], "label": [1, 2]}, r"row 0 has no image; each row needs the bytes"),
        ({"image": [{"bytes": None, "path": "/etc/passwd"}], "label": [1]}, r"row 0 has only the path '/etc/passwd'"),
        ({"image": [PNG, PNG], "label": [1, None]}, r"t\.parquet: 1 has no label"),
        ({"image": [PNG], "label": [-3]}, r"row 0: -3 is neither"),
        ({"image": [PNG], "label": [0.5]}, r"row 0: 0\.5 is neither"),
    ],
)
def test_a_wrong_parquet_file_is_refused_in_one_line(tmp_path, columns, says):
    pytest.importorskip("pyarrow")
    with pytest.raises(UsageError, match=says) as error:
        open_dataset(parquet(tmp_path / "t.parquet", **columns), tmp_path)
    assert "\n" not in str(error.value)
    assert not [*(tmp_path / ".jaxvit").glob(".*")]  # nothing half-written


def test_columns_of_one_name_and_text_that_is_none_are_refused(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    file, images, labels = tmp_path / "t.parquet", pa.array([PNG]), pa.array([0])
    no_text = pa.Array.from_buffers(
        pa.utf8(), 1, [None, pa.array([0, 1], pa.int32()).buffers()[1], pa.py_buffer(b"\xff")]
    )
    struct_of = pa.StructArray.from_arrays([images, no_text], ["bytes", "path"])
    for columns, names, says in (
        ([images, images, labels], ["image", "image", "label"], r"t\.parquet has several columns 'image'"),
        ([images, labels, labels], ["image", "label", "label"], r"t\.parquet has several columns 'label'"),
        ([images, no_text], ["image", "label"], r"t\.parquet has text that is not UTF-8, in 'image' or 'label'"),
        ([struct_of, labels], ["image", "label"], "text that is not UTF-8"),
    ):
        pq.write_table(pa.Table.from_arrays(columns, names=names), file)
        with pytest.raises(UsageError, match=says) as error:
            open_dataset(f"parquet:{file}", tmp_path)
        assert "\n" not in str(error.value) and not [*(tmp_path / ".jaxvit").glob(".*")]


def test_a_page_with_a_checksum_is_checked(pets, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = tmp_path / "t.parquet"
    table = pa.table({"image": [PNG] * 9, "label": ["a marked label"] * 9})
    pq.write_table(table, file, write_page_checksum=True, compression="none", use_dictionary=False)
    data = file.read_bytes()
    assert b"a marked label" in data
    file.write_bytes(data.replace(b"a marked label", b"a darked label"))
    with pytest.raises(UsageError, match=r"t\.parquet cannot be read|the images of .* cannot be listed") as error:
        open_dataset(f"parquet:{file}", tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "spoil", [lambda b: b"", lambda b: b"PAR1" + b[4:40], lambda b: b[:50] + b"\xff" * 60 + b[110:]]
)
def test_a_damaged_parquet_file_is_refused_in_one_line(pets, tmp_path, spoil):
    file = write_parquet(tmp_path / "t.parquet", pets / "train")
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(UsageError, match=r"t\.parquet") as error:
        open_dataset(f"parquet:{file}", tmp_path)
    assert "\n" not in str(error.value)


def test_a_test_part_without_labels_is_left_out(pets, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    as_hugging_face(pets, tmp_path / "shards")
    data = tmp_path / "shards" / "data"
    table = pq.read_table(data / "validation-00000-of-00001.parquet")
    rows = {**table.to_pydict(), "label": [-1] * 5}  # as Hugging Face stores the test set of a competition
    pq.write_table(pa.table(rows, schema=table.schema), data / "test-00000-of-00001.parquet")
    dataset = open_dataset(f"parquet:{tmp_path}/shards/data/*.parquet", tmp_path)
    assert set(dataset.split_sizes) == {"train", "validation"}
    assert "images of test without a label: 5" in str(dataset.left_out[-1])


def test_a_folder_of_shards_is_told_to_be_named_by_a_pattern(pets, tmp_path):
    as_hugging_face(pets, tmp_path / "shards")
    with pytest.raises(UsageError, match=r"its shards are named by a pattern: --data='.*/shards/\*/\*\.parquet'"):
        open_dataset(f"image_folder:{tmp_path}/shards", tmp_path)


def test_names_of_shards_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert located("tar:x/*.tar") == f"tar:{tmp_path}/x/*.tar"
    assert re.fullmatch(r"parquet:/.*/a\.parquet", located("parquet:a.parquet"))
