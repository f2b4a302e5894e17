"""Finds the parts and classes of a folder of photos, and lists the files that are left out, with reasons.

There are two layouts:

    PATH/train/CLASS/x.jpg  PATH/val/CLASS/y.jpg  PATH/test/CLASS/z.jpg      a folder for each part
    PATH/CLASS/x.jpg                                                         one part, 'train'

Folders of parts may be called as in `PART_NAMES`, in any case. A class's images may lie in folders below its own.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxvit.data.image_files import Found, class_name, find_images
from jaxvit.errors import UsageError

# Names of the folders of parts, in any case.
PART_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_FEW = 3  # names that a message gives


@dataclass(frozen=True)
class LeftOut:
    """Files or folders that are left out for one reason.

    Attributes:
      what: their kind, for example 'class folders without an image'.
      count: number of them.
      names: names of the first few.
    """

    what: str
    count: int
    names: tuple[str, ...]

    def __str__(self) -> str:
        """'class folders without an image: 5 (a, b, c, …)'."""
        shown = self.names[:_FEW]
        return f"{self.what}: {self.count:,} ({', '.join(shown)}{', …' if self.count > len(shown) else ''})"


@dataclass(frozen=True)
class PhotoFiles:
    """Image files with their classes.

    Attributes:
      root: the folder that holds them.
      parts: {part: ((file, number of its class), …)}, 'train' first, none of them empty. The order within a part is
        fixed by the names and looks random, so that any stretch of it holds all classes.
      class_names: K names, sorted; ``class_names[number]``.
      left_out: files and folders that are left out.
    """

    root: Path
    parts: dict[str, tuple[tuple[Path, int], ...]]
    class_names: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()

    def without_training_images(self) -> tuple[str, ...]:
        """Classes of other parts that `train` has no image of."""
        trained = {number for _, number in self.parts.get("train", ())}
        return tuple(name for number, name in enumerate(self.class_names) if number not in trained)


def read_photo_folder(path: Path, where: str) -> PhotoFiles:
    """Reads the layout of a folder of photos. `jaxvit.data.image_files` decides which files are images.

    Args:
      path: the folder.
      where: the start of error messages, for example "config.data.name='image_folder:photos'".

    Raises:
      UsageError: there is no such folder, it holds no images in folders of classes, or two folders claim one part.
    """
    if not path.is_dir():
        raise UsageError(f"{where}: there is no such folder")
    try:
        found = find_images(path)
        return _Layout(path, where, found).read()
    except OSError as error:
        raise UsageError(f"{where}: {error.filename or path} cannot be read ({error.strerror})") from None


class _Layout:
    """Derives parts and classes from the paths of the images, and collects what is left out."""

    def __init__(self, path: Path, where: str, found: Found):
        self._path, self._where = path, where
        self._empty = found.empty_folders
        self._left_out = [LeftOut(what, count, names) for what, (count, names) in found.passed_over.items()]
        # Each image with the names of the folders above it, below the whole, and its own.
        self._inside: dict[str, list[tuple[Path, tuple[str, ...]]]] = {"": []}
        for image in found.images:
            inside = image.relative_to(path).parts
            self._inside.setdefault(inside[0] if len(inside) > 1 else "", []).append((image, inside))

    def read(self) -> PhotoFiles:
        folders = self._part_folders()
        whole = not folders.get("train")
        listed = {part: self._classes_of(name) for part, name in folders.items() if name}
        if whole:
            taken = {name for name in folders.values() if name}
            entries = [e for name, found in self._inside.items() if name and name not in taken for e in found]
            listed["train"] = [(file, inside[0], os.fsencode(os.path.join(*inside))) for file, inside in entries]
            self._note("images that lie in no class's folder", [str(i[0]) for _, i in self._inside[""]])
            self._note("class folders without an image", [n for n in self._empty if part_named(n) is None])
        listed = {part: found for part, found in listed.items() if found}
        if not listed:
            raise UsageError(
                f"{self._where}: holds no images in folders named after their classes; it should look like "
                f"{self._path}/CLASS/IMAGE.jpg or {self._path}/train/CLASS/IMAGE.jpg{_for_shards(self._path)}"
            )
        return arrange(self._path, listed, self._left_out)

    def _part_folders(self) -> dict[str, str]:
        """{part: name of its folder}. If 'train' is missing, the whole folder is the training part."""
        self._note("empty folders", [name for name in self._empty if part_named(name)])
        filled = [name for name in self._inside if name]
        others = [name for name in filled if part_named(name) is None]
        found: dict[str, str] = {}
        unlabelled = []
        for name in filled:
            part = part_named(name)
            if part is None:
                continue
            if all(len(inside) == 2 for _, inside in self._inside[name]):
                unlabelled.append((part, name))
            elif part in found:
                raise UsageError(
                    f"{self._where}: {found[part]} and {name} are both the {part} part; put their images into one of "
                    "them, or take one of them out of the folder"
                )
            else:
                found[part] = name
        for part, name in unlabelled:
            if "train" not in found and others:
                continue  # among folders of classes, one called 'test' that holds images itself is a class like them
            folder = self._path / name
            if part == "train" or "train" not in found:
                raise UsageError(
                    f"{self._where}: the images in {folder} lie in no class's folder; it should look like "
                    f"{folder}/CLASS/IMAGE.jpg"
                )
            self._note("images without a class, which `jaxvit predict` takes", self._names(name))
            del self._inside[name]
        if "train" in found:
            for name in others:
                self._note(f"images in the folder {name}, which is not a part", self._names(name))
        return found

    def _classes_of(self, part_folder: str) -> list[tuple[Path, str, bytes]]:
        """(file, class, path within the part as bytes) of the images in the folder of a part."""
        entries = self._inside[part_folder]
        self._note("images that lie in no class's folder", [os.path.join(*i) for _, i in entries if len(i) == 2])
        listed = [
            (file, inside[1], os.fsencode(os.path.join(*inside[1:]))) for file, inside in entries if len(inside) > 2
        ]
        filled = {name for _, name, _ in listed}
        with os.scandir(self._path / part_folder) as entries_there:
            empty = [
                os.path.join(part_folder, e.name)
                for e in entries_there
                if e.is_dir() and e.name not in filled and not e.name.startswith(".")
            ]
        self._note("class folders without an image", sorted(empty))
        return listed

    def _names(self, folder: str) -> list[str]:
        return [os.path.join(*inside) for _, inside in self._inside[folder]]

    def _note(self, what: str, names: list[str]) -> None:
        if names:
            self._left_out.append(LeftOut(what, len(names), tuple(names[:_FEW])))


def _for_shards(folder: Path) -> str:
    """The end of an error message for a folder without images: the pattern of its shards, if it has some."""
    for ending in (".tar", ".parquet"):
        for pattern in (f"*{ending}", f"*/*{ending}"):
            if any(folder.glob(pattern)):
                return f"; its shards are named by a pattern: --data='{folder}/{pattern}'"
    return ""


def part_named(folder: str) -> str | None:
    """The part 'train', 'validation' or 'test' that a folder name stands for; None for other names."""
    return PART_NAMES.get(folder.lower())


def arrange(
    root: Path, listed: dict[str, Sequence[tuple[Path, str, bytes]]], left_out: Sequence[LeftOut] = ()
) -> PhotoFiles:
    """Numbers the classes and orders the files by a hash of their paths.

    Args:
      root: see `PhotoFiles`.
      listed: {part: [(file, class name, path to hash), …]}.
      left_out: see `PhotoFiles`.
    """
    class_names = tuple(sorted({class_name(name) for found in listed.values() for _, name, _ in found}))
    numbers = {name: i for i, name in enumerate(class_names)}
    parts = {}
    for part in sorted(listed, key=("train", "validation", "test").index):
        # File names are bytes, and not always UTF-8.
        ordered = sorted(
            ((hashlib.blake2b(own).digest(), file, numbers[class_name(name)]) for file, name, own in listed[part]),
            key=lambda entry: entry[0],
        )
        parts[part] = tuple((file, number) for _, file, number in ordered)
    return PhotoFiles(root, parts, class_names, tuple(left_out))
