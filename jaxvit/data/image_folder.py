"""`image_folder:PATH` and `image_table:FILE`: image files as a data set.

`jaxvit.data.photo_folder` and `jaxvit.data.label_table` find the files. The images of a split have a pseudo-random
order that depends only on their file names, so that any contiguous part, such as 'train[:90%]', contains all classes.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jaxvit.data.decoding import Limits, Record, Unreadable
from jaxvit.data.image_store import ImageStore
from jaxvit.data.label_table import TABLE_PREFIX, read_label_table
from jaxvit.data.photo_folder import PhotoFiles, part_named, read_photo_folder
from jaxvit.errors import UsageError, is_disk_failure
from jaxvit.files import local_path, make_folder, read_regular, replaced

PREFIX = "image_folder:"


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


class FolderStore(ImageStore):
    """A data set of image files.

    Args:
      name: name of the data set, such as 'image_folder:photos'.
      found: the files and their classes.
      directory: the TFDS directory, which holds the cache of decoded images.
      limits: limits on the size of an image; None = `Limits()`.
    """

    def __init__(self, name: str, found: PhotoFiles, directory: Path, limits: Limits | None = None):
        labels = {part: np.array([label for _, label in files], np.int32) for part, files in found.parts.items()}
        super().__init__(name, directory, found.class_names, labels, found.left_out, limits=limits)
        self._root, self._files = found.root, found.parts

    def records(self, split: str) -> FolderRecords:
        return FolderRecords(self._files[split], self.limits.bytes)

    def content(self, split: str) -> str:
        total = hashlib.blake2b(digest_size=16)
        for (file, label), state in zip(self._files[split], self.states(split), strict=True):
            root = self._root
            own = file.relative_to(root) if file.is_relative_to(root) else file  # a table may name files elsewhere
            words = " ".join(map(str, state)) or "gone"  # a missing file is reported when it is decoded
            total.update(os.fsencode(own) + f"\0{label} {words}\n".encode())
        return total.hexdigest()

    def names(self, split: str) -> list[str]:
        root = self._root
        return [str(file.relative_to(root) if file.is_relative_to(root) else file) for file, _ in self._files[split]]

    def record_names(self, split: str) -> list[str]:
        return [str(file) for file, _ in self._files[split]]

    def states(self, split: str) -> list[list[int]]:
        return [_state(file) for file, _ in self._files[split]]

    def identity(self) -> bytes:
        return os.fsencode(self._root.absolute())

    def source(self, split: str, row: int) -> Path:
        return self._files[split][row][0]


def _state(file: Path) -> list[int]:
    """[size, time of change in ns]; [] if it is gone."""
    try:
        found = file.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]


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
