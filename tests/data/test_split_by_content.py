"""Cuts by content: shares of each class, copies together, folds that cover all."""

import numpy as np
import pytest

from jaxvit.data.split_by_content import cut_by_content, fold_by_content

SHARES = {"test": 0.1, "validation": 0.1}


def made(counts, copies=1, seed=0):
    """(contents, labels): images of each class, each content `copies` times."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    contents = [rng.bytes(16) for _ in range(-(-len(labels) // copies))]
    return [contents[i // copies] for i in range(len(labels))], labels


@pytest.mark.parametrize("counts", [(100, 50), (30, 4), (3, 3), (10, 1, 2)])
def test_every_class_gives_its_share(counts):
    contents, labels = made(counts)
    parts = cut_by_content(contents, labels, SHARES)
    assert sorted(np.concatenate([*parts.values()])) == list(range(len(labels)))
    for c, n in enumerate(counts):
        of_class = {part: int((labels[rows] == c).sum()) for part, rows in parts.items()}
        wanted = max(round(n / 10), 1)
        assert of_class["test"] == (wanted if n > 1 else 0), (c, of_class)
        assert of_class["validation"] == (wanted if n > 2 else 0) and of_class["train"] >= 1


def sides(contents, parts):
    return {
        content: {part for part, rows in parts.items() for i in rows if contents[i] == content} for content in contents
    }


def test_copies_are_never_on_two_sides_and_the_quota_gives_way():
    contents, labels = made((40, 40))
    for i in range(30):  # most of class 0 is one image
        contents[i] = contents[0]
    contents[45] = contents[35]  # one image with two labels
    parts = cut_by_content(contents, labels, SHARES)
    assert all(len(where) == 1 for where in sides(contents, parts).values())
    assert sides(contents, parts)[contents[0]] == {"train"}
    # Groups of five where four images are wanted: one group all the same, or the class would not be judged at all.
    contents, labels = made((40, 40), copies=5)
    parts = cut_by_content(contents, labels, SHARES)
    assert {part: np.bincount(labels[rows]).tolist() for part, rows in parts.items()} == {
        "train": [30, 30],
        "test": [5, 5],
        "validation": [5, 5],
    }


def test_the_cut_goes_by_the_images_alone():
    contents, labels = made((30, 30))
    first = cut_by_content(contents, labels, SHARES)
    order = np.random.default_rng(1).permutation(60)
    again = cut_by_content([contents[i] for i in order], labels[order], SHARES)
    for part, rows in first.items():
        assert {contents[i] for i in rows} == {contents[order[i]] for i in again[part]}


def test_folds_cover_all_evenly_and_keep_copies_together():
    contents, labels = made((50, 23, 7))
    for i in range(6):
        contents[i] = contents[0]
    contents[60] = contents[10]
    fold_of = fold_by_content(contents, labels, 5)
    assert set(fold_of) == {0, 1, 2, 3, 4}
    for c in range(3):
        of_class = np.bincount(fold_of[labels == c], minlength=5)
        assert of_class.max() - of_class.min() <= 1 + (c == 0), of_class
    assert len({fold_of[i] for i in range(6)}) == 1 and fold_of[60] == fold_of[10]
    np.testing.assert_array_equal(fold_of, fold_by_content(contents, labels, 5))


def test_a_class_of_one_content_is_in_no_fold():
    contents, labels = made((6, 3))
    contents[7] = contents[8] = contents[6]
    assert fold_by_content(contents, labels, 3)[6:].tolist() == [-1] * 3
