"""Image files by name, folder, pattern or list: found, and decoded to what a model takes, in the order asked for.

They are found while others are decoded; what is kept of those to come are the names in one folder, or of one pattern.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxvit.data.decoding import Limits, decode, why_unreadable
from jaxvit.data.depth import Depth
from jaxvit.data.image_files import PassedOver, walk_images
from jaxvit.errors import UsageError
from jaxvit.files import read_regular


@dataclass(frozen=True)
class ImageFile:
    """One file: its name as it was found, and its pixels uint8 [H, W, C], or why there are none."""

    name: str
    pixels: np.ndarray | None
    error: str = ""


def find_images(
    words: Iterable[str], lines: Iterable[str] = (), passed_over: PassedOver | None = None
) -> Iterator[str]:
    """The files that words name, one by one.

    Args:
      words: files; folders, searched to their depths for images by the rule of `jaxvit.data.image_files`; patterns with
        *, ? or **, should no such file exist; '-' = the lines. A folder or a pattern that holds none is named itself.
      lines: more of such words, one a line; blank ones are passed over.
      passed_over: takes note of what the folders hold besides.
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
) -> Iterator[list[ImageFile]]:
    """Decodes files, `chunk` at a time, while the chunk before is being used.

    Args:
      names: of the files.
      shape: (H, W, C) to bring them to, see `jaxvit.data.decoding.decode`.
      chunk: how many are yielded together; fewer at the end.
      limits: on the size of a file; None = the usual ones.
      depth: see `jaxvit.data.decoding.decode`.
    """
    limits = limits or Limits()
    height, width, channels = shape

    def read(name: str) -> ImageFile:
        try:
            data = read_regular(name, limits.bytes, "max_bytes")
            if not data:
                return ImageFile(name, None, "it is empty")
            return ImageFile(name, decode(data, channels, (height, width), limits, depth))
        except OSError as error:
            return ImageFile(name, None, _reason(error))
        except Exception as error:  # a decoder may raise anything on damaged bytes
            return ImageFile(name, None, why_unreadable(error))

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        names = iter(names)
        ahead = pool.map(read, list(itertools.islice(names, chunk)))
        while True:
            now, ahead = ahead, pool.map(read, list(itertools.islice(names, chunk)))
            files = list(now)
            if not files:
                return
            yield files


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no file is like this pattern" if glob.has_magic(str(error.filename)) else "there is no such file"
    if isinstance(error, IsADirectoryError):
        return "there are no images in this folder"
    return error.strerror or why_unreadable(error)
