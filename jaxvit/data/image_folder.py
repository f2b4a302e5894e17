"""`image_folder:PATH`: images in folders named after their classes, PATH/train/CLASS/x.jpg, PATH/val/CLASS/y.png, …

The classes are the sorted names of the folders of all splits. Within a split, images stand in an order that is fixed by
their file names but looks random, so that any contiguous part, such as 'train[:90%]', holds all classes: a missing
validation split can be cut off the training split. Without a folder PATH/train, PATH itself is the split `train`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from jaxvit.data.decoding import Limits, Record, Unreadable, open_image, upright_size
from jaxvit.data.image_files import find_images
from jaxvit.errors import UsageError, is_disk_full
from jaxvit.files import read_regular

PREFIX = "image_folder:"
_SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}


def save_images(folder: Path, images: Iterable[tuple[np.ndarray, str, str]]) -> None:
    """Writes images as FOLDER/CLASS/NAME.png, which `image_folder:FOLDER` and `jaxvit predict` read.

    Args:
      folder: made when missing.
      images: (uint8 [H, W, C] with C 1 or 3, class, name) of each. A slash in a class's name becomes an underscore.

    Raises:
      UsageError: the folder cannot be written.
    """
    try:
        for pixels, class_name, name in images:
            of_class = folder / class_name.replace("/", "_")
            of_class.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(of_class / f"{name}.png")
    except OSError as error:
        if is_disk_full(error):
            raise
        raise UsageError(f"{folder} cannot be written ({error.strerror or error}); name another folder") from None


class FolderStore:
    """A folder of images; the attributes are those of `jaxvit.data.prepared.PreparedStore`.

    Args:
      path: the folder.
      directory: the TFDS directory, beside which the decoded images are kept.
      limits: on the size of an image.
    """

    version = ""
    channels = 3

    def __init__(self, path: Path, directory: Path, limits: Limits | None = None):
        self._limits = limits or Limits()
        self.name = f"{PREFIX}{path}"
        self.directory = directory
        if not path.is_dir():
            raise UsageError(f"config.data.name='{self.name}': there is no such folder")
        roots = {_SPLITS[p.name]: p for p in sorted(path.iterdir()) if p.is_dir() and p.name in _SPLITS}
        if "train" not in roots:
            roots = {"train": path, **{split: root for split, root in roots.items()}}
        taken = {root.name for root in roots.values() if root != path}
        files = {
            split: [
                (name, file)
                for name, images in find_images(root, skip=taken).by_class().items()
                if name
                for file in images
            ]
            for split, root in roots.items()
        }
        self.class_names = tuple(sorted({name for found in files.values() for name, _ in found}))
        if not files["train"]:
            raise UsageError(
                f"config.data.name='{self.name}': holds no images in folders named after their classes; it should look "
                f"like {path}/train/CLASS/IMAGE.jpg"
            )
        numbers = {name: i for i, name in enumerate(self.class_names)}
        self._files = {
            split: sorted(
                ((file, numbers[name]) for name, file in found),
                # File names are bytes, and not always UTF-8.
                key=lambda pair, root=roots[split]: hashlib.blake2b(os.fsencode(pair[0].relative_to(root))).digest(),
            )
            for split, found in files.items()
        }
        self._path = path
        self.sizes = {split: len(found) for split, found in self._files.items()}

    @cached_property
    def image_shape(self) -> tuple[int | None, ...]:
        """The size of all images; None where they differ. Opens every file: to be asked for only where it matters."""
        sizes = set()
        for found in self._files.values():
            for file, _ in found:
                try:
                    with open_image(file, self._limits) as image:
                        sizes.add(upright_size(image))
                except Exception:  # named when it is decoded
                    continue
                if len(sizes) > 1:
                    return (None, None, 3)
        width, height = sizes.pop() if sizes else (None, None)
        return (height, width, 3)

    def records(self, split: str) -> FolderRecords:
        return FolderRecords(self._files[split], self._limits.bytes)

    def content(self, split: str) -> str:
        """A hash of the names, sizes and times of change of a split's files, and of their classes; none is read."""
        total = hashlib.blake2b(digest_size=16)
        for file, label in self._files[split]:
            try:
                found = file.stat()
                state = f"{found.st_size} {found.st_mtime_ns}"
            except OSError:  # named when it is decoded
                state = "gone"
            total.update(os.fsencode(file.relative_to(self._path)) + f"\0{label} {state}\n".encode())
        return total.hexdigest()


class FolderRecords:
    """One split; see `jaxvit.data.decoding.Records`."""

    def __init__(self, files: Sequence[tuple[Path, int]], most_bytes: int):
        self._files, self._most = files, most_bytes

    def __len__(self) -> int:
        return len(self._files)

    def read(self, rows: Sequence[int]) -> list[Record | Unreadable]:
        return [self._read_one(*self._files[row]) for row in rows]

    def _read_one(self, file: Path, label: int) -> Record | Unreadable:
        try:
            return Record(read_regular(file, self._most, "max_bytes"), label, "", str(file))
        except OSError as error:
            return Unreadable(str(file), OSError(error.strerror or str(error)))
