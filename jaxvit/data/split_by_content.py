"""Cuts a set of images into parts or folds by content: stratified by class, with all copies of an image on one side.

The content of an image is a hash of its decoded pixels, so a copy counts as a copy under any file name and in any
lossless format. Images are processed in the order of this hash: the cut depends only on the images, not on names or
machines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

# Share of each class for the parts that a data set lacks.
SHARES = {"test": 0.1, "validation": 0.1}


def cut_by_content(contents: Sequence[bytes], labels: np.ndarray, shares: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Cuts parts off a set of images; the rest is 'train'.

    Every class gives its share of images, rounded, to each part, and at least one image if it has enough of them; a
    class of two images gives one to the first part. Images with the same content stay together. A group of copies that
    exceeds the share of a class stays in 'train', so a class can give less than its share.

    Args:
      contents: a hash of each image's pixels [N].
      labels: int [N].
      shares: {part: share of the images}.

    Returns:
      {part: row numbers, ascending}, 'train' first; disjoint, and all rows together.

    Example:
      >>> parts = cut_by_content([bytes([i]) for i in range(10)], np.zeros(10, int), {"test": 0.2})
      >>> {name: len(rows) for name, rows in parts.items()}
      {'train': 8, 'test': 2}
    """
    groups = _groups(contents)
    classes = [Counter(labels[rows].tolist()) for rows in groups]
    wanted = _quotas(classes, shares)
    part_of = ["train"] * len(groups)
    in_train = Counter(c for of_group in classes for c in of_group)  # groups of each class
    given = {part: Counter() for part in shares}

    def move(i: int, part: str) -> None:
        part_of[i] = part
        given[part].update(classes[i])
        in_train.subtract(classes[i].keys())

    def leaves_some(i: int) -> bool:
        return all(in_train[c] > 1 for c in classes[i])

    for i, of_group in enumerate(classes):
        for part in shares:
            fits = all(given[part][c] + n <= wanted[part][c] for c, n in of_group.items())
            if fits and leaves_some(i):
                move(i, part)
                break
    # If every group of a class exceeds its share, its smallest group is taken, so that the class is tested at all.
    for part in shares:
        for c, quota in wanted[part].items():
            of_class = [i for i, name in enumerate(part_of) if name == "train" and c in classes[i] and leaves_some(i)]
            if quota and not given[part][c] and of_class:
                move(min(of_class, key=lambda i: len(groups[i])), part)
    return {
        part: np.sort(np.concatenate([g for g, name in zip(groups, part_of, strict=True) if name == part] or [_NONE]))
        for part in ("train", *shares)
    }


def fold_by_content(contents: Sequence[bytes], labels: np.ndarray, folds: int) -> np.ndarray:
    """The fold of each image, int [N], from 0.

    Every class is spread evenly over the folds; images with the same content are in one fold. A class with a single
    content is in no fold (-1): a run that tests on it could not train on it.

    Args:
      contents, labels: as for `cut_by_content`.
      folds: 2 or more.
    """
    groups = _groups(contents)
    classes = [Counter(labels[rows].tolist()) for rows in groups]
    groups_of_class = Counter(c for of_group in classes for c in of_group)
    sizes, of_class = Counter(), Counter()
    fold_of = np.full(len(labels), -1)
    # The large groups first: the small ones even out what they leave uneven.
    for i in sorted(range(len(groups)), key=lambda i: -len(groups[i])):
        if any(groups_of_class[c] < 2 for c in classes[i]):
            continue
        main = max(classes[i], key=lambda c: (classes[i][c], -c))
        fold = min(range(folds), key=lambda f: (of_class[f, main], sizes[f], f))
        for c, n in classes[i].items():
            of_class[fold, c] += n
        sizes[fold] += len(groups[i])
        fold_of[groups[i]] = fold
    return fold_of


def copies(contents: Sequence[bytes]) -> list[np.ndarray]:
    """Groups of row numbers whose images have the same content, ordered by their first row."""
    return sorted((rows for rows in _groups(contents) if len(rows) > 1), key=lambda rows: rows[0])


_NONE = np.zeros(0, np.int64)


def _groups(contents: Sequence[bytes]) -> list[np.ndarray]:
    """Groups of row numbers with the same content, ordered by content."""
    rows: dict[bytes, list[int]] = {}
    for i, content in enumerate(contents):
        rows.setdefault(content, []).append(i)
    return [np.array(rows[content]) for content in sorted(rows)]


def _quotas(classes: Sequence[Counter], shares: Mapping[str, float]) -> dict[str, Counter]:
    """{part: {class: images wanted}}."""
    images, groups = Counter(), Counter()
    for of_group in classes:
        images.update(of_group)
        groups.update(of_group.keys())
    wanted: dict[str, Counter] = {}
    for place, (part, share) in enumerate(shares.items()):
        wanted[part] = Counter(
            {c: max(round(share * n), 1) if groups[c] > place + 1 else 0 for c, n in sorted(images.items())}
        )
    return wanted
