"""The data's part of a Plan: which splits there are, whether they can teach and judge, and how classes are weighed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxvit.config.reader import ConfigReader
from jaxvit.data.balance import BALANCES, WEIGHTINGS, class_weights
from jaxvit.data.cut import Cut
from jaxvit.data.decoding import Limits
from jaxvit.data.prepared import data_dir
from jaxvit.data.sources import Dataset, open_dataset
from jaxvit.errors import UsageError

if TYPE_CHECKING:
    from jaxvit.config.plan_types import DataPlan


def open_named(get: ConfigReader, opened: Dataset | None) -> Dataset:
    """The data set that a config names; `opened` where it is open already."""
    options = {
        "classes": get("data.classes", tuple),
        "on_error": get.one_of("data.on_error", ("stop", "skip")),
        "side": get.at_least("data.side", 0),
        "limits": Limits(get.at_least("data.max_pixels", 1), get.at_least("data.max_bytes", 1)),
        "white": get.at_least("data.white", 0),
        "cut": resolve_cut(get),
    }
    return opened or open_dataset(get("data.name", str), data_dir(get("data.dir", str)), **options)


def resolve_cut(get: ConfigReader) -> Cut | None:
    """The cut that `data.cut`, `data.folds` and `data.fold` request; None = only the stored splits."""
    cut, folds = get.one_of("data.cut", ("", "content")), get.at_least("data.folds", 0)
    if not folds:
        return Cut() if cut else None
    if folds == 1:
        raise UsageError("config.data.folds=1: one fold leaves nothing to train on; 2 or more, such as 5")
    fold = get("data.fold", int)
    if not -1 <= fold < folds:
        raise UsageError(f"config.data.fold={fold}: the {folds} folds are 0 to {folds - 1}; -1 = all of them")
    return Cut(folds, max(fold, 0))


def resolve_balance(get: ConfigReader, dataset: Dataset, train: str) -> dict[str, Any]:
    """The fields `balance` and `class_weights` of a `DataPlan`; `train` is the split that is trained on."""
    balance = get.one_of("data.balance", BALANCES)
    if balance == "none":
        return {}
    weighting = get.one_of("data.balance_by", WEIGHTINGS)
    beta = get.between("data.balance_beta", 0.0, 1.0) if weighting == "effective" else 0.0
    if balance == "sampling" and get.peek("augment.flip", bool) and get.peek("augment.flip_mode", str) == "alternate":
        raise UsageError(
            "config.data.balance='sampling': draws some images several times an epoch, and "
            "config.augment.flip_mode='alternate' needs each once; set it to 'random', or data.balance to 'loss'"
        )
    counts = np.bincount(dataset.read(train).labels, minlength=len(dataset.class_names))
    return {"balance": balance, "class_weights": class_weights(counts, weighting, beta)}


def overlaps(dataset: Dataset, data: DataPlan) -> tuple[str, ...]:
    """Warns of images that are in more than one part. It is allowed, for example to see a model fit them."""
    found = []
    for part in ("validation", "test"):
        split = getattr(data, part)
        shared = dataset.shared(data.train, split) if split else 0
        if shared:
            found.append(
                f"{shared:,} of the {getattr(data, f'{part}_count'):,} images of config.data.{part}='{split}' are "
                f"trained on as well (config.data.train='{data.train}')"
            )
    shared = dataset.shared(data.validation, data.test) if data.validation and data.test else 0
    if shared:
        found.append(
            f"{shared:,} of the {data.test_count:,} images of config.data.test='{data.test}' select the weights "
            f"as well (config.data.validation='{data.validation}'): the test accuracy will be too high"
        )
    return tuple(found)


def check_classes(dataset: Dataset, name: str, chosen: Sequence[int]) -> None:
    """Refuses classes that cannot be learned.

    Args:
      dataset: what is trained on.
      name, chosen: `data.name` and `data.classes`.

    Raises:
      UsageError: there is one class only, or one of a folder or table has images, but none to train on.
    """
    names = dataset.class_names
    if len(names) == 1:
        folders = ", each in a folder: PATH/CLASS/IMAGE.jpg" if dataset.has_files else ""
        raise UsageError(
            f"config.data.name='{name}': all of its images are of one class ({names[0]}), so there is nothing to tell "
            f"apart; a classifier needs two classes or more{folders}"
        )
    untaught = dataset.without_training_images
    if untaught:
        kept = tuple(i for i, name in zip(chosen or range(len(names)), names, strict=True) if name not in untaught)
        what = ", ".join(itertools.islice(untaught, 3)) + (", …" if len(untaught) > 3 else "")
        raise UsageError(
            f"config.data.name='{name}': {len(untaught)} of its {len(names)} classes ({what}) have no image in "
            f"train, so no model could learn them; add images, or leave them out with --config.data.classes='{kept}'"
        )
