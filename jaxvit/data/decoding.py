"""Decodes image files to uint8 pixels, and reports files that cannot be decoded."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import logging
import mmap
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

# Pillow warns about EXIF data, palettes and sizes in some files. Problems that matter raise an error here instead;
# `open_image` checks a size limit below the one at which Pillow warns.
warnings.filterwarnings("ignore", module=r"(PIL|pillow_heif)\b")
logging.getLogger("PIL").addHandler(logging.NullHandler())

CHUNK = 256  # records read and decoded together
_GREY = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes without colour


@dataclass(frozen=True)
class Record:
    """One stored image: the bytes of its file, its label, its id ('' = none), and a name for messages."""

    image: bytes
    label: int
    id: str
    name: str


@dataclass(frozen=True)
class Unreadable:
    """A stored image whose bytes cannot be read: a name for messages, and the error."""

    name: str
    error: Exception


class Records(Protocol):
    """A stored split; records are numbered from 0."""

    def __len__(self) -> int: ...

    def read(self, rows: Sequence[int]) -> list[Record | Unreadable]:
        """Returns the records with these numbers; `Unreadable` for a record that cannot be read."""


@dataclass(frozen=True)
class Limits:
    """Limits on image files: a file of a few bytes can decode to more pixels than fit into memory.

    Attributes:
      pixels: largest height × width of a stored image.
      bytes: largest file size.
    """

    pixels: int = 80_000_000
    bytes: int = 1 << 28


def open_image(source: bytes | Path, limits: Limits | None = None) -> Image.Image:
    """Opens an image with Pillow, without decoding it. The caller closes it.

    The format is detected from the first bytes (`jaxvit.data.image_kinds`); the file name is ignored.

    Args:
      source: bytes or path of the file.
      limits: limits on its size; None = `Limits()`.

    Raises:
      OSError, ValueError: not an image in a supported format, not a regular file, or over the limits.
    """
    most = (limits or Limits()).pixels
    if Image.MAX_IMAGE_PIXELS is not None and most > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = most  # our limit applies; Pillow's must not be lower
    if isinstance(source, Path):
        length = check_regular(source).st_size
        with source.open("rb") as file:
            head = file.read(HEAD)
    else:
        head, length = source[:HEAD], len(source)
    kind = kind_of(head, length)
    if not length:
        raise ValueError("it is empty")
    if not kind:
        raise UnidentifiedImageError("not an image")
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
    b"\xff\xda": (500, "scans"),  # each decodes the whole image again; progressive images have about ten
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
    """Stops libtiff, which Pillow uses for compressed TIFF files, from printing errors that are raised anyway."""
    with contextlib.suppress(Exception):  # in builds that do not export the function, libtiff keeps printing
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
    """Decodes an image file to uint8 [H, W, channels], turned upright, with transparent parts on white.

    Args:
      data: bytes of the file.
      channels: 1 (grey) or 3 (RGB); the image is converted.
      size: (H, W): resizes the image to cover this size, and crops the centre. None = as stored.
      limits: limits on the size of the stored image; None = `Limits()`.
      depth: converts images of more than 8 bits, and records their values; None = keep the upper 8 bits.

    Raises:
      ValueError: the image is over the limits.
      Exception: any error that a decoder raises for damaged bytes.
    """
    with open_image(data, limits) as image:
        return pixels_of(image, channels, size, depth)


def pixels_of(
    image: Image.Image, channels: int, size: tuple[int, int] | None = None, depth: Depth | None = None
) -> np.ndarray:
    """Returns the pixels of a Pillow image, uint8 [H, W, channels]; may change it in place. See `decode`."""
    sixteen = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    if size and min(image.size) > 2 * max(size):
        image.draft(None, (2 * max(size),) * 2)  # JPEG only: decodes at a lower resolution, several times faster
    image = _opaque((depth or Depth()).to_eight_bits(upright(image), sixteen))
    image, mode = _from_lab(image) if image.mode == "LAB" else image, "L" if channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)  # which would copy it
    pixels = np.asarray(_cover(image, *size) if size else image)
    return pixels[..., None] if channels == 1 else pixels


def is_grey(image: Image.Image) -> bool:
    """Whether a Pillow image has a mode without colour."""
    return image.mode in _GREY


def _from_lab(image: Image.Image) -> Image.Image:
    """Converts CIE Lab, as in some TIFF files, to sRGB, which Pillow's `convert` does not support."""
    from PIL import ImageCms

    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "LAB", "RGB"))


_LONG = 16  # how many times more pixels than needed make an image very long


def _cover(image: Image.Image, height: int, width: int) -> Image.Image:
    if image.size == (width, height):
        return image
    scale = max(width / image.width, height / image.height)
    covering = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    left, top = (covering[0] - width) // 2, (covering[1] - height) // 2
    if covering[0] * covering[1] > _LONG * width * height:
        # Crop a very long image before resizing: most of the resized image would be cropped anyway.
        x, y = image.width / covering[0], image.height / covering[1]
        box = (left * x, top * y, (left + width) * x, (top + height) * y)
        return image.resize((width, height), Image.Resampling.BILINEAR, box=box)
    image = image.resize(covering, Image.Resampling.BILINEAR)
    return image.crop((left, top, left + width, top + height))


def upright(image: Image.Image) -> Image.Image:
    """Decodes an image and applies its EXIF orientation, in place. Damaged EXIF data is ignored."""
    image.load()  # for a TIFF, Pillow applies and removes the orientation here
    with contextlib.suppress(Exception):  # damaged EXIF data does not affect the pixels
        ImageOps.exif_transpose(image, in_place=True)
    return image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Returns (width, height) of `upright(image)`. Decodes only a TIFF whose orientation swaps the sides."""
    sides_change_places = False
    with contextlib.suppress(Exception):
        sides_change_places = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    if not sides_change_places:
        return image.size
    # Before decoding, `image.size` of a TIFF is the stored or the upright size, depending on Pillow's version.
    return upright(image).size if image.format == "TIFF" else (image.height, image.width)


def _opaque(image: Image.Image) -> Image.Image:
    """Composites an image with transparency onto white: the colours of transparent pixels are arbitrary."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def why_unreadable(error: Exception) -> str:
    """Returns in a few words why an image cannot be decoded."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"  # Pillow's message names an object in memory
    return first_line(error)[:120]


@dataclass(frozen=True)
class DamageReport:
    """Damage that a process has found since its last report.

    Attributes:
      damaged: (name, reason) of each record that cannot be decoded.
      deep: number of images of more than 8 bits.
      highest: the highest value in such images.
    """

    damaged: tuple[tuple[str, str], ...]
    deep: int
    highest: float


@dataclass
class Damage:
    """Counts the records that cannot be decoded, each once, and keeps the first names. Thread-safe.

    Attributes:
      owner: the data set's name.
      on_error: 'stop' raises an error for a damaged record; 'skip' leaves it out.
      announced: the number of skipped records to name on stderr.
      limits: larger images count as damaged.
      depth: converts images of more than 8 bits, and records their values.
    """

    owner: str
    on_error: str = "stop"
    announced: int = 0
    limits: Limits = field(default_factory=Limits)
    depth: Depth = field(default_factory=Depth)
    _reasons: dict[str, str] = field(default_factory=dict)
    _reported: list[int] = field(default_factory=lambda: [0, 0])  # damaged records, and deep images, in reports so far
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __getstate__(self) -> dict[str, Any]:
        reported = [len(self._reasons), self.depth.count]  # another process reports only what it finds itself
        return {**{name: value for name, value in vars(self).items() if name != "_lock"}, "_reported": reported}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    @property
    def count(self) -> int:
        return len(self._reasons)

    @property
    def names(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(self._reasons)[:20]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why each record in `names` cannot be decoded."""
        with self._lock:
            return tuple(self._reasons.values())[:20]

    @property
    def notes(self) -> dict[str, Any]:
        """The entries for environment.json and result.json; {} if no record is damaged."""
        return {"skipped": self.count, "skipped_names": list(self.names)} if self.count else {}

    def found(self, name: str, error: Exception) -> None:
        """Records a damaged record.

        Raises:
          RunFailedError: `on_error` is 'stop'.
        """
        reason = why_unreadable(error)
        if self.on_error != "skip":
            limit = re.search(r"\b(max_\w+) allows", reason)
            # Training has the first flag of a limit, the other verbs the second.
            remedy = f"raise --config.data.{limit[1]} (or --{limit[1]})" if limit else "repair or remove it"
            raise RunFailedError(
                f"{self.owner}: {name} cannot be decoded ({reason}); {remedy}, or train with "
                "--config.data.on_error=skip, which leaves such images out"
            ) from error
        self._note(name, reason)

    def new_report(self) -> DamageReport:
        """Returns the damage found since the last report, for the process that adds all of it up."""
        with self._lock:
            named, deep = self._reported
            self._reported = [len(self._reasons), self.depth.count]
            new = tuple(list(self._reasons.items())[named:])
            return DamageReport(new, self.depth.count - deep, self.depth.highest)

    def take_report(self, report: DamageReport) -> None:
        """Adds the report of another process."""
        for name, reason in report.damaged:
            self._note(name, reason)
        self.depth.add(report.deep, report.highest)

    def _note(self, name: str, reason: str) -> None:
        with self._lock:
            if name in self._reasons:
                return
            self._reasons[name] = reason
            count = len(self._reasons)
        if count <= self.announced:
            more = "; further ones are only counted" if count == self.announced else ""
            said = f"warning: {self.owner}: {name} is left out ({reason}){more}"
            print(terminal(said), file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Chunk:
    """Decoded records.

    Attributes:
      images: uint8 [n, H, W, C].
      labels: int32 [n].
      ids: n ids; '' = none.
      places: [n], position of each record in the requested rows.
    """

    images: np.ndarray
    labels: np.ndarray
    ids: list[str]
    places: np.ndarray


def decode_records(
    records: Records, rows: Sequence[int], shape: tuple[int, int, int], side: int, damage: Damage, threads: int = 0
) -> Iterator[Chunk]:
    """Decodes records in chunks of `CHUNK`, without damaged records.

    Pillow releases the GIL while it decodes, so threads run in parallel.

    Args:
      records: the stored split.
      rows: numbers of the records.
      shape: [H, W, C] of every decoded image.
      side: resize and crop images to [side, side]; 0 = as stored.
      damage: collects records that cannot be decoded.
      threads: 0 = one per core, at most 8; 1 = decode in the calling thread.

    Raises:
      RunFailedError: a record is damaged, and `damage.on_error` is 'stop'.
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
                if item.label < 0:  # TFDS's label for the test split of a competition
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
