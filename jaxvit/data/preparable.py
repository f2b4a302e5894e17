"""The data sets that `jaxvit data prepare` can write, with their published sizes and statistics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preparable:
    """A data set.

    Attributes:
      splits: {split: number of images}.
      shape: (H, W, C) of an image.
      mean, std: published statistics of each channel of the training images, in the 0..1 range; () = not published.
    """

    splits: dict[str, int]
    shape: tuple[int, int, int]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


_CIFAR = {"train": 50_000, "test": 10_000}
_MNIST = {"train": 60_000, "test": 10_000}

PREPARABLE: dict[str, Preparable] = {
    "cifar10": Preparable(_CIFAR, (32, 32, 3), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Preparable(_CIFAR, (32, 32, 3), (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "mnist": Preparable(_MNIST, (28, 28, 1)),
    "fashion_mnist": Preparable(_MNIST, (28, 28, 1), (0.2860,), (0.3530,)),
}
