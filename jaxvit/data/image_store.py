"""`ImageStore`: what data sets of encoded images with listed labels have in common, in a folder or in shards."""

from __future__ import annotations

import abc
import contextlib
import hashlib
from functools import cached_property
from pathlib import Path

import numpy as np

from jaxvit.data.cache import cache_folder
from jaxvit.data.content import stored_contents
from jaxvit.data.decoding import Damage, Limits, Record, Records, is_grey, open_image, upright_size
from jaxvit.data.photo_folder import LeftOut

_SAMPLE = 300  # images whose size and mode represent the whole set


class ImageStore(abc.ABC):
    """A data set of encoded images whose labels and names are known without decoding.

    It has the interface of `jaxvit.data.prepared.PreparedStore`.

    Args:
      name: name of the data set, such as 'image_folder:photos'.
      directory: the TFDS directory, which holds the cache of decoded images.
      class_names: K names.
      labels: {split: int32 [N], the class index of each image}, 'train' first.
      left_out: files and images that do not belong to the set.
      understood: how the files were understood, one line; '' = nothing to say.
      limits: limits on the size of an image; None = `Limits()`.
    """

    version = ""
    channels = 3

    def __init__(
        self,
        name: str,
        directory: Path,
        class_names: tuple[str, ...],
        labels: dict[str, np.ndarray],
        left_out: tuple[LeftOut, ...] = (),
        understood: str = "",
        limits: Limits | None = None,
    ):
        self.name, self.directory, self.class_names = name, directory, class_names
        self.left_out, self.understood, self.limits = left_out, understood, limits or Limits()
        self._labels = labels
        self.sizes = {split: len(each) for split, each in labels.items()}

    @abc.abstractmethod
    def records(self, split: str) -> Records:
        """Returns the encoded images of a split."""

    @abc.abstractmethod
    def content(self, split: str) -> str:
        """Returns a hash of the names, sizes, modification times and labels of a split's images; does not read them."""

    @abc.abstractmethod
    def names(self, split: str) -> list[str]:
        """Returns the name of each image, relative to the data set's folder."""

    @abc.abstractmethod
    def record_names(self, split: str) -> list[str]:
        """Returns the name of each image in messages, as in `jaxvit.data.decoding.Record.name`."""

    @abc.abstractmethod
    def states(self, split: str) -> list[list[int]]:
        """Returns numbers for each image that change when it is replaced; [] = it is gone."""

    @abc.abstractmethod
    def identity(self) -> bytes:
        """Returns what distinguishes the set from others with the same cache folder."""

    def source(self, split: str, row: int) -> bytes | Path:
        """Returns the bytes of an image or its file, to look at its size.

        Raises:
          Exception: it cannot be read.
        """
        [found] = self.records(split).read([row])
        if isinstance(found, Record):
            return found.image
        raise found.error

    def labels(self, split: str) -> np.ndarray:
        """Returns the class index of each image: int32 [N]."""
        return self._labels[split]

    def without_training_images(self) -> tuple[str, ...]:
        """Classes that have no image in `train`."""
        trained = np.unique(self._labels.get("train", np.zeros(0, np.int32)))
        return tuple(name for number, name in enumerate(self.class_names) if number not in trained)

    @cached_property
    def image_shape(self) -> tuple[int | None, ...]:
        """[H, W, 3], with None for H and W if the images differ in size. Slow: opens every image."""
        sizes = set()
        for split, count in self.sizes.items():
            for row in range(count):
                try:
                    with open_image(self.source(split, row), self.limits) as image:
                        sizes.add(upright_size(image))
                except Exception:  # reported when it is decoded
                    continue
                if len(sizes) > 1:
                    return (None, None, 3)
        width, height = sizes.pop() if sizes else (None, None)
        return (height, width, 3)

    def sample_sizes(self) -> list[tuple[int, int]]:
        """Returns the upright (height, width) of up to 300 readable images, spread evenly over the set."""
        return [size for size, _ in self._sample]

    @property
    def is_grey(self) -> bool:
        """Whether all images of the sample (see `sample_sizes`) are greyscale."""
        return bool(self._sample) and all(grey for _, grey in self._sample)

    @cached_property
    def _sample(self) -> list[tuple[tuple[int, int], bool]]:
        """[((height, width), whether it is grey), …] for each image of the sample."""
        places = [(split, row) for split, count in self.sizes.items() for row in range(count)]
        found = []
        for i in np.unique(np.linspace(0, len(places) - 1, min(len(places), _SAMPLE)).astype(int)):
            with contextlib.suppress(Exception), open_image(self.source(*places[i]), self.limits) as image:
                grey = is_grey(image)
                width, height = upright_size(image)
                found.append(((height, width), grey))
        return found

    def contents(self, split: str, damage: Damage) -> list[bytes]:
        """See `jaxvit.data.content.stored_contents`."""
        own = self.identity() + f"{split}{damage.depth.white or ''}".encode()
        memo = cache_folder(self.directory) / f"contents-{hashlib.blake2b(own, digest_size=8).hexdigest()}.json"
        return stored_contents(self.records(split), self.record_names(split), self.states(split), damage, memo)
