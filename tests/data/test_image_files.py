"""Which files below a folder are images: by content, without what hides, links followed once."""

import io
import os

import pytest
from PIL import Image

from jaxvit.data.image_files import find_images
from jaxvit.data.image_kinds import ENDINGS, HEAD, kind_of, reads_heic
from jaxvit.data.sources import open_dataset


def encoded(kind, mode="RGB", size=(5, 4), **settings):
    stream = io.BytesIO()
    image = Image.new("L", size, 77).convert(mode) if mode == "P" else Image.new(mode, size, 77)
    image.save(stream, kind, **settings)
    return stream.getvalue()


def relative(found):
    return [image.relative_to(found.folder).as_posix() for image in found.images]


@pytest.fixture(scope="module")
def nasty(tmp_path_factory):
    """Six images of two classes, among all kinds of other files."""
    folder = tmp_path_factory.mktemp("photos")
    png = encoded("PNG")
    files = {
        "cat/a.png": png,
        "cat/b.JPE": encoded("JPEG"),
        "cat/c.txt": encoded("WEBP"),  # an image all the same
        "cat/deep/er/d": encoded("GIF"),
        "dog/e.tif": encoded("TIFF"),
        "dog/failed_download.jpg": b"<html>404</html>",  # called like an image: damage, not silence
        "cat/.hidden.png": png,
        "cat/._a.png": png,
        "cat/.ipynb_checkpoints/a-checkpoint.png": png,
        "cat/album.png/f.png": png,
        "cat/Thumbs.db": b"\xd0\xcf\x11\xe0 no image",
        "cat/notes.md": b"P1 is no picture",
        "dog/@eaDir/e.tif/thumb.jpg": encoded("JPEG"),
        "__MACOSX/cat/a.png": png,
        "dog/g.nef": encoded("TIFF"),
        ".git/h.png": png,
        "mule/readme.txt": b"to come",
    }
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "bird").mkdir()
    os.mkfifo(folder / "dog" / "pipe.png")
    return folder


def test_images_are_told_by_content_and_the_rest_is_counted_and_named(nasty):
    found = find_images(nasty)
    assert relative(found) == [
        *("cat/a.png", "cat/b.JPE", "cat/c.txt", "cat/deep/er/d"),
        *("dog/e.tif", "dog/failed_download.jpg"),
    ]
    assert {name: len(images) for name, images in found.by_class().items()} == {"cat": 4, "dog": 2}
    assert found.empty_folders == ("bird", "mule")
    assert {reason: count for reason, (count, _) in found.passed_over.items()} == {
        "hidden files or folders": 4,
        "system folders": 2,
        "folders named like an image": 1,
        "files that are not images": 3,
        "camera raw files, which must be converted to JPEG or TIFF": 1,
        "pipes, devices or sockets": 1,
    }
    assert found.passed_over["hidden files or folders"][1] == (
        ".git",
        "cat/._a.png",
        "cat/.hidden.png",
    )  # the first few


def test_what_a_data_set_leaves_out_is_said_once(nasty, tmp_path, capsys):
    for _ in range(2):
        dataset = open_dataset(f"image_folder:{nasty}", tmp_path, side=4, on_error="skip")
        dataset.say_left_out()
    assert dataset.class_names == ("cat", "dog") and dataset.split_sizes == {"train": 5}
    said = capsys.readouterr().err
    assert said.count("note: ") == 1
    for each in ("hidden files or folders: 4 (.git, ", "class folders without an image: 2 (bird, mule)", "(dog/pipe"):
        assert each in said
    assert len(said.splitlines()) == 2  # the other is of the download that failed


def test_links_are_followed_once_and_loops_end(tmp_path):
    inside, outside = tmp_path / "photos", tmp_path / "elsewhere"
    for file in (inside / "z" / "1.png", outside / "more" / "2.png", outside / "3.png", tmp_path / "4.png"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded("PNG"))
    links = {
        "a": inside / "z",  # another name of a folder inside: this stays where it really lies
        "b": outside,  # a class elsewhere
        "c": outside / "more",  # taken with b
        "z/4.png": tmp_path / "4.png",
        "z/5.png": tmp_path / "4.png",
        "z/6.png": inside / "z" / "1.png",
        "z/loop": inside / "z",
        "z/up": tmp_path,
        "z/gone.png": tmp_path / "nowhere.png",
        "z/self": inside / "z" / "self",
        "z/zero.png": "/dev/zero",
    }
    for name, target in links.items():
        (inside / name).symlink_to(target)
    (outside / "back").symlink_to(inside)
    found = find_images(inside)
    assert relative(found) == ["z/1.png", "b/3.png", "b/more/2.png", "z/4.png"]
    assert {reason: count for reason, (count, _) in found.passed_over.items()} == {
        "links to files or folders already listed": 7,
        "broken links": 2,
        "pipes, devices or sockets": 1,
    }
    assert found.empty_folders == ("c",)  # what it links to is taken with b
    (tmp_path / "link").symlink_to(inside)
    assert len(find_images(tmp_path / "link").images) == 4


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(encoded("PNG"))
    real = os.scandir

    def scandir(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert find_images(tmp_path).passed_over == {"folders or files that cannot be read": (1, ("cat",))}


@pytest.mark.parametrize("kind", [kind for kind in ENDINGS if kind != "HEIF"])
def test_every_format_is_known_by_its_content(kind):
    Image.init()
    assert {Image.registered_extensions()[ending] for ending in ENDINGS[kind] if ending != ".pfm"} == {kind}
    modes = {"PPM": ("1", "L", "RGB", "I;16"), "TGA": ("L", "P", "RGB", "RGBA"), "DIB": ("1", "L", "P", "RGB")}
    for mode in modes.get(kind, ("RGB",)):
        data = encoded(kind, mode)
        assert kind_of(data[:HEAD], len(data)) == kind, mode
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            assert image.size == (5, 4)
    if kind == "TGA":
        packed = encoded(kind, compression="tga_rle")
        assert kind_of(packed[:HEAD], len(packed)) == kind
        assert not kind_of(data[:HEAD], len(data) - 40)  # pixels are missing: anything could begin so


def test_what_looks_like_an_image_and_is_none():
    for text in (
        b"",
        b"P1 is",
        b"BMW 320",
        b"II* of",
        b"(\0\0\0" + bytes(40),
        bytes(300),
        b"\0\0\x02 TGA" * 9,
        b"P7 8",
    ):
        assert not kind_of(text, len(text))
    box = b"\0\0\0\x1cftypmif1\0\0\0\0mif1%bmiaf"
    assert kind_of(box % b"avif", 99) == "AVIF" and kind_of(box % b"heic", 99) == "HEIF"
    assert not kind_of(b"\0\0\0\x18ftypisom\0\0\0\0mp42isom", 99)  # a film


def test_photos_as_heic_are_named_with_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (tmp_path / "cat" / "IMG_2.heic").write_bytes(encoded("JPEG"))
    monkeypatch.setattr("jaxvit.data.image_files.reads_heic", lambda: False)
    found = find_images(tmp_path)
    assert relative(found) == ["cat/IMG_2.heic"]
    [(reason, (count, names))] = found.passed_over.items()
    assert "pip install 'jaxvit[heic]'" in reason and (count, names) == (1, ("cat/IMG_1.HEIC",))
    monkeypatch.setattr("jaxvit.data.image_files.reads_heic", lambda: True)
    assert len(find_images(tmp_path).images) == 2
    assert isinstance(reads_heic(), bool)
