"""Which files are images: the formats that are opened, told by the first bytes of a file and not by its name.

Pillow knows 40 more formats than these, and for one of them, PostScript, it starts another program. So a file is opened
as the one format that its bytes say, or not at all.
"""

from __future__ import annotations

import functools
import importlib.util
import re

# By Pillow's name: the endings that files of the format usually have. The first is the one that people know.
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
# Raw files of cameras that begin as TIFF files do: what Pillow finds in them is a preview the size of a stamp.
RAW_ENDINGS = frozenset(
    (".3fr", ".arw", ".cr2", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mos", ".nef", ".nrw", ".pef", ".rwl", ".sr2")
)
HEAD = 256  # bytes of a file that `kind_of` needs

_IMAGE_ENDINGS = frozenset(ending for endings in ENDINGS.values() for ending in endings)
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"MM*\0", b"II\0*")  # the last two are written by some, and are wrong
_NETPBM = re.compile(rb"P[1-6f]\s+[0-9#]")
_HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))


def has_image_ending(name: str) -> bool:
    """Whether a file's name ends as those of images do."""
    return ending_of(name) in _IMAGE_ENDINGS


def ending_of(name: str) -> str:
    """'.jpg' of 'photos/A.JPG'; '' where there is none."""
    name = name.rpartition("/")[2]
    stem, dot, ending = name.rpartition(".")
    return f".{ending.lower()}" if dot and stem else ""


def kind_of(head: bytes, length: int) -> str:
    """The format of an image, by its content.

    Args:
      head: the file's first bytes, `HEAD` or all of them.
      length: bytes of the whole file.

    Returns:
      A name of `FORMATS`; '' = it is none of these.

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
    """AVIF and HEIC are one container; the brands in its first box tell them apart."""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    return "HEIF" if brands & _HEIF_BRANDS else ""


def _is_bitmap(head: bytes) -> bool:
    """Whether this is the second header of a BMP file, with which a DIB file begins. It has no signature."""
    size = int.from_bytes(head[:4], "little")
    if size not in (12, 40, 52, 56, 64, 108, 124) or len(head) < 16:
        return False
    at = 8 if size == 12 else 12
    planes, bits = int.from_bytes(head[at : at + 2], "little"), int.from_bytes(head[at + 2 : at + 4], "little")
    return planes == 1 and bits in (1, 2, 4, 8, 16, 24, 32)


def _is_tga(head: bytes, length: int) -> bool:
    """TGA has no signature either: 18 bytes that must fit together, and unless they are packed, all the pixels."""
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
    """Whether the extra `heic` is installed."""
    return importlib.util.find_spec("pillow_heif") is not None
