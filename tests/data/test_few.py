"""A few images of each class are drawn, and the images of a smaller number are among those of a larger one."""

import numpy as np
import pytest

from jaxvit.data.few import Few, choose_few
from jaxvit.data.parts import Source
from jaxvit.errors import UsageError

LABELS = np.array([0, 1, 2] * 5 + [2] * 4, np.int32)
SOURCE = Source("set: train", np.arange(19, dtype=np.uint8)[:, None, None, None], LABELS, ("a", "b", "c"))


def numbers(few):
    found = choose_few(SOURCE, few)
    assert np.array_equal(LABELS[found.images[:].ravel()], found.labels)
    return found.images[:].ravel().tolist()


def test_as_many_of_each_class_in_their_order():
    three, again, other = (numbers(Few("train", 3, draw)) for draw in (0, 0, 1))
    assert three == again == sorted(three) and three != other
    assert np.bincount(LABELS[three]).tolist() == [3, 3, 3]
    assert {*numbers(Few("train", 2, 0))} < {*three} < {*numbers(Few("train", 5, 0))}


def test_more_than_there_are():
    with pytest.raises(UsageError, match=r"data.per_class=6: set: train has only 5 images of a; set it to 5 or less"):
        choose_few(SOURCE, Few("train", 6, 0))
