"""From the bytes of an image file to uint8 pixels, and what happens to files that cannot be read."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from jaxvit.errors import RunFailedError

CHUNK = 256  # records read and decoded together


@dataclass(frozen=True)
class Record:
    """One stored image: its file's bytes, its label, its id ('' = none), and a name for messages."""

    image: bytes
    label: int
    id: str
    name: str


class Records(Protocol):
    """A split as it is stored, by number."""

    def __len__(self) -> int: ...

    def read(self, rows: Sequence[int]) -> list[Record | Exception]:
        """The records, or for each that cannot be read, why."""


def decode(data: bytes, channels: int, side: int = 0) -> np.ndarray:
    """Pixels uint8 [H, W, channels] of a PNG, JPEG, … file.

    Args:
      data: the file's bytes.
      channels: 1 (grey) or 3 (RGB); the file is converted.
      side: the shorter side is resized to this and the centre cut out, [side, side]; 0 = as stored.
    """
    with Image.open(io.BytesIO(data)) as image:
        if side and min(image.size) > 2 * side:
            image.draft(None, (2 * side, 2 * side))  # JPEG only: decodes a smaller picture, several times faster
        image = image.convert("L" if channels == 1 else "RGB")
        if side and image.size != (side, side):
            width, height = image.size
            scale = side / min(width, height)
            size = (max(side, round(width * scale)), max(side, round(height * scale)))
            image = image.resize(size, Image.Resampling.BILINEAR)
            left, top = (size[0] - side) // 2, (size[1] - side) // 2
            image = image.crop((left, top, left + side, top + side))
        pixels = np.asarray(image)
    return pixels[..., None] if channels == 1 else pixels


@dataclass
class Damage:
    """Records that could not be read: counted, and the first few named."""

    owner: str
    on_error: str = "stop"
    count: int = 0
    names: tuple[str, ...] = ()

    def found(self, name: str, error: Exception) -> None:
        """Notes a bad record.

        Raises:
          RunFailedError: unless bad records are to be skipped.
        """
        # Pillow's own sentence for a file of no known format names an object in memory.
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "it is no image" if unknown else (str(error).splitlines() or [type(error).__name__])[0]
        if self.on_error != "skip":
            raise RunFailedError(
                f"{self.owner}: {name} cannot be decoded ({reason[:120]}); repair it, or leave such images out with "
                "--config.data.on_error=skip"
            ) from error
        self.count += 1
        if len(self.names) < 20:
            self.names += (name,)


def decode_records(
    records: Records, rows: Sequence[int], shape: tuple[int, int, int], side: int, damage: Damage, threads: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray, list[str]]]:
    """Yields (images uint8 [n, H, W, C], labels int32 [n], ids) chunk by chunk; damaged records are left out.

    Pillow lets go of the interpreter while it decodes, so threads do work side by side. With one thread, the caller's
    own is used.
    """

    def one(item: Record | Exception) -> np.ndarray | Exception:
        if isinstance(item, Exception):
            return item
        try:
            pixels = decode(item.image, shape[-1], side)
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
            images, labels, ids = [], [], []
            for row, item, pixels in zip(chosen, items, each(one, items), strict=True):
                if isinstance(pixels, Exception):
                    damage.found(item.name if isinstance(item, Record) else f"record {row}", pixels)
                    continue
                images.append(pixels)
                labels.append(item.label)
                ids.append(item.id)
            stacked = np.stack(images) if images else np.empty((0, *shape), np.uint8)
            yield stacked, np.array(labels, np.int32).reshape(-1), ids
