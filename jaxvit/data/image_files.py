"""Which files below a folder are images: one rule for training, `evaluate`, `predict` and `data show`.

- A file is an image by its content (`jaxvit.data.image_kinds`), whatever it is called. One that is only called like an
  image, such as a download that failed, is listed too: whoever decodes it says that it is damaged.
- Hidden files and folders are passed over, and what systems leave beside photos; so are folders that are called like
  an image, and whatever is no regular file.
- Links are followed. A folder or a file is taken once: where it really lies, if that is below the folder too, else at
  the first link to it. A link to a folder that holds the link leads nowhere.
- Whatever is passed over is counted by its reason, and the first few are named.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from jaxvit.data.image_kinds import HEAD, RAW_ENDINGS, ending_of, has_image_ending, kind_of, reads_heic

NAMED = 3  # of what is passed over for one reason
# Left by systems: copies of the photos, small ones in the case of @eaDir, or what was deleted.
_SYSTEM_FOLDERS = frozenset(("__MACOSX", "@eaDir", "$RECYCLE.BIN", "#recycle", "System Volume Information"))

_NO_TEXT = re.compile("[\udc80-\udcff]")  # bytes of names, as Python reads them

HIDDEN = "hidden files or folders"
SYSTEM = "folders of the system's own"
NAMED_AS_IMAGE = "folders that are called like an image"
NO_IMAGE = "files that are no images"
HEIC = "HEIC photos, which are read with pip install 'jaxvit[heic]'"
RAW = "raw files of cameras, to be converted to JPEG or TIFF"
IRREGULAR = "pipes, devices or sockets"
BROKEN_LINK = "links that lead nowhere"
TAKEN = "links to what is taken already"
UNREADABLE = "folders or files that cannot be read"


@dataclass
class PassedOver:
    """What was not taken for an image, by reason.

    Attributes:
      counts: {reason: how many}.
      names: {reason: the first `NAMED` of them}.
    """

    counts: dict[str, int] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    def note(self, reason: str, name: str) -> None:
        """Counts one; the name is kept if it is among the first."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        named = self.names.setdefault(reason, [])
        if len(named) < NAMED:
            named.append(name)

    def add(self, other: PassedOver) -> None:
        """Takes over what another has noted."""
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            named = self.names.setdefault(reason, [])
            named.extend(other.names[reason][: NAMED - len(named)])

    def __len__(self) -> int:
        return sum(self.counts.values())

    def __str__(self) -> str:
        """'hidden files or folders: 2 (.a, cat/.b); files that are no images: 9 (x.txt, y.txt, z.txt, …)'."""
        return "; ".join(
            f"{reason}: {count:,} ({', '.join(self.names[reason])}{', …' if count > len(self.names[reason]) else ''})"
            for reason, count in self.counts.items()
        )


@dataclass(frozen=True)
class Found:
    """The images of a folder.

    Attributes:
      folder: as it was given.
      images: their paths, which begin with the folder, in the order of names; those behind links come last.
      empty_folders: names of the folders directly inside that hold no image at any depth, sorted.
      passed_over: {reason: (how many, the first few names, relative to the folder)}.
    """

    folder: Path
    images: tuple[Path, ...]
    empty_folders: tuple[str, ...]
    passed_over: dict[str, tuple[int, tuple[str, ...]]]

    def by_class(self) -> dict[str, list[Path]]:
        """{name of the folder directly inside, by `class_name`; '' for the folder itself: its images}, sorted."""
        classes: dict[str, list[Path]] = {}
        for image in self.images:
            inside = image.relative_to(self.folder).parts
            classes.setdefault(class_name(inside[0]) if len(inside) > 1 else "", []).append(image)
        return dict(sorted(classes.items()))


def find_images(folder: Path, *, skip: Collection[str] = ()) -> Found:
    """The images below a folder, at any depth, by the rule that this module's head states.

    Args:
      folder: where to look.
      skip: names of folders directly inside that are another matter: they are neither looked into nor counted.

    Raises:
      OSError: the folder itself cannot be listed.

    Example:
      >>> found = find_images(Path("pets"))  # doctest: +SKIP
      >>> {name: len(files) for name, files in found.by_class().items()}  # doctest: +SKIP
      {'cat': 120, 'dog': 98}
    """
    passed_over = PassedOver()
    images = tuple(map(Path, walk_images(str(folder), passed_over, skip)))
    depth = len(folder.parts)
    filled = {image.parts[depth] for image in images if len(image.parts) > depth + 1}
    with os.scandir(folder) as entries:
        inside = {
            e.name for e in entries if not _reason_to_skip(e.name) and e.is_dir() and not has_image_ending(e.name)
        }
    reasons = {
        reason: (count, tuple(os.path.relpath(name, folder) for name in passed_over.names[reason]))
        for reason, count in passed_over.counts.items()
    }
    empty = sorted(class_name(name) for name in inside - filled - {*skip} if not _reason_to_skip(name))
    return Found(folder, images, tuple(empty), reasons)


def class_name(folder: str) -> str:
    r"""The class that a folder stands for: its name, where bytes that are no UTF-8 are written as '\xe9'.

    Example:
      >>> class_name("café"), class_name(os.fsdecode(b"caf\xe9"))
      ('café', 'caf\\xe9')
    """
    return _NO_TEXT.sub(lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", folder)


def walk_images(folder: str, passed_over: PassedOver, skip: Collection[str] = ()) -> Iterator[str]:
    """The images below a folder, one by one as they are found; see `find_images`.

    Args:
      folder: its path, with which the paths of the images begin.
      passed_over: takes note of what is no image.
      skip: names directly inside that are left alone.

    Raises:
      OSError: the folder itself cannot be listed.
    """
    root = os.stat(folder)
    seen = {(root.st_dev, root.st_ino)}
    links: list[str] = []
    yield from _walk(
        folder, seen, links, passed_over, entries=[entry for entry in _listed(folder) if entry.name not in skip]
    )
    above = {(found.st_dev, found.st_ino) for found in map(os.stat, Path(folder).resolve().parents)}
    to_files: list[str] = []
    while links:  # what lies behind links to folders may hold more of them
        waiting, links = sorted(links), []
        for link in waiting:
            if os.path.isdir(link):
                yield from _follow_to_folder(link, seen, above, links, passed_over)
            else:
                to_files.append(link)
    taken: set[tuple[int, int]] = set()
    for link in sorted(to_files):
        if reason := _why_not_followed(link, seen, taken):
            passed_over.note(reason, link)
        else:
            yield link


def _listed(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _walk(
    folder: str,
    seen: set[tuple[int, int]],
    links: list[str],
    passed_over: PassedOver,
    entries: list[os.DirEntry[str]] | None = None,
) -> Iterator[str]:
    """The images that really lie below a folder; links are put on the list."""
    waiting = [(folder, entries)]
    while waiting:
        folder, entries = waiting.pop()
        if entries is None:
            try:
                entries = _listed(folder)
            except OSError:
                passed_over.note(UNREADABLE, folder)
                continue
        folders = []
        for entry in entries:
            if reason := _reason_to_skip(entry.name):
                passed_over.note(reason, entry.path)
            elif entry.is_symlink():
                links.append(entry.path)
            elif entry.is_dir(follow_symlinks=False):
                if has_image_ending(entry.name):
                    passed_over.note(NAMED_AS_IMAGE, entry.path)
                    continue
                found = entry.stat(follow_symlinks=False)
                if (found.st_dev, found.st_ino) in seen:  # behind a link
                    passed_over.note(TAKEN, entry.path)
                    continue
                seen.add((found.st_dev, found.st_ino))
                folders.append((entry.path, None))
            elif entry.is_file(follow_symlinks=False):
                if reason := _no_image(entry.path):
                    passed_over.note(reason, entry.path)
                else:
                    yield entry.path
            else:
                passed_over.note(IRREGULAR, entry.path)
        waiting.extend(reversed(folders))


def _follow_to_folder(
    link: str, seen: set[tuple[int, int]], above: set[tuple[int, int]], links: list[str], passed_over: PassedOver
) -> Iterator[str]:
    """The images that a link to a folder leads to."""
    found = os.stat(link)
    identity = found.st_dev, found.st_ino
    if identity in seen or identity in above:
        passed_over.note(TAKEN, link)
    elif has_image_ending(link):
        passed_over.note(NAMED_AS_IMAGE, link)
    else:
        seen.add(identity)
        yield from _walk(link, seen, links, passed_over)


def _why_not_followed(link: str, seen: set[tuple[int, int]], taken: set[tuple[int, int]]) -> str:
    """Why a link to a file is passed over; '' = it leads to an image, which now counts as taken."""
    try:
        found = os.stat(link)
        real = os.path.realpath(link)
        parent = os.stat(os.path.dirname(real))
    except (OSError, ValueError):
        return BROKEN_LINK
    identity = found.st_dev, found.st_ino
    if not stat.S_ISREG(found.st_mode):
        return IRREGULAR
    listed = (parent.st_dev, parent.st_ino) in seen and not _reason_to_skip(os.path.basename(real))
    if identity in taken or listed:
        return TAKEN
    reason = _no_image(link)
    if not reason:
        taken.add(identity)
    return reason


def _reason_to_skip(name: str) -> str:
    """Why a file or folder of this name is not even looked at; '' = it is."""
    if name.startswith("."):
        return HIDDEN
    return SYSTEM if name in _SYSTEM_FOLDERS else ""


def _no_image(file: str) -> str:
    """Why a regular file is no image; '' = it is one, or is called like one."""
    ending = ending_of(file)
    if ending in RAW_ENDINGS:
        return RAW
    if has_image_ending(file) and ending not in (".heic", ".heif", ".hif"):
        return ""
    try:
        with open(file, "rb") as stream:
            kind = kind_of(stream.read(HEAD), os.fstat(stream.fileno()).st_size)
    except OSError:
        return "" if has_image_ending(file) else UNREADABLE
    if kind == "HEIF":
        return "" if reads_heic() else HEIC
    return "" if kind or has_image_ending(file) else NO_IMAGE
