"""Finds the shards that a data set's name stands for, and the part of each: 'tar:PATTERN' and 'parquet:PATTERN'.

A pattern has `*`, `?`, `[…]`, `**` for folders at any depth, `{a,b}` for one of several words, and `{000..146}` for
numbers. The part of a shard is a word in its file name or in a folder that the pattern leaves open: `train-000.tar`,
`data/validation-00000-of-00002.parquet`, `val/7.tar`. If no name has such a word, all shards are training images.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxvit.data.photo_folder import PART_NAMES, LeftOut
from jaxvit.errors import UsageError
from jaxvit.files import check_regular

TAR_PREFIX, PARQUET_PREFIX = "tar:", "parquet:"
# Endings that tell which prefix a path needs. Compressed archives are named here so that their error can say more.
TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
PARQUET_ENDINGS = (".parquet",)
_MOST = 100_000  # names that braces may stand for
_FEW = 2  # shards of each part that `Shards.__str__` names


@dataclass(frozen=True)
class Shards:
    """The shards of a data set.

    Attributes:
      root: the folder that names are relative to.
      parts: {part: shards, sorted}, 'train' first, none of them empty.
      left_out: shards that belong to no part.
      named: whether the parts were found in the names.
    """

    root: Path
    parts: dict[str, tuple[Path, ...]]
    left_out: tuple[LeftOut, ...]
    named: bool

    def __str__(self) -> str:
        """E.g. '2 train (train-0.tar, train-1.tar), 1 test (test-0.tar); parts by the names of the shards'."""
        said = []
        for part, shards in self.parts.items():
            few = [os.path.relpath(shard, self.root) for shard in shards[:_FEW]] + ["…"] * (len(shards) > _FEW)
            said.append(f"{len(shards):,} {part} ({', '.join(few)})")
        how = "parts by the names of the shards" if self.named else "no shard's name has the name of a part"
        return f"{', '.join(said)}; {how}"


def shard_prefix(path: str) -> str:
    """Returns 'tar:' or 'parquet:' for a path or pattern of shards, by its ending; '' for another path.

    Example:
      >>> shard_prefix("pets/*.tar"), shard_prefix("pets")
      ('tar:', '')
    """
    ending = path.lower()
    return TAR_PREFIX if ending.endswith(TAR_ENDINGS) else PARQUET_PREFIX if ending.endswith(PARQUET_ENDINGS) else ""


def find_shards(pattern: str, where: str) -> Shards:
    """Finds the shards of a pattern or a path, and their parts.

    Args:
      pattern: an absolute pattern or path.
      where: the start of error messages.

    Raises:
      UsageError: there is no such file, or the names of a shard tell two parts.
    """
    root, found = Path(os.path.dirname(pattern)), {}
    if os.path.lexists(pattern):
        found[Path(pattern)] = pattern
    else:
        patterns = list(itertools.islice(_braces(pattern), _MOST + 1))
        if len(patterns) > _MOST:
            raise UsageError(f"{where}: its braces stand for more than {_MOST:,} names; write * for the numbers")
        if not patterns:
            raise UsageError(
                f"{where}: its braces stand for no number; write the smaller one first, as in {{000..146}}"
            )
        root = Path(os.path.commonpath([_fixed(one) for one in patterns]))
        for one in patterns:
            for name in sorted(glob.glob(one, recursive=True)) if glob.has_magic(one) else [one]:
                if os.path.isdir(name):
                    continue
                if not os.path.lexists(name):
                    raise UsageError(f"{where}: there is no file {name}")
                found.setdefault(Path(name), one)
    if not found:
        raise UsageError(f"{where}: no file matches; write the pattern in quotes, such as --data='DIR/*.tar'")
    for shard in found:
        try:
            check_regular(shard)
        except OSError as error:
            raise UsageError(f"{where}: {shard} cannot be read ({error.strerror})") from None
    by_part: dict[str, list[Path]] = {}
    for shard in sorted(found):
        by_part.setdefault(_part_of(shard, root, where), []).append(shard)
    others, left_out = by_part.pop("", []), []
    named = bool(by_part)
    if others and "train" in by_part:
        names = tuple(os.path.relpath(shard, root) for shard in others[:3])
        left_out = [LeftOut("shards of no part", len(others), names)]
    elif others:
        by_part["train"] = others
    parts = {part: tuple(by_part[part]) for part in ("train", "validation", "test") if part in by_part}
    return Shards(root, parts, tuple(left_out), named)


def _part_of(shard: Path, root: Path, where: str) -> str:
    """The part that a shard's name, or the names of its folders below `root`, tell; '' = none."""
    inside = os.path.relpath(shard, root) if shard.is_relative_to(root) else shard.name
    folders, _, name = inside.rpartition("/")
    stem = name.rpartition(".")[0]
    said = {PART_NAMES[word] for word in re.split(r"[^a-z]+", stem.lower()) if word in PART_NAMES}
    said |= {PART_NAMES[folder.lower()] for folder in folders.split("/") if folder.lower() in PART_NAMES}
    if len(said) > 1:
        raise UsageError(f"{where}: the name of {shard} tells two parts ({' and '.join(sorted(said))}); rename it")
    return said.pop() if said else ""


def _fixed(pattern: str) -> str:
    """The folder above the first part of a pattern that has a wildcard."""
    above = list(itertools.takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts))
    return str(Path(*(above if len(above) < len(Path(pattern).parts) else above[:-1])))


_BRACES = re.compile(r"\{([^{}]*)\}")


def _braces(pattern: str) -> Iterator[str]:
    """Yields the patterns that one with `{a,b}` or `{00..12}` stands for; other braces stay as they are."""
    for found in _BRACES.finditer(pattern):
        numbers = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", found[1])
        if numbers:
            first, last = int(numbers[1]), int(numbers[2])
            words: Sequence[str] | Iterator[str] = (
                f"{number:0{len(numbers[1])}d}" for number in range(first, last + 1)
            )
        elif "," in found[1]:
            words = found[1].split(",")
        else:
            continue
        for word in words:
            yield from _braces(pattern[: found.start()] + word + pattern[found.end() :])
        return
    yield pattern
