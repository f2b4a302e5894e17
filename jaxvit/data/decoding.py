"""From the bytes of an image file to uint8 pixels, and what happens to files that cannot be read."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import mmap
import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from jaxvit.data.depth import Depth
from jaxvit.data.image_kinds import HEAD, HEIC_REMEDY, kind_of, reads_heic
from jaxvit.errors import RunFailedError, UsageError, first_line
from jaxvit.files import check_regular
from jaxvit.shown import terminal

# Pillow warns of odd EXIF data, palettes and sizes by the file, and logs what it makes of them. What matters of that is
# an error here, in one line; `open_image` has a limit of its own, below the one that Pillow warns at.
warnings.filterwarnings("ignore", module=r"(PIL|pillow_heif)\b")
logging.getLogger("PIL").addHandler(logging.NullHandler())

CHUNK = 256  # records read and decoded together


@dataclass(frozen=True)
class Record:
    """One stored image: its file's bytes, its label, its id ('' = none), and a name for messages."""

    image: bytes
    label: int
    id: str
    name: str


@dataclass(frozen=True)
class Unreadable:
    """A stored image that cannot even be read: its name for messages, and why."""

    name: str
    error: Exception


class Records(Protocol):
    """A split as it is stored, by number."""

    def __len__(self) -> int: ...

    def read(self, rows: Sequence[int]) -> list[Record | Unreadable]:
        """The records, or for each that cannot be read, why."""


@dataclass(frozen=True)
class Limits:
    """How large an image file may be: one of a few bytes can unfold to more than the memory holds.

    Attributes:
      pixels: of the stored image, height × width.
      bytes: of its file.
    """

    pixels: int = 80_000_000
    bytes: int = 1 << 28


def open_image(source: bytes | Path, limits: Limits | None = None) -> Image.Image:
    """A Pillow image whose pixels are not read yet, to be closed.

    It is opened as the one format that its first bytes say (`jaxvit.data.image_kinds`), whatever it is called.

    Args:
      source: the file's bytes, or its name.
      limits: on the size; None = the usual ones.

    Raises:
      OSError, ValueError: it is no such image, no regular file, or larger.
    """
    most = (limits or Limits()).pixels
    if Image.MAX_IMAGE_PIXELS is not None and most > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = most  # who allows more allows Pillow more
    if isinstance(source, Path):
        length = check_regular(source).st_size
        with source.open("rb") as file:
            head = file.read(HEAD)
    else:
        head, length = source[:HEAD], len(source)
    kind = kind_of(head, length)
    if not kind:
        raise UnidentifiedImageError("it is no image")
    if kind == "HEIF":
        if not reads_heic():
            raise ValueError(f"it is HEIC; {HEIC_REMEDY}")
        _register_heic()
    elif kind == "TIFF":
        _silence_libtiff()
    elif kind == "JPEG":
        _check_parts(source)
    try:
        image = Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=(kind,))
    except Image.DecompressionBombError as error:
        [pixels] = re.findall(r"\((\d+) pixels\)", str(error)) or [0]
        raise ValueError(f"it has {int(pixels):,} pixels, and max_pixels allows {most:,}") from error
    if image.width * image.height > most:
        image.close()
        raise ValueError(f"it has {image.height:,}×{image.width:,} pixels, and max_pixels allows {most:,}")
    return image


# How often a JPEG may have what costs time each time: {bytes: (times, what they are)}.
_MOST_OF = {
    b"Exif\0\0": (256, "parts of EXIF data"),  # in parts of 64 kB, which Pillow joins one by one, in quadratic time
    b"\xff\xda": (500, "scans"),  # of which each goes over the whole image; progressive images have about ten
}


def _check_parts(source: bytes | Path) -> None:
    """Refuses a JPEG that is small but would take minutes."""
    with contextlib.ExitStack() as stack:
        data: bytes | mmap.mmap
        if isinstance(source, Path):
            file = stack.enter_context(source.open("rb"))
            data = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        else:
            data = source
        for part, (most, what) in _MOST_OF.items():
            found, place = 0, data.find(part)
            while place >= 0:
                found += 1
                if found > most:
                    raise ValueError(f"it has more than {most} {what}")
                place = data.find(part, place + len(part))


@functools.cache
def _register_heic() -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()


@functools.cache
def _silence_libtiff() -> None:
    """Keeps libtiff, with which Pillow reads packed TIFF files, from writing to stderr what becomes an error anyway."""
    with contextlib.suppress(Exception):  # a build that hides the function goes on as it does
        handler = ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler
        handler.argtypes, handler.restype = (ctypes.c_void_p,), ctypes.c_void_p
        handler(None)


def decode(
    data: bytes,
    channels: int,
    size: tuple[int, int] | None = None,
    limits: Limits | None = None,
    depth: Depth | None = None,
) -> np.ndarray:
    """Pixels uint8 [H, W, channels] of a PNG, JPEG, WebP, … file, upright, transparent parts white.

    Args:
      data: the file's bytes.
      channels: 1 (grey) or 3 (RGB); the file is converted.
      size: (H, W); the image is resized until it just covers this, and the centre cut out. None = as stored.
      limits: on the size of the stored image; None = the usual ones.
      depth: how more than 8 bits become 8, which takes note of their values; None = by their upper 8.

    Raises:
      Exception: whatever a decoder says to damaged bytes; ValueError: the image is larger than the limits.
    """
    with open_image(data, limits) as opened:
        image = opened
        sixteen = any(";16" in str(tile[3]) for tile in image.tile)
        if size and min(image.size) > 2 * max(size):
            image.draft(None, (2 * max(size),) * 2)  # JPEG only: decodes a smaller picture, several times faster
        image = _opaque((depth or Depth()).to_eight_bits(upright(image), sixteen))
        image = (_from_lab(image) if image.mode == "LAB" else image).convert("L" if channels == 1 else "RGB")
        pixels = np.asarray(_cover(image, *size) if size else image)
    return pixels[..., None] if channels == 1 else pixels


def _from_lab(image: Image.Image) -> Image.Image:
    """CIE Lab, which TIFF files can hold, in sRGB: Pillow's `convert` does not."""
    from PIL import ImageCms

    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "LAB", "RGB"))


_LONG = 16  # times as many pixels as are wanted


def _cover(image: Image.Image, height: int, width: int) -> Image.Image:
    if image.size == (width, height):
        return image
    scale = max(width / image.width, height / image.height)
    covering = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    left, top = (covering[0] - width) // 2, (covering[1] - height) // 2
    if covering[0] * covering[1] > _LONG * width * height:
        # All but a small part of a very long image would be made large only to be cut away.
        x, y = image.width / covering[0], image.height / covering[1]
        box = (left * x, top * y, (left + width) * x, (top + height) * y)
        return image.resize((width, height), Image.Resampling.BILINEAR, box=box)
    image = image.resize(covering, Image.Resampling.BILINEAR)
    return image.crop((left, top, left + width, top + height))


def upright(image: Image.Image) -> Image.Image:
    """The image as people see it: turned as its EXIF orientation says. It is decoded and changed in place.

    EXIF data that is damaged turns nothing.
    """
    image.load()  # a TIFF is turned by this already, and has no orientation any more
    with contextlib.suppress(Exception):  # the pixels are there, whatever is wrong with the EXIF data
        ImageOps.exif_transpose(image, in_place=True)
    return image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of `upright(image)`. Only a TIFF that is turned is decoded for it, and changed in place."""
    sides_change_places = False
    with contextlib.suppress(Exception):
        sides_change_places = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    if not sides_change_places:
        return image.size
    # By version, Pillow gives the size of a TIFF as stored or as turned; once it is decoded there is no doubt.
    return upright(image).size if image.format == "TIFF" else (image.height, image.width)


def _opaque(image: Image.Image) -> Image.Image:
    """On white, if any of it is transparent: what lies below transparent pixels is arbitrary."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def why_unreadable(error: Exception) -> str:
    """What is wrong with an image that cannot be decoded, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return "it is no image"  # Pillow's own sentence names an object in memory
    return first_line(error)[:120]


@dataclass
class Damage:
    """Records that could not be read: each counted once, and the first few named. Several threads may share it.

    Attributes:
      owner: the data set's name.
      on_error: 'stop' or 'skip'.
      announced: so many of them are named on stderr as they are found.
      limits: larger images count as records that cannot be read.
      depth: of images of more than 8 bits.
    """

    owner: str
    on_error: str = "stop"
    announced: int = 0
    limits: Limits = field(default_factory=Limits)
    depth: Depth = field(default_factory=Depth)
    _names: dict[str, None] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def count(self) -> int:
        return len(self._names)

    @property
    def names(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(self._names)[:20]

    @property
    def notes(self) -> dict[str, Any]:
        """What environment.json and result.json should tell; nothing, if nothing was found."""
        return {"skipped": self.count, "skipped_names": list(self.names)} if self.count else {}

    def found(self, name: str, error: Exception) -> None:
        """Notes a bad record.

        Raises:
          RunFailedError: unless bad records are to be skipped.
        """
        reason = why_unreadable(error)
        if self.on_error != "skip":
            limit = re.search(r"\b(max_\w+) allows", reason)
            remedy = f"raise --config.data.{limit[1]}" if limit else "repair it"
            raise RunFailedError(
                f"{self.owner}: {name} cannot be decoded ({reason}); {remedy}, or leave such images out with "
                "--config.data.on_error=skip"
            ) from error
        with self._lock:
            if name in self._names:
                return
            self._names[name] = None
            count = len(self._names)
        if count <= self.announced:
            more = "; further ones are only counted" if count == self.announced else ""
            said = f"warning: {self.owner}: {name} is left out ({reason}){more}"
            print(terminal(said), file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Chunk:
    """Decoded records: images uint8 [n, H, W, C], labels int32 [n], ids, and each one's place among those asked for."""

    images: np.ndarray
    labels: np.ndarray
    ids: list[str]
    places: np.ndarray


def decode_records(
    records: Records, rows: Sequence[int], shape: tuple[int, int, int], side: int, damage: Damage, threads: int = 0
) -> Iterator[Chunk]:
    """Decodes chunk by chunk; damaged records are left out.

    Pillow lets go of the interpreter while it decodes, so threads do work side by side. With one thread, the caller's
    own is used.

    Raises:
      RunFailedError: a record is damaged, and such are not to be skipped.
      UsageError: a record has no label.
    """

    def one(item: Record | Unreadable) -> np.ndarray | Exception:
        if isinstance(item, Unreadable):
            return item.error
        try:
            pixels = decode(item.image, shape[-1], (side, side) if side else None, damage.limits, damage.depth)
        except Exception as error:  # a decoder may raise anything on damaged bytes
            return error
        if pixels.shape != shape:
            return ValueError(f"is {'×'.join(map(str, pixels.shape))}, not {'×'.join(map(str, shape))}")
        return pixels

    threads = threads or min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) if threads > 1 else contextlib.nullcontext() as pool:
        each = pool.map if pool else map
        for start in range(0, len(rows), CHUNK):
            chosen = list(rows[start : start + CHUNK])
            items = records.read(chosen)
            images, labels, ids, places = [], [], [], []
            for place, (item, pixels) in enumerate(zip(items, each(one, items), strict=True), start):
                if isinstance(pixels, Exception):
                    damage.found(item.name, pixels)
                    continue
                if item.label < 0:  # so TFDS stores the test split of a competition
                    raise UsageError(
                        f"{damage.owner}: {item.name} has no label, and images without one can be neither trained nor "
                        "tested on; set config.data.test to another split, such as 'validation', or to ''"
                    )
                images.append(pixels)
                labels.append(item.label)
                ids.append(item.id)
                places.append(place)
            stacked = np.stack(images) if images else np.empty((0, *shape), np.uint8)
            yield Chunk(stacked, np.array(labels, np.int32).reshape(-1), ids, np.array(places, int))
