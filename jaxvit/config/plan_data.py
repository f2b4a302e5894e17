"""Derives the data set, its splits and the weights of the classes from a config's `data` section, and checks them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from jaxvit.config.reader import ConfigReader
from jaxvit.data.balance import BALANCES, WEIGHTINGS, class_weights
from jaxvit.data.cut import Cut
from jaxvit.data.dataset import Dataset
from jaxvit.data.decoding import Limits
from jaxvit.data.few import Few
from jaxvit.data.image_folder import PREFIX
from jaxvit.data.prepared import data_dir
from jaxvit.data.sources import open_dataset
from jaxvit.errors import UsageError

if TYPE_CHECKING:
    from jaxvit.config.plan_types import DataPlan


def open_named(get: ConfigReader, opened: Dataset | None) -> Dataset:
    """Opens the data set that a config names, unless it is open already."""
    classes, on_error = get("data.classes", tuple), get.one_of("data.on_error", ("stop", "skip"))
    side, white = get.at_least("data.side", 0), get.at_least("data.white", 0)
    limits = Limits(get.at_least("data.max_pixels", 1), get.at_least("data.max_bytes", 1))
    few = resolve_few(get)
    cut, name, directory = resolve_cut(get), get("data.name", str), data_dir(get("data.dir", str))
    if side**2 > limits.pixels:
        most = f"config.data.max_pixels={limits.pixels}"
        raise UsageError(f"config.data.side={side}: that is more pixels than {most} allows")
    dataset = opened or open_dataset(
        name,
        directory,
        classes=classes,
        on_error=on_error,
        side=side,
        limits=limits,
        white=white,
        cut=cut,
        few=few,
    )
    dataset.say_left_out()
    return dataset


def resolve_few(get: ConfigReader) -> Few | None:
    """Derives the few images of each class to train on from `data.per_class` and `data.draw`; None = all images."""
    per_class = get.at_least("data.per_class", 0)
    return Few(get("data.train", str), per_class, get.at_least("data.draw", 0)) if per_class else None


def resolve_cut(get: ConfigReader) -> Cut | None:
    """Derives how to cut splits from `data.cut`, `data.folds` and `data.fold`; None = use the set's own splits."""
    cut, folds = get.one_of("data.cut", ("", "content")), get.at_least("data.folds", 0)
    if not folds:
        return Cut() if cut else None
    if folds == 1:
        raise UsageError("config.data.folds=1: one fold leaves no images to train on; set it to 2 or more, such as 5")
    fold = get("data.fold", int)
    if not -1 <= fold < folds:
        raise UsageError(f"config.data.fold={fold}: the {folds} folds are 0 to {folds - 1}; -1 = all of them")
    return Cut(folds, max(fold, 0))


class Balance(TypedDict, total=False):
    """Two fields of a `DataPlan`."""

    balance: str
    class_weights: tuple[float, ...]


def resolve_balance(get: ConfigReader, dataset: Dataset, train: str) -> Balance:
    """Derives how to balance the classes of the training split `train`."""
    balance = get.one_of("data.balance", BALANCES)
    if balance == "none":
        return Balance()
    weighting = get.one_of("data.balance_by", WEIGHTINGS)
    beta = get.between("data.balance_beta", 0.0, 1.0) if weighting == "effective" else 0.0
    if balance == "sampling" and get.peek("augment.flip", bool) and get.peek("augment.flip_mode", str) == "alternate":
        raise UsageError(
            "config.data.balance='sampling': draws some images several times per epoch, but "
            "config.augment.flip_mode='alternate' needs each image once; set it to 'random', or data.balance to 'loss'"
        )
    counts = np.bincount(dataset.read(train).labels, minlength=len(dataset.class_names))
    return Balance(balance=balance, class_weights=class_weights(counts, weighting, beta))


def overlaps(dataset: Dataset, data: DataPlan) -> tuple[str, ...]:
    """Warnings about images that are in two splits. That is allowed, for example to see a model fit them."""
    found = []
    for part in ("validation", "test"):
        split = getattr(data, part)
        shared = dataset.shared(data.train, split) if split else 0
        if shared:
            found.append(
                f"{shared:,} of the {getattr(data, f'{part}_count'):,} images of config.data.{part}='{split}' are also "
                f"training images (config.data.train='{data.train}')"
            )
    shared = dataset.shared(data.validation, data.test) if data.validation and data.test else 0
    if shared:
        found.append(
            f"{shared:,} of the {data.test_count:,} images of config.data.test='{data.test}' also select the weights "
            f"(config.data.validation='{data.validation}'): the test accuracy will be too high"
        )
    return tuple(found)


def _left_out(dataset: Dataset) -> str:
    found = dataset.left_out
    return f"; left out: {'; '.join(map(str, found))}" if found else ""


def check_classes(dataset: Dataset, name: str, chosen: Sequence[int]) -> None:
    """Checks that a model can learn all classes.

    Args:
      dataset: the data set.
      name: value of `data.name`.
      chosen: value of `data.classes`.

    Raises:
      UsageError: there is only one class, or a class of a folder or table has no training images.
    """
    names = dataset.class_names
    if len(names) == 1:
        folders = ", one folder for each: PATH/CLASS/IMAGE.jpg" if name.startswith(PREFIX) else ""
        raise UsageError(
            f"config.data.name='{name}': all of its images are of one class ({names[0]}); a classifier needs two "
            f"classes or more{folders}{_left_out(dataset)}"
        )
    untaught = dataset.without_training_images
    if untaught and len(untaught) == len(names):
        raise UsageError(
            f"config.data.name='{name}': there are no training images, only {' and '.join(dataset.stored_sizes)}; to "
            "evaluate a trained model on them: jaxvit evaluate --workdir=RUN --data=PATH"
        )
    if untaught:
        kept = tuple(i for i, name in zip(chosen or range(len(names)), names, strict=True) if name not in untaught)
        what = ", ".join(itertools.islice(untaught, 3)) + (", …" if len(untaught) > 3 else "")
        raise UsageError(
            f"config.data.name='{name}': {len(untaught)} of its {len(names)} classes ({what}) have no image in "
            f"train, so a model cannot learn them; add images, or leave them out with --config.data.classes='{kept}'"
        )
