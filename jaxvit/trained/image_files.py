"""Finds image files by name, folder, pattern or list, and decodes them to the shape of a model's input, in order.

Files are found while earlier ones are decoded. At most the names in one folder, or of one pattern, are in memory.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from jaxvit.data.decoding import Limits, is_grey, open_image, pixels_of, why_unreadable
from jaxvit.data.depth import Depth
from jaxvit.data.image_files import PassedOver, class_name, walk_images
from jaxvit.errors import UsageError
from jaxvit.files import read_regular


@dataclass
class Converted:
    """Counts the images that were converted between grey and RGB for the model. Thread-safe.

    Attributes:
      to_grey: images in colour that were converted to grey.
      to_rgb: grey images that were converted to RGB.
    """

    to_grey: int = 0
    to_rgb: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def note(self, grey: bool, channels: int) -> None:
        """Counts an image that is `grey` or not, for a model that takes `channels` channels."""
        with self._lock:
            self.to_grey += not grey and channels == 1
            self.to_rgb += grey and channels == 3

    def __str__(self) -> str:
        """Describes the conversion for a message; '' if no image was converted.

        Example:
          >>> str(Converted(to_grey=2))
          '2 images in colour were converted to grey for this model'
        """
        for count, kind, other in ((self.to_grey, "in colour", "grey"), (self.to_rgb, "in grey", "RGB")):
            if count:
                images = "1 image" if count == 1 else f"{count:,} images"
                was = "was" if count == 1 else "were"
                return f"{images} {kind} {was} converted to {other} for this model"
        return ""


@dataclass(frozen=True)
class ImageFile:
    """A decoded file.

    Attributes:
      name: its path.
      pixels: uint8 [H, W, C]; None if it cannot be decoded.
      error: why it cannot be decoded; '' if it can.
    """

    name: str
    pixels: np.ndarray | None
    error: str = ""


def find_images(
    words: Iterable[str], lines: Iterable[str] = (), passed_over: PassedOver | None = None
) -> Iterator[str]:
    """Yields the image files that command-line words name.

    Args:
      words: files; folders, searched recursively for images by the rule of `jaxvit.data.image_files`; patterns with *,
        ? or **, unless a file of that name exists; '-' stands for `lines`. A folder or pattern without any image is
        yielded itself, so that the caller reports it.
      lines: further words, one per line; blank lines are ignored.
      passed_over: collects the other entries of the folders.
    """
    passed_over = PassedOver() if passed_over is None else passed_over
    for word in words:
        if word == "-":
            yield from find_images((line.rstrip("\r\n") for line in lines if line.strip()), (), passed_over)
        elif os.path.isdir(word):
            inside = walk_images(word, passed_over)
            yield next(inside, word)
            yield from inside
        elif glob.has_magic(word) and not os.path.exists(word):
            found = sorted(glob.iglob(word, recursive=True))
            yield from (name for name in found if not os.path.isdir(name)) if found else (word,)
        else:
            yield word


def refuse_among(names: Iterable[str], figure: Path) -> Iterator[str]:
    """Yields the names of images; raises UsageError at one that the file of a figure would replace."""
    for name in names:
        with contextlib.suppress(OSError):  # a name that leads nowhere is reported where it is read
            if figure.samefile(name):
                raise UsageError(f"--figure={figure}: this is one of the images; name another file")
        yield name


def read_images(
    names: Iterable[str],
    shape: Sequence[int],
    chunk: int,
    limits: Limits | None = None,
    depth: Depth | None = None,
    converted: Converted | None = None,
) -> Iterator[list[ImageFile]]:
    """Yields lists of decoded files, and decodes the next list while the caller uses the current one.

    Args:
      names: paths of the files.
      shape: (H, W, C) of the decoded images, see `jaxvit.data.decoding.decode`.
      chunk: number of files per list; the last may have fewer.
      limits: limits on the size of an image; None = `Limits()`.
      depth: see `jaxvit.data.decoding.decode`.
      converted: counts images that are converted between grey and RGB.
    """

    def read(name: str) -> ImageFile:
        return read_image(name, shape, limits, depth, converted)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        names = iter(names)
        ahead = pool.map(read, list(itertools.islice(names, chunk)))
        while True:
            now, ahead = ahead, pool.map(read, list(itertools.islice(names, chunk)))
            files = list(now)
            if not files:
                return
            yield files


def read_image(
    name: str,
    shape: Sequence[int],
    limits: Limits | None = None,
    depth: Depth | None = None,
    converted: Converted | None = None,
) -> ImageFile:
    """Decodes one file; for the arguments see `read_images`."""
    limits = limits or Limits()
    height, width, channels = shape
    try:
        data = read_regular(name, limits.bytes, "max_bytes")
        if not data:
            return ImageFile(name, None, "it is empty")
        with open_image(data, limits) as image:
            grey = is_grey(image)
            pixels = pixels_of(image, channels, (height, width), depth)
    except OSError as error:
        return ImageFile(name, None, _reason(error))
    except Exception as error:  # a decoder may raise anything on damaged bytes
        return ImageFile(name, None, why_unreadable(error))
    if converted:
        converted.note(grey, channels)
    return ImageFile(name, pixels)


def pixels_in_memory(image: Image.Image | np.ndarray, shape: Sequence[int], depth: Depth | None = None) -> np.ndarray:
    """Converts an image in memory to uint8 [H, W, C] in the same way as a file; the image is not modified.

    Args:
      image: a Pillow image; or an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (RGBA), uint8, or uint16 if grey.
      shape: (H, W, C) of the result.
      depth: see `jaxvit.data.decoding.decode`.

    Raises:
      UsageError: it has another shape or dtype, or cannot be converted.
    """
    if not isinstance(image, Image.Image):
        array = image
        kinds = "a uint8 array [H, W], [H, W, 1], [H, W, 3] (RGB) or [H, W, 4] (RGBA), or a uint16 array [H, W]"
        if array.ndim == 3 and array.shape[-1] == 1:
            array = array[..., 0]
        of_grey = array.ndim == 2 and array.dtype in (np.uint8, np.uint16)
        of_colour = array.ndim == 3 and array.shape[-1] in (3, 4) and array.dtype == np.uint8
        if not (of_grey or of_colour) or 0 in array.shape:
            raise UsageError(f"an image of {image.dtype} {list(image.shape)}: must be {kinds}")
        image = Image.fromarray(np.ascontiguousarray(array))
    height, width, channels = shape
    try:
        return pixels_of(image.copy(), channels, (height, width), depth)
    except UsageError:
        raise
    except Exception as error:  # a decoder may raise anything on damaged bytes
        raise UsageError(f"this image cannot be used: {why_unreadable(error)}") from error


def class_of(file: str, class_names: Sequence[str]) -> str:
    """Returns the class that a file's folder is named after; '' if the folder is not named after a class."""
    name = class_name(os.path.basename(os.path.dirname(file)))
    return name if name in class_names else ""


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no file matches this pattern" if glob.has_magic(str(error.filename)) else "there is no such file"
    if isinstance(error, IsADirectoryError):
        return "there are no images in this folder"
    return error.strerror or why_unreadable(error)
