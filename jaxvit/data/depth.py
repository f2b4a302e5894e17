"""Converts images of more than 8 bits per value to 8 bits, and records their highest value.

Cameras and scanners with 10, 12 or 14 bits write 16-bit files, which look nearly black if 65,535 is white.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

FULL = 65_535  # white, in 16 bits


@dataclass
class Depth:
    """Converts images of more than 8 bits to 8, and records their values. Thread-safe.

    Attributes:
      white: values at or above it become 255. 0 = 65,535 for 16-bit images; 32-bit images (integer or float) are then
        rejected, because the range of their values is unknown.
      count: images of 16 bits or more read so far.
      highest: the highest value in them; for colour images, a multiple of 257.
    """

    white: int = 0
    count: int = 0
    highest: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def to_eight_bits(self, image: Image.Image, sixteen_stored: bool = False) -> Image.Image:
        """Returns the image with 8 bits. (Pillow's `convert` clips grey values above 255, so images turn white.)

        Args:
          image: a decoded image.
          sixteen_stored: whether its file has 16 bits; of 16-bit colour, or grey with alpha, Pillow reads the upper 8.

        Raises:
          ValueError: the range of the values is unknown.
        """
        # Some versions of Pillow read 16-bit files as mode I. In these formats, mode I always means 16 bits.
        sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM", "JPEG2000"))
        if not sixteen and image.mode not in ("I", "F"):
            return self._from_upper_bits(image) if sixteen_stored else image
        if not sixteen and not self.white:
            raise ValueError(
                f"its pixels are 32-bit numbers (mode {image.mode}) of unknown range; set data.white to the value that "
                "is white, or save it with 8 or 16 bits"
            )
        values = np.asarray(image)
        self._note(float(np.nanmax(values)))
        if not self.white:
            return Image.fromarray((values.astype(np.int32) >> 8).astype(np.uint8))
        scaled = np.nan_to_num(np.clip(values.astype(np.float32) * (255 / self.white), 0, 255))
        return Image.fromarray(np.rint(scaled).astype(np.uint8))

    def _from_upper_bits(self, image: Image.Image) -> Image.Image:
        colours, alpha = image.getbands(), image.mode in ("LA", "RGBA")
        shown = [image.getchannel(colour) for colour in colours[: len(colours) - alpha]]
        self._note(257.0 * max(high for _, high in (band.getextrema() for band in shown)))
        if not self.white:
            return image
        table = [min(255, round(value * 257 * 255 / self.white)) for value in range(256)]
        bands = [band.point(table) for band in shown]
        return Image.merge(image.mode, [*bands, image.getchannel("A")] if alpha else bands)

    def _note(self, highest: float) -> None:
        self.add(1, highest)

    def add(self, count: int, highest: float) -> None:
        """Records so many more images of 16 bits or more, and the highest value in them."""
        with self._lock:
            self.count += count
            self.highest = max(self.highest, highest)

    def __getstate__(self) -> dict[str, float]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, float]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    @property
    def notes(self) -> dict[str, float]:
        """The statistics as JSON values; {} if no image has more than 8 bits."""
        return {"count": self.count, "highest": self.highest} if self.count else {}


def hint(seen: Mapping[str, float], white: int = 0) -> str:
    """Returns advice for 16-bit images that use less than half of their range; '' for others.

    Args:
      seen: `Depth.notes`.
      white: `Depth.white`.

    Example:
      >>> hint({"count": 3, "highest": 4000.0})
      '3 images of 16 bits hold no value above 4,000, of 65,535, and come out dark: --config.data.white=4095 makes them as bright as they are meant'
    """  # noqa: E501
    if white or not seen or not 0 < seen["highest"] <= FULL // 2:
        return ""
    bits = max(8, int(seen["highest"]).bit_length())
    return (
        f"{int(seen['count']):,} images of 16 bits hold no value above {int(seen['highest']):,}, of {FULL:,}, and come "
        f"out dark: --config.data.white={2**bits - 1} makes them as bright as they are meant"
    )
