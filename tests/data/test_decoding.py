"""Image files come out as Pillow shows them, upright, in every format, mode and orientation that there is."""

import io
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageOps, TiffImagePlugin

from jaxvit.data.decoding import Limits, decode, open_image, upright_size
from jaxvit.data.depth import Depth, hint
from jaxvit.data.image_kinds import FORMATS, HEAD, kind_of, reads_heic
from jaxvit.data.sources import open_dataset
from jaxvit.errors import RunFailedError

UPRIGHT = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 16, 4)).astype(np.uint8))
# How to store what people see as row 0 and column 0, by EXIF 2.3.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
# Formats with a place for the orientation, and how they are stored without loss; the modes that each can hold.
SETTINGS = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}, "AVIF": {"quality": 100}}
LOSSY = ("JPEG", "AVIF", "HEIF")
TURNED = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "P;0", "P;table", "RGB", "RGB;0", "RGBA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "LAB", "I;16", "I;16B", "I", "F"),
    "AVIF": ("L", "RGB", "RGBA"),
    "HEIF": ("L", "RGB", "RGBA"),
}
PLAIN = {
    "GIF": ("L", "P", "P;0", "RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "DIB": ("1", "L", "P", "RGB", "RGBA"),
    "PPM": ("1", "L", "RGB", "I;16"),
    "JPEG2000": ("L", "LA", "RGB", "RGBA", "I;16"),
    "TGA": ("1", "L", "LA", "P", "RGB", "RGBA"),
}
WHITE = 1 << 20  # of 32-bit numbers


def in_mode(mode):
    """The picture in a mode of Pillow's, with what is transparent in it after a semicolon."""
    name, _, how = mode.partition(";")
    if mode.startswith("I;16"):
        values = np.asarray(UPRIGHT.convert("L")).astype(np.uint16) * 257
        return Image.fromarray(values.astype("<u2" if mode == "I;16" else ">u2"))
    if mode in ("I", "F"):
        values = np.asarray(UPRIGHT.convert("L")).astype(np.int32 if mode == "I" else np.float32)
        return Image.fromarray(values * (WHITE // 255))
    if mode == "LAB":
        to_lab = ImageCms.buildTransform(*map(ImageCms.createProfile, ("sRGB", "LAB")), "RGB", "LAB")
        return ImageCms.applyTransform(UPRIGHT.convert("RGB"), to_lab)
    if mode == "RGBA":
        return UPRIGHT.copy()
    image = UPRIGHT.convert("LA" if mode == "LA" else "RGB").convert(name)
    if how == "0":
        image.info["transparency"] = 0 if name == "P" else UPRIGHT.getpixel((3, 3))[:3]
    elif how == "table":
        image.info["transparency"] = bytes(range(256))
    return image


def stored(kind, mode, orientation=1, by="exif"):
    image = in_mode(mode)
    settings = dict(SETTINGS.get(kind, {}))
    if "transparency" in image.info:
        settings["transparency"] = image.info["transparency"]
    if orientation > 1:
        image = image.transpose(TURNS[orientation])
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>' % orientation
    if kind == "TIFF":
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        if by != "xmp":
            tags[ExifTags.Base.Orientation] = orientation
        if by != "exif":
            tags[700], tags.tagtype[700] = xmp, 1
        settings["tiffinfo"] = tags
        settings["compression"] = "tiff_lzw" if orientation % 2 and mode in ("L", "RGB", "RGBA") else None
    elif kind in TURNED and by == "exif":
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        settings["exif"] = exif.tobytes()
    elif by == "xmp":
        settings["xmp"] = xmp
    stream = io.BytesIO()
    image.save(stream, kind, **settings)
    return stream.getvalue()


def as_pillow_shows_it(data):
    """RGB [H, W, 3] by Pillow's own turning, and formulas of ours for what Pillow leaves to the caller."""
    with Image.open(io.BytesIO(data)) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I;16") or (image.mode == "I" and opened.format == "PPM"):
            return np.repeat((np.asarray(image).astype(int) // 256)[..., None], 3, axis=-1)
        if image.mode in ("I", "F"):
            return np.repeat(np.rint(np.asarray(image).astype(float) * 255 / WHITE)[..., None], 3, axis=-1)
        if image.mode == "LAB":
            to_rgb = ImageCms.buildTransform(*map(ImageCms.createProfile, ("LAB", "sRGB")), "LAB", "RGB")
            return np.asarray(ImageCms.applyTransform(image, to_rgb))
        if "A" in image.getbands() or "transparency" in image.info:
            rgba = np.asarray(image.convert("RGBA")).astype(float)
            share = rgba[..., 3:] / 255
            return np.rint(share * rgba[..., :3] + (1 - share) * 255)
        return np.asarray(image.convert("RGB"))


def cases():
    for kind, modes in (TURNED | PLAIN).items():
        for mode in modes:
            missing = kind == "HEIF" and not reads_heic()
            yield pytest.param(kind, mode, marks=[pytest.mark.skip("no pillow-heif")] if missing else [])


@pytest.mark.parametrize(("kind", "mode"), [*cases()])
def test_every_format_mode_and_orientation_is_as_pillow_shows_it(kind, mode):
    if kind == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    depth = Depth(WHITE if mode in ("I", "F") else 0)
    upright = decode(stored(kind, mode), 3, depth=depth)
    for orientation in range(1, 9) if kind in TURNED else (1,):
        data = stored(kind, mode, orientation)
        assert kind_of(data[:HEAD], len(data)) == kind
        pixels = decode(data, 3, depth=depth)
        assert pixels.shape == (24, 16, 3) and pixels.dtype == np.uint8, orientation
        expected = as_pillow_shows_it(data)
        rounding = 1 if "A" in mode or ";" in mode or mode == "F" else 0
        assert abs(pixels.astype(int) - expected).max() <= rounding, orientation
        if kind not in LOSSY:
            np.testing.assert_array_equal(pixels, upright, err_msg=str(orientation))
        grey = decode(data, 1, depth=depth)
        by_eye = np.asarray(Image.fromarray(pixels).convert("L"))
        assert grey.shape == (24, 16, 1) and abs(grey[..., 0].astype(int) - by_eye).max() <= 1, orientation
        with open_image(data) as image:
            assert upright_size(image) == (16, 24)
        assert decode(data, 3, (4, 6), depth=depth).shape == (4, 6, 3)


def test_the_table_above_has_every_format():
    assert set(TURNED | PLAIN) == set(FORMATS)


@pytest.mark.parametrize(("kind", "by"), [("JPEG", "xmp"), ("WEBP", "xmp"), ("TIFF", "xmp"), ("TIFF", "both")])
def test_an_orientation_in_xmp_counts_once(kind, by):
    for orientation in range(1, 9):
        data = stored(kind, "RGB", orientation, by)
        np.testing.assert_array_equal(decode(data, 3), as_pillow_shows_it(data))
        with open_image(data) as image:
            assert upright_size(image) == (16, 24)


def test_a_phones_picture_of_several_frames_is_its_first(tmp_path):
    """MPO: a JPEG with more pictures behind the first, such as a gain map."""
    stream = io.BytesIO()
    first, second = UPRIGHT.convert("RGB"), Image.new("RGB", (8, 6), "red")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    first.transpose(TURNS[6]).save(
        stream, "MPO", save_all=True, append_images=[second], exif=exif.tobytes(), quality=100, subsampling=0
    )
    np.testing.assert_array_equal(decode(stream.getvalue(), 3), as_pillow_shows_it(stream.getvalue()))
    stream = io.BytesIO()
    first.copy().save(stream, "TIFF", save_all=True, append_images=[second.copy()])
    np.testing.assert_array_equal(decode(stream.getvalue(), 3), np.asarray(first))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_data_does_no_harm(kind):
    stream = io.BytesIO()
    UPRIGHT.convert("RGB").save(stream, kind, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode(stream.getvalue(), 3).shape == (24, 16, 3)
    with open_image(stream.getvalue()) as image:
        assert upright_size(image) == (16, 24)


@pytest.mark.parametrize("value", [0, 9])
def test_an_orientation_that_is_none_turns_nothing(value):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = value
    stream = io.BytesIO()
    UPRIGHT.convert("RGB").save(stream, "PNG", exif=exif)
    np.testing.assert_array_equal(decode(stream.getvalue(), 3), np.asarray(UPRIGHT.convert("RGB")))


def test_a_folder_of_turned_photographs_has_one_size(tmp_path):
    """Upright pictures, stored lying, in whatever format and with whatever ending."""
    (tmp_path / "cat").mkdir()
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
        for orientation in (1, 6):
            (tmp_path / "cat" / f"{kind}{orientation}.jpg").write_bytes(stored(kind, "RGB", orientation))
    (tmp_path / "dog").symlink_to(tmp_path / "cat")  # once is enough
    assert open_dataset(f"image_folder:{tmp_path}", tmp_path / "tfds").image_shape == (24, 16, 3)


def sixteen_bits(folder, highest, kind="PNG"):
    rng = np.random.default_rng(1)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for i in range(2):
            values = rng.integers(0, highest + 1, (6, 6)).astype(np.uint16)
            values[0, 0] = highest
            Image.fromarray(values).save(folder / name / f"{i}.png", kind)
    return f"image_folder:{folder}"


def test_twelve_bits_in_files_of_sixteen_are_measured_and_can_be_scaled(tmp_path, capsys, monkeypatch):
    name = sixteen_bits(tmp_path / "dark", 4000)
    says = "4 images of 16 bits hold no value above 4,000, of 65,535, and come out dark: --config.data.white=4095 makes"
    source = open_dataset(name, tmp_path / "tfds").read("train")
    assert source.images.max() == 15 and says in capsys.readouterr().err
    source = open_dataset(name, tmp_path / "tfds").read("train")  # from the cache
    assert source.notes["sixteen_bits"] == {"train": {"count": 4, "highest": 4000.0}}
    bright = open_dataset(name, tmp_path / "tfds", white=4095).read("train")
    capsys.readouterr()
    assert bright.images.max() == round(4000 * 255 / 4095) and not capsys.readouterr().err
    open_dataset(sixteen_bits(tmp_path / "full", 65_535), tmp_path / "tfds").read("train")
    assert not capsys.readouterr().err
    monkeypatch.setattr("jaxvit.data.stored.CACHE_BYTES", 1)  # streamed: by the sample that the fingerprint takes
    assert open_dataset(name, tmp_path / "tfds").read("train").fingerprint["count"] == 4
    assert says in capsys.readouterr().err


def test_white_by_formula_and_where_nothing_is_known():
    values = np.array([[0, 1, 2047, 4095, 5000]], np.uint16)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    assert decode(stream.getvalue(), 1, depth=Depth(4095))[..., 0].tolist() == [[0, 0, 127, 255, 255]]
    stream = io.BytesIO()
    Image.fromarray(np.array([[0.0, 0.5, 1.0, np.nan]], np.float32)).save(stream, "TIFF")
    with pytest.raises(ValueError, match=r"set data\.white"):
        decode(stream.getvalue(), 1)
    assert decode(stream.getvalue(), 1, depth=Depth(1))[..., 0].tolist() == [[0, 128, 255, 0]]
    assert not hint({"count": 1, "highest": 40_000.0}) and not hint({}) and not hint({"count": 1, "highest": 0.0})
    assert "data.white=255" in hint({"count": 1, "highest": 9.0})


def colour_of_sixteen_bits(values_HWC):
    """A PNG of 16-bit RGB or RGBA, which Pillow cannot write."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    height, width, channels = values_HWC.shape
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((16, 2 if channels == 3 else 6, 0, 0, 0))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values_HWC)
    parts = chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_colour_of_twelve_bits_is_measured_and_scaled_by_its_upper_bits():
    values = np.random.default_rng(2).integers(0, 4096, (5, 4, 3))
    values[0, 0] = 4095
    depth = Depth()
    dark = decode(colour_of_sixteen_bits(values), 3, depth=depth)
    np.testing.assert_array_equal(dark, values >> 8)
    assert "1 images of 16 bits" in hint(depth.notes) and "data.white=4095" in hint(depth.notes)
    bright = decode(colour_of_sixteen_bits(values), 3, depth=Depth(4095))
    np.testing.assert_array_equal(bright, np.minimum(255, np.rint((values >> 8) * 257 * 255 / 4095)))
    clear = np.concatenate([values, np.full((5, 4, 1), 65_535)], axis=-1)  # what is opaque stays so
    np.testing.assert_array_equal(decode(colour_of_sixteen_bits(clear), 3, depth=Depth(4095)), bright)
    depth = Depth()
    decode(colour_of_sixteen_bits(values * 16), 3, depth=depth)
    assert depth.count == 1 and not hint(depth.notes)


def test_a_limit_names_its_key(tmp_path):
    name = sixteen_bits(tmp_path / "photos", 65_535)
    for limits, key in ((Limits(pixels=35), "max_pixels"), (Limits(bytes=20), "max_bytes")):
        with pytest.raises(RunFailedError, match=rf"{key} allows \d\d\); raise --config\.data\.{key} "):
            open_dataset(name, tmp_path / "tfds", side=4, limits=limits).read("train")


def test_heic_without_its_extra_names_the_remedy(monkeypatch):
    monkeypatch.setattr("jaxvit.data.decoding.reads_heic", lambda: False)
    with pytest.raises(ValueError, match=r"it is HEIC; .*pip install 'jaxvit\[heic\]'"):
        decode(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", 3)


ODD = """
import io, sys
from PIL import Image
from jaxvit.data.decoding import Limits, decode
def file(image, kind, **settings):
    stream = io.BytesIO(); image.save(stream, kind, **settings); return stream.getvalue()
grey = Image.new("L", (64, 64), 9)
table = file(grey.convert("P"), "PNG", transparency=bytes(range(256)))
decode(table, 1); decode(table, 3)
decode(file(grey, "JPEG", exif=b"Exif\\0\\0MM\\0*\\xff\\xff\\xff\\xff"), 3)
decode(file(Image.new("1", (11_000, 10_000)), "PNG"), 1, (8, 8), Limits(pixels=200_000_000))  # Pillow warns there
kinds = "JPEG PNG WEBP GIF AVIF JPEG2000 TGA BMP PPM TIFF".split()
whole = {kind: file(grey, kind) for kind in kinds} | {"packed": file(grey, "TIFF", compression="tiff_lzw")}
for kind, data in whole.items():
    for damaged in (data[: len(data) // 2], data[:40] + bytes(60) + data[100:], data[:-9], data[:60] + b"\\xff" * 9):
        try:
            decode(damaged, 3)
        except Exception as error:
            pass
"""


def test_pillow_says_nothing_of_its_own():
    """Odd palettes, damaged EXIF data, large and damaged files: what matters is an error, in one line of ours."""
    done = subprocess.run([sys.executable, "-P", "-c", ODD], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("part", "says"),
    [(b"\xff\xe1\x00\x09Exif\0\0x", "256 parts of EXIF data"), (b"\xff\xfe\x00\x06a\xff\xdaa", "500 scans")],
)
def test_a_jpeg_of_very_many_parts_is_refused(tmp_path, part, says):
    """Pillow joins parts of EXIF data one by one, and each scan goes over the whole image: both can take minutes."""
    Image.new("RGB", (4, 4)).save(tmp_path / "x.jpg")
    data = (tmp_path / "x.jpg").read_bytes()
    decode(data[:2] + part * 200 + data[2:], 3)
    (tmp_path / "x.jpg").write_bytes(data[:2] + part * 600 + data[2:])
    for source in (tmp_path / "x.jpg", (tmp_path / "x.jpg").read_bytes()):
        with pytest.raises(ValueError, match=f"more than {says}"):
            open_image(source)
