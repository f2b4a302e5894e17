"""The stored splits of a data set: decodes each as a whole, and hashes the contents of its images."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from functools import cached_property
from itertools import zip_longest
from typing import Any

import numpy as np

from jaxvit.data.cache import FORMAT, Decoded, cache_folder, decoded_split
from jaxvit.data.content import BAD, array_content
from jaxvit.data.cut import Contents
from jaxvit.data.decoding import Damage, Limits, Records
from jaxvit.data.depth import Depth, hint
from jaxvit.data.image_store import ImageStore
from jaxvit.data.notes import warn_once
from jaxvit.data.own import OwnStore
from jaxvit.data.prepared import PreparedStore
from jaxvit.errors import UsageError

CACHE_BYTES = 4 << 30  # decoded splits up to this size are cached on disk


class StoredSplits:
    """The stored splits of a data set. For the arguments see `jaxvit.data.dataset.Dataset`."""

    def __init__(
        self,
        store: PreparedStore | ImageStore | OwnStore,
        *,
        on_error: str = "stop",
        side: int = 0,
        limits: Limits | None = None,
        white: int = 0,
    ):
        self._store, self._on_error, self._side = store, on_error, side
        self.limits, self.white = limits or Limits(), white
        self._decoded: dict[str, Decoded] = {}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[H, W, C] as decoded.

        Raises:
          UsageError: the images vary in size, and no side is given.
        """
        if self._side and isinstance(self._store, OwnStore):
            raise UsageError(
                f"config.data.side={self._side}: the images of {self._store.name} are used as they are; set it to 0"
            )
        if self._side:
            return self._side, self._side, self._store.channels
        height, width = self._store.image_shape[:2]
        if not (height and width):
            raise UsageError(
                f"config.data.side=0: the images of {self._store.name} vary in size; set config.data.side to the side, "
                "in pixels, that they are resized to, such as 256"
            )
        return height, width, self._store.channels

    @property
    def skipped(self) -> list[tuple[int, tuple[str, ...]]]:
        """(number, first names, each with the reason) of damaged images, for each split decoded so far."""
        return [(decoded.skipped[0], self._why(decoded)) for decoded in self._decoded.values()]

    def _why(self, decoded: Decoded) -> tuple[str, ...]:
        """The first images that cannot be decoded, as 'cat/1.jpg: it is empty'."""
        root = f"{self._store.name.partition(':')[2]}/"  # the names of files start with their folder's path
        pairs = zip_longest(decoded.skipped[1], decoded.reasons, fillvalue="")
        return tuple(name.removeprefix(root) + (f": {reason}" if reason else "") for name, reason in pairs)

    def fits(self, split: str) -> bool:
        """Whether a decoded split fits into the cache: at most `CACHE_BYTES`, or already in memory."""
        if isinstance(self._store, OwnStore):
            return True
        return self._store.sizes[split] * math.prod(self.image_shape) <= CACHE_BYTES

    def damage(self, announced: int = 0) -> Damage:
        """Returns a new `Damage` with the settings of this data set."""
        return Damage(self._store.name, self._on_error, announced, self.limits, Depth(self.white))

    def decoded(self, split: str) -> Decoded:
        """Opens the whole decoded split from the cache; prints warnings about damaged and dark images."""
        if split not in self._decoded:
            store = self._store
            if isinstance(store, OwnStore):
                self._decoded[split] = store.decoded(split)
                return self._decoded[split]
            settings = f"{store.content(split)}-{self._side}-{self._on_error}"
            if self._on_error == "skip" and self.limits != Limits():
                settings += f"-{self.limits}"  # the limits decide which images are left out
            if self.white:
                settings += f"-white{self.white}"
            label = "".join(c if c.isalnum() else "_" for c in store.name)[-60:]
            folder = cache_folder(store.directory) / f"{label}-{store.version}-{split}-{_digest(settings)}"
            self._decoded[split] = decoded_split(
                _Lazy(store, split), folder, self.image_shape, self._side, self.damage()
            )
            skipped, names = self._decoded[split].skipped[0], self._why(self._decoded[split])
            if skipped:
                shown = "; ".join(names[:5]) + ("; …" if skipped > 5 else "")
                limits = dict.fromkeys(found[1] for name in names if (found := re.search(r"(max_\w+) allows", name)))
                remedy = "".join(f" (--config.data.{limit} raises the limit)" for limit in limits)
                images = "1 damaged image is" if skipped == 1 else f"{skipped:,} damaged images are"
                warn_once(f"warning: {self._store.name} {split}: {images} left out: {shown}{remedy}")
            if said := hint(self._decoded[split].depth, self.white):
                warn_once(f"warning: {self._store.name} {split}: {said}")
        return self._decoded[split]

    def file_names(self, split: str) -> list[str]:
        """Returns the file of each image of a stored split, indexed as in `Contents.rows`; [] if there are no files."""
        if not isinstance(self._store, ImageStore):
            return []
        names = self._store.names(split)
        if not self.fits(split):
            return names
        count, known = self.decoded(split).skipped
        if not count:
            return names
        skipped = {*known}
        shown = self._store.record_names(split)
        kept = [name for name, said in zip(names, shown, strict=True) if said not in skipped]
        # The cache names only the first skipped images, with the folder's path at that time.
        return kept if len(kept) == len(names) - count else self.contents(split).names

    def contents(self, split: str) -> Contents:
        """Returns contents and labels of a stored split, without images that cannot be decoded.

        Raises:
          UsageError: the split is too large for the cache, and its images are not files.
        """
        if isinstance(self._store, ImageStore):
            every, names = self._store.contents(split, self.damage()), self._store.names(split)
            chosen = np.flatnonzero([content != BAD for content in every])
            # The decoded split does not contain files that cannot be decoded.
            rows = np.arange(len(chosen)) if self.fits(split) else chosen
            labels = self._store.labels(split)[chosen]
            return Contents([every[i] for i in chosen], labels, rows, [names[i] for i in chosen])
        if not self.fits(split):
            raise UsageError(
                f"config.data.cut: the {split} split of {self._store.name} is too large to be kept decoded, and only a "
                "set that is kept can be cut by content; name parts of it, such as --config.data.train='train[:90%]' "
                "and --config.data.validation='train[90%:]'"
            )
        decoded = self.decoded(split)
        every = [array_content(image) for image in decoded.images]
        return Contents(every, np.asarray(decoded.labels), np.arange(len(every)), [])


class _Lazy:
    """Records that are opened only if the cache must be built."""

    def __init__(self, store: PreparedStore | ImageStore | OwnStore, split: str):
        self._store, self._split = store, split

    @cached_property
    def _records(self) -> Records:
        return self._store.records(self._split)

    def __len__(self) -> int:
        return len(self._records)

    def read(self, rows: Sequence[int]) -> list[Any]:
        return self._records.read(rows)


def _digest(text: str) -> str:
    return hashlib.blake2b(f"{FORMAT}/{text}".encode(), digest_size=8).hexdigest()
