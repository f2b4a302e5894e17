"""Parts and folds cut by what the images show: each class in its share, copies of an image never on two sides.

An image's content is a hash of its decoded pixels, so a copy is a copy whatever its file is called and however it is
stored. Images are taken in the order of that hash: the cut depends on the images alone, not on names or machines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

# Of each class, where a data set lacks these parts.
SHARES = {"test": 0.1, "validation": 0.1}


def cut_by_content(contents: Sequence[bytes], labels: np.ndarray, shares: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Cuts parts off a set of images; what is left is 'train'.

    Every class gives its share, rounded, to each part; at least one image as long as there are enough for all parts, of
    two the one to the first part. Images of one content stay together: a group that would take more than is wanted of
    one of its classes stays in 'train', and so a class can give less than its share.

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
    # A class whose every group is larger than its share still has to be judged: by its smallest group.
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

    Every class is spread evenly over the folds; images of one content are in one fold. A class all of whose images have
    one content is in no fold (-1): wherever it were tested, nothing could have been learned of it.

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
    """Row numbers of images that have one content, a group each; in the order of their first rows."""
    return sorted((rows for rows in _groups(contents) if len(rows) > 1), key=lambda rows: rows[0])


_NONE = np.zeros(0, np.int64)


def _groups(contents: Sequence[bytes]) -> list[np.ndarray]:
    """Row numbers of each content, in the order of the contents."""
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
