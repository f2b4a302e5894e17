"""Finds the image files below a folder, by one rule for training, `evaluate`, `predict` and `data show`.

- The content of a file decides whether it is an image (`jaxvit.data.image_kinds`), not its name. A file that has an
  image extension but no image content, such as a failed download, is listed too; decoding it reports the damage.
- Hidden files and folders, system folders, folders with an image extension (``album.png``), and entries that are not
  regular files are skipped.
- Symbolic links are followed. Each file and folder is listed once: at its real path if that is below the folder, else
  at the first link to it. A link to a folder that contains the link is skipped.
- Skipped entries are counted by reason, and the first few of each are named.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from jaxvit.data.image_kinds import HEAD, RAW_ENDINGS, ending_of, has_image_ending, kind_of, reads_heic
from jaxvit.shown import escaped

NAMED = 3  # skipped entries that are named for each reason
# Created by operating systems and NAS devices; they hold copies of photos, thumbnails (@eaDir) or deleted files.
_SYSTEM_FOLDERS = frozenset(("__MACOSX", "@eaDir", "$RECYCLE.BIN", "#recycle", "System Volume Information"))

# Control characters, line ends, and Python's surrogate escapes for bytes that are not UTF-8.
_NO_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

HIDDEN = "hidden files or folders"
SYSTEM = "system folders"
NAMED_AS_IMAGE = "folders named like an image"
NO_IMAGE = "files that are not images"
HEIC = "HEIC photos, which need pip install 'jaxvit[heic]'"
RAW = "camera raw files, which must be converted to JPEG or TIFF"
IRREGULAR = "pipes, devices or sockets"
BROKEN_LINK = "broken links"
TAKEN = "links to files or folders already listed"
UNREADABLE = "folders or files that cannot be read"


@dataclass
class PassedOver:
    """The entries of a folder that were skipped, by reason.

    Attributes:
      counts: {reason: number of entries}.
      names: {reason: the first `NAMED` names}.
    """

    counts: dict[str, int] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    def note(self, reason: str, name: str) -> None:
        """Counts an entry, and keeps its name if it is among the first `NAMED`."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        named = self.names.setdefault(reason, [])
        if len(named) < NAMED:
            named.append(name)

    def add(self, other: PassedOver) -> None:
        """Adds the entries of another object to this one."""
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            named = self.names.setdefault(reason, [])
            named.extend(other.names[reason][: NAMED - len(named)])

    def __len__(self) -> int:
        return sum(self.counts.values())

    def __str__(self) -> str:
        """E.g. 'hidden files or folders: 2 (.a, cat/.b); files that are not images: 9 (x.txt, y.txt, z.txt, …)'."""
        return "; ".join(
            f"{reason}: {count:,} ({', '.join(self.names[reason])}{', …' if count > len(self.names[reason]) else ''})"
            for reason, count in self.counts.items()
        )


@dataclass(frozen=True)
class Found:
    """The images of a folder.

    Attributes:
      folder: the path passed to `find_images`.
      images: paths of the images, starting with `folder`, in the order of their names; images behind links come last.
      empty_folders: sorted names of the direct subfolders that contain no image at any depth.
      passed_over: {reason: (number of skipped entries, first few names, relative to the folder)}.
    """

    folder: Path
    images: tuple[Path, ...]
    empty_folders: tuple[str, ...]
    passed_over: dict[str, tuple[int, tuple[str, ...]]]

    def by_class(self) -> dict[str, list[Path]]:
        """Groups the images by direct subfolder: {`class_name` of the subfolder, or '' for `folder`: paths}, sorted."""
        classes: dict[str, list[Path]] = {}
        for image in self.images:
            inside = image.relative_to(self.folder).parts
            classes.setdefault(class_name(inside[0]) if len(inside) > 1 else "", []).append(image)
        return dict(sorted(classes.items()))


def find_images(folder: Path, *, skip: Collection[str] = ()) -> Found:
    """Finds the images below a folder, at any depth. The module docstring states the rule.

    Args:
      folder: the folder to search.
      skip: names of direct subfolders to ignore; they are not counted as skipped.

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
        inside = {e.name for e in entries if not reason_to_skip(e.name) and e.is_dir() and not has_image_ending(e.name)}
    reasons = {
        reason: (count, tuple(os.path.relpath(name, folder) for name in passed_over.names[reason]))
        for reason, count in passed_over.counts.items()
    }
    here = folder.resolve()
    # A link back into or above the folder is a link already listed, and no empty folder.
    back = {name for name in inside if (target := (folder / name).resolve()) != here / name and _joined(target, here)}
    empty = sorted(class_name(name) for name in inside - filled - back - {*skip} if not reason_to_skip(name))
    return Found(folder, images, tuple(empty), reasons)


def _joined(one: Path, other: Path) -> bool:
    """Whether a folder contains the other, or both are the same."""
    return one.is_relative_to(other) or other.is_relative_to(one)


def class_name(folder: str) -> str:
    r"""Returns the class name of a folder: its name, with bytes that are not UTF-8 and control characters escaped.

    Example:
      >>> class_name("café"), class_name(os.fsdecode(b"caf\xe9")), class_name("new\nline")
      ('café', 'caf\\xe9', 'new\\nline')
    """
    return _NO_TEXT.sub(lambda found: escaped(found[0]), folder)


def walk_images(folder: str, passed_over: PassedOver, skip: Collection[str] = ()) -> Iterator[str]:
    """Yields the images below a folder as they are found; see `find_images`.

    Args:
      folder: path of the folder; the paths of the images start with it.
      passed_over: collects the skipped entries.
      skip: names of direct entries to ignore.

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
    while links:  # a linked folder may contain more links
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
    """Yields the images below a folder without following links; appends each link to `links`."""
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
            if reason := reason_to_skip(entry.name):
                passed_over.note(reason, entry.path)
            elif entry.is_symlink():
                links.append(entry.path)
            elif entry.is_dir(follow_symlinks=False):
                if has_image_ending(entry.name):
                    passed_over.note(NAMED_AS_IMAGE, entry.path)
                    continue
                found = entry.stat(follow_symlinks=False)
                if (found.st_dev, found.st_ino) in seen:  # already reached through a link
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
    """Yields the images in the folder that a link points to."""
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
    """Returns the reason to skip a link to a file; '' if it points to an image, which is added to `taken`."""
    try:
        found = os.stat(link)
        real = os.path.realpath(link)
        parent = os.stat(os.path.dirname(real))
    except (OSError, ValueError):
        return BROKEN_LINK
    identity = found.st_dev, found.st_ino
    if not stat.S_ISREG(found.st_mode):
        return IRREGULAR
    listed = (parent.st_dev, parent.st_ino) in seen and not reason_to_skip(os.path.basename(real))
    if identity in taken or listed:
        return TAKEN
    reason = _no_image(link)
    if not reason:
        taken.add(identity)
    return reason


def reason_to_skip(name: str) -> str:
    """Returns the reason to skip a file or folder because of its name; '' if there is none."""
    if name.startswith("."):
        return HIDDEN
    return SYSTEM if name in _SYSTEM_FOLDERS else ""


def _no_image(file: str) -> str:
    """Returns why a regular file is not an image; '' if it is one or has an image extension."""
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
