"""`image_folder:PATH` and `image_table:FILE`: image files as a data set.

`jaxvit.data.photo_folder` and `jaxvit.data.label_table` find the files. The images of a split have a pseudo-random
order that depends only on their file names, so that any contiguous part, such as 'train[:90%]', contains all classes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from jaxvit.data.cache import cache_folder
from jaxvit.data.content import file_contents
from jaxvit.data.decoding import Damage, Limits, Record, Unreadable, is_grey, open_image, upright_size
from jaxvit.data.label_table import TABLE_PREFIX, read_label_table
from jaxvit.data.photo_folder import PhotoFiles, part_named, read_photo_folder
from jaxvit.errors import UsageError, is_disk_failure
from jaxvit.files import local_path, make_folder, read_regular, replaced

PREFIX = "image_folder:"
_SAMPLE = 300  # files whose size and mode represent the whole set


def open_image_files(
    name: str, directory: Path, limits: Limits | None = None, *, skip_missing: bool = False
) -> FolderStore:
    """Opens 'image_folder:PATH' or 'image_table:FILE'.

    Args:
      name, directory, limits: see `FolderStore`.
      skip_missing: see `jaxvit.data.label_table.read_label_table`.

    Raises:
      UsageError: the folder or table does not exist, or cannot be used.
    """
    prefix = PREFIX if name.startswith(PREFIX) else TABLE_PREFIX
    path = Path(local_path(name.removeprefix(prefix)))
    where = f"config.data.name='{prefix}{path}'"
    if prefix == PREFIX:
        found = read_photo_folder(path, where)
    else:
        found = read_label_table(path, where, skip_missing=skip_missing)
    return FolderStore(f"{prefix}{path}", found, directory, limits)


def save_images(folder: Path, images: Iterable[tuple[np.ndarray, str, str]]) -> None:
    """Writes images as FOLDER/CLASS/NAME.png, which `image_folder:FOLDER` and `jaxvit predict` read.

    An existing file is kept if it is the same image.

    Args:
      folder: created if missing.
      images: (uint8 [H, W, C] with C 1 or 3, class, name) per image. Slashes in class names become underscores, and so
        does a class name of dots only, which would be the folder itself or its parent.

    Raises:
      UsageError: the folder cannot be written, or a file in it is another image of the same name; nothing is written.
    """
    try:
        missing = []
        for pixels, class_name, name in images:
            within = class_name.replace("/", "_")
            file = folder / (within if within.strip(".") else "_" * max(1, len(within))) / f"{name}.png"
            picture = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
            if not os.path.lexists(file):
                missing.append((file, picture))
            elif not _is_file_of(file, picture):
                raise UsageError(f"{file} already exists, and is another image; name another folder")
        for file, picture in missing:
            make_folder(file.parent)
            with replaced(file, sync=False) as beside:
                picture.save(beside, format="PNG")
    except OSError as error:
        if is_disk_failure(error):
            raise
        raise UsageError(f"{folder} cannot be written ({error.strerror or error}); name another folder") from None


def is_among_images(folder: Path, name: str) -> bool:
    """Whether images in a folder, which need not exist, would be images of the data set 'image_folder:PATH' too.

    False for other data sets, for hidden folders, and for folders next to those of the parts.
    """
    if not name.startswith(PREFIX) or name == PREFIX:
        return False
    photos = Path(local_path(name.removeprefix(PREFIX)))
    try:
        inside = folder.resolve().relative_to(photos.resolve()).parts
        parts = [part_named(entry.name) for entry in photos.iterdir() if entry.is_dir()]
    except (OSError, ValueError):  # the data set has no folder, or `folder` is outside of it
        return False
    if any(word.startswith(".") for word in inside):
        return False
    return "train" not in parts or not inside or part_named(inside[0]) is not None


def refuse_among_images(folder: Path, name: str) -> None:
    """Refuses the folder of a run or a sweep whose figures would be images of the data set that it is trained on.

    The run could not be resumed: the data would have another class, named after its folder.

    Raises:
      UsageError: see `is_among_images`.
    """
    if is_among_images(folder, name):
        raise UsageError(
            f"--workdir={folder}: this is among the images of {name}, and the run's figures would become training "
            "images; name a folder outside of it"
        )


def _is_file_of(file: Path, picture: Image.Image) -> bool:
    """Whether a file has exactly the bytes that Pillow writes for an image."""
    written = io.BytesIO()
    picture.save(written, format="PNG")
    try:
        return read_regular(file, written.tell()) == written.getvalue()
    except OSError as error:
        if is_disk_failure(error):
            raise
        return False  # it is longer, or no file


class FolderStore:
    """A data set of image files, with the interface of `jaxvit.data.prepared.PreparedStore`.

    Args:
      name: name of the data set, such as 'image_folder:photos'.
      found: the files and their classes.
      directory: the TFDS directory, which holds the cache of decoded images.
      limits: limits on the size of an image; None = `Limits()`.

    Attributes:
      found: the files and their classes.
    """

    version = ""
    channels = 3

    def __init__(self, name: str, found: PhotoFiles, directory: Path, limits: Limits | None = None):
        self._limits = limits or Limits()
        self.name, self.found, self.directory = name, found, directory
        self.class_names = found.class_names
        self._files = found.parts
        self.sizes = {split: len(files) for split, files in found.parts.items()}

    @cached_property
    def image_shape(self) -> tuple[int | None, ...]:
        """[H, W, 3], with None for H and W if the images differ in size. Slow: opens every file."""
        sizes = set()
        for found in self._files.values():
            for file, _ in found:
                try:
                    with open_image(file, self._limits) as image:
                        sizes.add(upright_size(image))
                except Exception:  # reported when it is decoded
                    continue
                if len(sizes) > 1:
                    return (None, None, 3)
        width, height = sizes.pop() if sizes else (None, None)
        return (height, width, 3)

    def records(self, split: str) -> FolderRecords:
        return FolderRecords(self._files[split], self._limits.bytes)

    def content(self, split: str) -> str:
        """Returns a hash of the names, sizes, modification times and labels of a split's files. Does not read them."""
        total = hashlib.blake2b(digest_size=16)
        for file, label in self._files[split]:
            try:
                found = file.stat()
                state = f"{found.st_size} {found.st_mtime_ns}"
            except OSError:  # reported when it is decoded
                state = "gone"
            root = self.found.root
            own = file.relative_to(root) if file.is_relative_to(root) else file  # a table may name files elsewhere
            total.update(os.fsencode(own) + f"\0{label} {state}\n".encode())
        return total.hexdigest()

    def sample_sizes(self) -> list[tuple[int, int]]:
        """Returns the upright (height, width) of up to 300 readable files, spread evenly over the set."""
        return [size for size, _ in self._sample]

    @property
    def is_grey(self) -> bool:
        """Whether all files of the sample (see `sample_sizes`) are greyscale."""
        return bool(self._sample) and all(grey for _, grey in self._sample)

    @cached_property
    def _sample(self) -> list[tuple[tuple[int, int], bool]]:
        """[((height, width), whether it is grey), …] for each file of the sample."""
        files = [file for found in self._files.values() for file, _ in found]
        found = []
        for i in np.unique(np.linspace(0, len(files) - 1, min(len(files), _SAMPLE)).astype(int)):
            with contextlib.suppress(Exception), open_image(files[i], self._limits) as image:
                grey = is_grey(image)
                width, height = upright_size(image)
                found.append(((height, width), grey))
        return found

    def labels(self, split: str) -> np.ndarray:
        """Returns the class index of each file: int32 [N]."""
        return np.array([label for _, label in self._files[split]], np.int32)

    def names(self, split: str) -> list[str]:
        """Returns the path of each file, relative to the folder if the file is inside it."""
        root = self.found.root
        return [str(file.relative_to(root) if file.is_relative_to(root) else file) for file, _ in self._files[split]]

    def contents(self, split: str, damage: Damage) -> list[bytes]:
        """See `jaxvit.data.content.file_contents`."""
        files = [file for file, _ in self._files[split]]
        own = os.fsencode(self.found.root.absolute()) + f"{split}{damage.depth.white or ''}".encode()
        name = hashlib.blake2b(own, digest_size=8).hexdigest()
        return file_contents(files, damage, cache_folder(self.directory) / f"contents-{name}.json")


class FolderRecords:
    """The files of one split, as `jaxvit.data.decoding.Records`."""

    def __init__(self, files: Sequence[tuple[Path, int]], most_bytes: int):
        self._files, self._most = files, most_bytes
        self.labels = np.array([label for _, label in files], np.int32)

    def __len__(self) -> int:
        return len(self._files)

    def read(self, rows: Sequence[int]) -> list[Record | Unreadable]:
        return [self._read_one(*self._files[row]) for row in rows]

    def _read_one(self, file: Path, label: int) -> Record | Unreadable:
        try:
            return Record(read_regular(file, self._most, "max_bytes"), label, "", str(file))
        except OSError as error:
            return Unreadable(str(file), OSError(error.strerror or str(error)))
