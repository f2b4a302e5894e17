"""The supported image formats, detected by the first bytes of a file and not by its name.

Pillow supports 40 more formats; for one of them, PostScript, it starts another program. So a file is opened only in the
format detected here.
"""

from __future__ import annotations

import functools
import importlib.util
import re

# Pillow's name of each format -> its file extensions, the most common one first.
ENDINGS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
    "HEIF": (".heic", ".heif", ".hif"),
}
FORMATS = tuple(ENDINGS)
HEIC_REMEDY = "HEIC is read with the extra heic: pip install 'jaxvit[heic]'"
# Camera raw files that start like TIFF files: Pillow would read only their thumbnail.
RAW_ENDINGS = frozenset(
    (".3fr", ".arw", ".cr2", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mos", ".nef", ".nrw", ".pef", ".rwl", ".sr2")
)
HEAD = 256  # first bytes of a file that `kind_of` needs

_IMAGE_ENDINGS = frozenset(ending for endings in ENDINGS.values() for ending in endings)
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"MM*\0", b"II\0*")  # the last two are invalid but occur
_NETPBM = re.compile(rb"P[1-6f]\s+[0-9#]")
_HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))


def has_image_ending(name: str) -> bool:
    """Whether a file name has an extension of a supported image format."""
    return ending_of(name) in _IMAGE_ENDINGS


def ending_of(name: str) -> str:
    """Returns the extension of a file name in lower case: '.jpg' for 'photos/A.JPG'; '' if it has none."""
    name = name.rpartition("/")[2]
    stem, dot, ending = name.rpartition(".")
    return f".{ending.lower()}" if dot and stem else ""


def kind_of(head: bytes, length: int) -> str:
    """Detects the format of an image from its content.

    Args:
      head: the first `HEAD` bytes of the file, or all of a shorter one.
      length: size of the file in bytes.

    Returns:
      One of `FORMATS`; '' for any other content.

    Example:
      >>> kind_of(b"\\x89PNG\\r\\n\\x1a\\n", 68), kind_of(b"%!PS-Adobe-3.0", 900)
      ('PNG', '')
    """
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith(_TIFF):
        return "TIFF"
    if head.startswith((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")):
        return "JPEG2000"
    if head[4:8] == b"ftyp":
        return _kind_of_boxes(head)
    if _NETPBM.match(head):
        return "PPM"
    if head.startswith(b"BM") and _is_bitmap(head[14:]):
        return "BMP"
    if _is_bitmap(head):
        return "DIB"
    return "TGA" if _is_tga(head, length) else ""


def _kind_of_boxes(head: bytes) -> str:
    """Distinguishes AVIF and HEIC, which share a container format, by the brands in the first box."""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    return "HEIF" if brands & _HEIF_BRANDS else ""


def _is_bitmap(head: bytes) -> bool:
    """Whether `head` is a DIB header: the second header of a BMP file, the first of a DIB file. It has no signature."""
    size = int.from_bytes(head[:4], "little")
    if size not in (12, 40, 52, 56, 64, 108, 124) or len(head) < 16:
        return False
    at = 8 if size == 12 else 12
    planes, bits = int.from_bytes(head[at : at + 2], "little"), int.from_bytes(head[at + 2 : at + 4], "little")
    return planes == 1 and bits in (1, 2, 4, 8, 16, 24, 32)


def _is_tga(head: bytes, length: int) -> bool:
    """Whether the 18 header bytes are a consistent TGA header, and an uncompressed file holds all its pixels.

    TGA has no signature.
    """
    if len(head) < 18:
        return False
    colours, kind, bits = head[1], head[2], head[16]
    width, height = int.from_bytes(head[12:14], "little"), int.from_bytes(head[14:16], "little")
    mapped = int.from_bytes(head[5:7], "little")
    if kind not in (1, 2, 3, 9, 10, 11) or colours != (kind in (1, 9)) or not width or not height:
        return False
    if bits not in ((8,) if colours else (1, 8, 16) if kind in (3, 11) else (16, 24, 32)) or head[17] >> 6:
        return False
    if not colours:
        mapped_bytes = 0
        if any(head[3:8]):
            return False
    else:
        if not mapped or head[7] not in (15, 16, 24, 32):
            return False
        mapped_bytes = mapped * -(-head[7] // 8)
    pixels = height * -(-width * bits // 8) if kind < 9 else 1
    return length >= 18 + head[0] + mapped_bytes + pixels


@functools.cache
def reads_heic() -> bool:
    """Whether HEIC can be read: the package pillow-heif of the extra `heic` is installed."""
    return importlib.util.find_spec("pillow_heif") is not None
