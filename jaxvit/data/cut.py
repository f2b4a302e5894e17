"""Splits that a data set does not store: missing parts, and the folds of a cross-validation.

`jaxvit.data.split_by_content` cuts them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from jaxvit.data.split_by_content import SHARES, cut_by_content, fold_by_content
from jaxvit.errors import UsageError

Pieces = dict[str, list[tuple[str, np.ndarray]]]


@dataclass(frozen=True)
class Contents:
    """Contents and labels of the images of a stored split, without images that cannot be decoded.

    Attributes:
      hashes: content hash of each image [N].
      labels: int [N].
      rows: index of each image in its split [N].
      names: file names [N]; [] if the images are not files.
    """

    hashes: list[bytes]
    labels: np.ndarray
    rows: np.ndarray
    names: list[str]


@dataclass(frozen=True)
class Cut:
    """How splits are cut.

    Attributes:
      folds: number of folds of the images of `train` and `validation`. One fold becomes `test`, a tenth of the rest
        `validation`. 0 = no folds: missing splits `validation` and `test` are cut off `train`.
      fold: index of the fold that becomes `test`.
    """

    folds: int = 0
    fold: int = 0

    def pieces(self, sizes: Mapping[str, int], contents: Callable[[str], Contents], owner: str) -> Pieces:
        """{split: [(stored split, indices of images in it, ascending), …]}.

        Args:
          sizes: number of images in each stored split.
          contents: stored split -> its contents.
          owner: name of the data set, for errors.

        Raises:
          UsageError: there is no split to cut, or it holds too few images.
        """
        if "train" not in sizes:
            raise UsageError(f"config.data.cut: {owner} has no split 'train' to cut; it has {', '.join(sizes)}")
        return self._folds(sizes, contents, owner) if self.folds else self._parts(sizes, contents, owner)

    def _parts(self, sizes: Mapping[str, int], contents: Callable[[str], Contents], owner: str) -> Pieces:
        missing = {part: share for part, share in SHARES.items() if part not in sizes}
        train = contents("train")
        rows = cut_by_content(train.hashes, train.labels, missing)
        bad = sizes["train"] - len(train.rows)
        besides = f" ({bad} more cannot be decoded)" if bad else ""
        for part in missing:
            if not len(rows[part]):
                raise UsageError(
                    f"config.data.cut: the {len(train.rows)} images of {owner}{besides} are too few to cut {part} "
                    f"off; a class needs {len(missing) + 1} different images or more"
                )
        cut: Pieces = {part: [("train", np.sort(train.rows[of_part]))] for part, of_part in rows.items()}
        given: Pieces = {split: [(split, contents(split).rows)] for split in sizes if split not in cut}
        order = dict.fromkeys(("train", "validation", "test", *sizes))
        return {split: (cut | given)[split] for split in order}

    def _folds(self, sizes: Mapping[str, int], contents: Callable[[str], Contents], owner: str) -> Pieces:
        stored = [split for split in ("train", "validation") if split in sizes]
        found = [contents(split) for split in stored]
        hashes = [content for each in found for content in each.hashes]
        labels = np.concatenate([each.labels for each in found])
        split_of = np.repeat(np.arange(len(stored)), [len(each.rows) for each in found])
        numbers = np.concatenate([each.rows for each in found])
        fold_of = fold_by_content(hashes, labels, self.folds)
        if len(np.unique(fold_of[fold_of >= 0])) < self.folds:
            raise UsageError(
                f"config.data.folds={self.folds}: the {len(labels)} images of {owner} are too few for as many folds"
            )
        test = np.flatnonzero(fold_of == self.fold)
        rest = np.flatnonzero(fold_of != self.fold)
        parts = cut_by_content([hashes[i] for i in rest], labels[rest], {"validation": SHARES["validation"]})
        chosen = {"train": rest[parts["train"]], "validation": rest[parts["validation"]], "test": test}
        pieces: Pieces = {}
        for part, rows in chosen.items():
            if not len(rows):
                raise UsageError(f"config.data.folds={self.folds}: {owner} has too few images for a {part} part")
            pieces[part] = [
                (split, np.sort(numbers[rows[split_of[rows] == place]]))
                for place, split in enumerate(stored)
                if np.any(split_of[rows] == place)
            ]
        return pieces
