"""Image files stand upright, whichever format says so, as Pillow turns them."""

import io

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from jaxvit.data.decoding import decode, upright_size
from jaxvit.data.image_folder import FolderStore

FORMATS = {"JPEG": {"quality": 100, "subsampling": 0}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}
UPRIGHT = np.random.default_rng(0).integers(0, 256, (6, 10, 3)).astype(np.uint8)


def as_stored(orientation):
    """By EXIF 2.3 the tag says where the stored picture's row 0 and column 0 are."""
    return {
        1: UPRIGHT,
        2: UPRIGHT[:, ::-1],
        3: UPRIGHT[::-1, ::-1],
        4: UPRIGHT[::-1],
        5: UPRIGHT.swapaxes(0, 1),
        6: UPRIGHT.swapaxes(0, 1)[::-1],
        7: UPRIGHT.swapaxes(0, 1)[::-1, ::-1],
        8: UPRIGHT.swapaxes(0, 1)[:, ::-1],
    }[orientation]


def a_file(kind, pixels, exif):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format=kind, exif=exif, **FORMATS[kind])
    return stream.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_stand_upright(kind, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = a_file(kind, np.ascontiguousarray(as_stored(orientation)), exif)
    pixels = decode(data, 3)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(pixels, ImageOps.exif_transpose(image))
    if kind != "JPEG":
        np.testing.assert_array_equal(pixels, UPRIGHT)
    with Image.open(io.BytesIO(data)) as image:
        assert upright_size(image) == (10, 6)
    assert decode(data, 3, (4, 6)).shape == (4, 6, 3)


def test_a_deep_picture_is_turned_and_stays_what_it_is():
    deep = np.arange(60, dtype=np.uint16).reshape(6, 10) * 1000
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    stream = io.BytesIO()
    Image.fromarray(deep).save(stream, format="PNG", exif=exif)
    np.testing.assert_array_equal(decode(stream.getvalue(), 1)[..., 0], deep[::-1, ::-1] >> 8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_data_does_no_harm(kind):
    data = a_file(kind, UPRIGHT, b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode(data, 3).shape == UPRIGHT.shape
    with Image.open(io.BytesIO(data)) as image:
        assert upright_size(image) == (10, 6)


@pytest.mark.parametrize("value", [0, 9])
def test_an_orientation_that_is_none_turns_nothing(value):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = value
    data = a_file("PNG", UPRIGHT, exif)
    np.testing.assert_array_equal(decode(data, 3), UPRIGHT)
    with Image.open(io.BytesIO(data)) as image:
        assert upright_size(image) == (10, 6)


def test_a_folder_of_turned_photographs_has_one_size(tmp_path):
    (tmp_path / "cat").mkdir()
    for kind, ending in zip(FORMATS, ("jpg", "png", "webp", "tif"), strict=True):
        for orientation in (1, 6):
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = orientation
            file = tmp_path / "cat" / f"{orientation}.{ending}"
            file.write_bytes(a_file(kind, np.ascontiguousarray(as_stored(orientation)), exif))
    assert FolderStore(tmp_path, tmp_path).image_shape == (6, 10, 3)
