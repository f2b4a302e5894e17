"""A config chosen from what there is: `jaxvit train --data=…` without another word.

Every choice goes by the images alone, never by the machine, so that the same command goes on with the same run. What
the command line sets is left as it is.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxvit.config.plan_data import resolve_cut
from jaxvit.config.reader import ConfigReader
from jaxvit.data.balance import UNEVEN
from jaxvit.data.decoding import Limits
from jaxvit.data.image_folder import PREFIX
from jaxvit.data.label_table import TABLE_ENDINGS, TABLE_PREFIX
from jaxvit.data.prepared import data_dir
from jaxvit.data.sources import Dataset, located, open_dataset
from jaxvit.data.split_by_content import copies
from jaxvit.errors import UsageError

CONFIG = "photos"  # the packaged config that `--data` stands for
SIDES = (64, 48, 32)  # what images are brought to; smaller ones stay as they are
STEPS, EPOCHS = 2000, (30, 200)  # so many steps, within so many epochs
BATCHES = (8, 128)
COMPARED = 50_000  # images of given parts are compared with one another up to this number: all have to be decoded
_SHOWN = 20  # classes that are named with their counts


@dataclass(frozen=True)
class Chosen:
    """A config, and what to say before anything else.

    Attributes:
      config: complete.
      lines: what there is, what is left out, what was chosen.
      warnings: what is likely to spoil the result.
    """

    config: ConfigDict
    lines: tuple[str, ...]
    warnings: tuple[str, ...]


def data_name(text: str) -> str:
    """The `data.name` of what `--data` names: a folder or a table by its full path, or the name of a set.

    Example:
      >>> data_name("photos")  # where there is such a folder  # doctest: +SKIP
      'image_folder:/home/me/photos'
    """
    if ":" in text:
        return located(text)
    path = os.path.abspath(os.path.expanduser(text))
    if text.lower().endswith(TABLE_ENDINGS):
        return TABLE_PREFIX + path
    if os.path.isdir(path):
        return PREFIX + path
    if os.path.exists(path) or text.startswith((".", "/", "~")):
        kind = "is no folder, and no table (.csv, .tsv, .jsonl)" if os.path.exists(path) else "is not there"
        raise UsageError(f"--data={text}: {path} {kind}")
    return text


def default_workdir(name: str, folds: int = 0) -> str:
    """Where a run on a data set goes, if nothing is said: 'runs/photos', 'runs/photos-5folds'."""
    path = Path(name.partition(":")[2])
    last = path.name if name.startswith(PREFIX) else path.stem if name.startswith(TABLE_PREFIX) else name
    last = last.replace(":", ".").replace("/", "-")
    return os.path.join("runs", (last.lstrip(".") or "photos") + (f"-{folds}folds" if folds else ""))


def choose(
    config: ConfigDict, name: str, *, given: Collection[str] = (), folds: int = 0, whole_recipe: bool = True
) -> Chosen:
    """Fills a config in from a data set.

    Args:
      config: the recipe, `configs/photos.py` or another; not changed.
      name: see `data_name`.
      given: keys that were set by hand.
      folds: of a cross-validation; 0 = none.
      whole_recipe: choose batch, length and model by the images too; else only what has to do with the data.

    Raises:
      UsageError: the images cannot be used.
    """
    config = config.copy_and_resolve_references()
    _set(config, {"data.name": name, **({"data.folds": folds} if folds else {})}, given)
    opened = _open(config, name)
    side, of_side = _side(opened, config)
    _set(config, {"data.side": side, "augment.mean": (), "augment.std": ()}, given)
    stored = opened.changed(side=config.data.side, cut=None)
    _set(config, _parts(stored, config.data.folds), given)
    cut = resolve_cut(ConfigReader(config))
    dataset = stored.changed(side=config.data.side, cut=cut) if cut else stored
    counts = {part: dataset.count(config.data[part]) for part in ("train", "validation", "test") if config.data[part]}
    reasons = {"data.side": of_side}
    if whole_recipe:
        batch = config.train.batch_size if "train.batch_size" in given else choose_batch(counts["train"])
        epochs = choose_epochs(counts["train"], batch)
        _set(config, {"train.batch_size": batch, "train.duration": f"{epochs} epochs"}, given)
        if config.model.name == "cct" and "model.name" not in given:
            _set(config, {"model.conv_layers": choose_conv_layers(_shown_side(dataset))}, given)
        if dataset.is_grey:
            _set(config, {"augment.flip": False}, given)
            reasons["augment.flip"] = "the images are grey, and what is written must not be mirrored"
    lines, warnings = _describe(stored, dataset, config, counts, reasons, given)
    return Chosen(config, lines, warnings)


def choose_batch(images: int) -> int:
    """A power of two that makes a dozen steps of an epoch, from 8 to 128; 34 photos are 4 steps of 8."""
    batch = BATCHES[0]
    while batch * 2 <= min(BATCHES[1], images / 12):
        batch *= 2
    return min(batch, images)


def choose_epochs(images: int, batch: int) -> int:
    """Epochs that make 2,000 steps, but at least 30 and at most 200, in tens."""
    per_epoch = -(-images // batch)
    return min(max(round(STEPS / per_epoch / 10) * 10, EPOCHS[0]), EPOCHS[1])


def choose_side(shorter: float) -> int:
    """What images whose shorter side has so many pixels are brought to: 64, 48 or 32, never larger than they are."""
    return next((side for side in SIDES if side <= shorter), max(int(shorter), 1))


def choose_conv_layers(side: int) -> int:
    """Convolutions of CCT's tokenizer, each of which halves the side: about 64 tokens are left."""
    return 3 if side > 48 else 2 if side > 16 else 1


def _open(config: ConfigDict, name: str) -> Dataset:
    data = config.data
    options = {"classes": data.classes, "on_error": data.on_error, "side": data.side}
    options |= {"limits": Limits(data.max_pixels, data.max_bytes), "white": data.white}
    return open_dataset(name, data_dir(data.dir), **options, tell=False)  # it is among the first lines


def _set(config: ConfigDict, values: dict[str, object], given: Collection[str]) -> None:
    with config.unlocked():
        for key, value in values.items():
            section, _, leaf = key.rpartition(".")
            if key not in given:
                config[section][leaf] = value


def _parts(stored: Dataset, folds: int) -> dict[str, object]:
    """The splits, and how what is missing comes about."""
    there = stored.stored_sizes
    if "train" not in there:
        raise UsageError(f"--data: {stored.name} has no training images; it has {', '.join(there)}")
    parts: dict[str, object] = {f"data.{part}": part for part in ("train", "validation", "test")} | {"data.cut": ""}
    if folds or {"validation", "test"} <= set(there):
        return parts
    if stored.can_be_cut("train"):
        return parts | {"data.cut": "content"}
    if "test" in there:  # too large to be cut by content
        return parts | {"data.train": "train[:90%]", "data.validation": "train[90%:]"}
    if "validation" in there:
        return parts | {"data.train": "train[:90%]", "data.test": "train[90%:]"}
    return parts | {"data.train": "train[:80%]", "data.validation": "train[80%:90%]", "data.test": "train[90%:]"}


def _side(stored: Dataset, config: ConfigDict) -> tuple[int, str]:
    """(data.side, why)."""
    sizes = stored.sample_sizes()
    if not sizes:
        return config.data.side or SIDES[0], "the images' sizes are not known before they are read"
    shorter = statistics.median(min(size) for size in sizes)
    middle = "×".join(str(round(statistics.median(s[axis] for s in sizes))) for axis in (0, 1))
    same = len(set(sizes)) == 1
    if stored.is_fixed and max(sizes[0]) <= SIDES[0]:
        return 0, f"all images have {middle} pixels"
    return choose_side(shorter), f"the images have {middle} pixels" + ("" if same else " in the middle")


def _shown_side(dataset: Dataset) -> int:
    return min(dataset.image_shape[:2])


def _describe(
    stored: Dataset,
    dataset: Dataset,
    config: ConfigDict,
    counts: dict[str, int],
    reasons: dict[str, str],
    given: Collection[str],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What to say first: (lines, warnings)."""
    names = dataset.class_names
    of_class = sum(np.bincount(dataset.read(config.data[part]).labels, minlength=len(names)) for part in counts)
    total, largest = int(of_class.sum()), int(of_class.argmax())
    share = of_class[largest] / total
    ordered = [f"{name} {count:,}" for name, count in zip(names, of_class, strict=True)]
    more = f", … and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    lines = [
        f"{total:,} images of {len(names):,} classes in {dataset.name}",
        f"  classes: {', '.join(ordered[:_SHOWN])}{more}",
        f"  largest class: {names[largest]}, {share:.1%} of the images: what a constant answer would get",
        f"  parts: {', '.join(f'{count:,} {part}' for part, count in counts.items())}; {_how_cut(stored, config)}",
    ]
    left_out = [str(one) for one in dataset.left_out]
    if left_out:
        lines.append(f"  left out: {'; '.join(left_out)}")
    batch = config.train.batch_size
    steps = -(-counts["train"] // batch)
    chosen = {
        "data.side": config.data.side or "as stored",
        "train.batch_size": f"{batch} ({steps:,} steps an epoch)",
        "train.duration": config.train.duration,
        "augment.flip": config.augment.flip,
    }
    said = [
        f"{key} {value}" + (f" ({reasons[key]})" if key in reasons else "")
        for key, value in chosen.items()
        if key not in given and (key in reasons or key != "augment.flip")
    ]
    lines.append(f"  chosen: model {config.model.name}, {', '.join(said)}; to change one: --config.KEY=VALUE")
    return tuple(lines), (*_imbalance(names, of_class, config), *_copies(stored, config))


def _how_cut(stored: Dataset, config: ConfigDict) -> str:
    if config.data.folds:
        given = " (the set's own test images are not used)" if "test" in stored.stored_sizes else ""
        return f"of {config.data.folds} folds the first as test, copies of an image in one fold{given}"
    missing = [part for part in ("validation", "test") if part not in stored.stored_sizes]
    if not missing:
        return "as they are stored"
    if config.data.cut:
        return f"{' and '.join(missing)} cut off train by content, a tenth of each class, copies of an image together"
    return f"{' and '.join(missing)} cut off train"


def _imbalance(names: tuple[str, ...], counts: np.ndarray, config: ConfigDict) -> tuple[str, ...]:
    """The warning of classes that differ much in size, where nothing is done about it."""
    there = counts[counts > 0]
    if config.data.balance != "none" or there.max() <= UNEVEN * there.min():
        return ()
    most, least = int(counts.argmax()), int(np.where(counts > 0, counts, counts.max()).argmin())
    return (
        f"the classes differ much in size ({names[most]} has {counts[most]:,} images, {names[least]} "
        f"{counts[least]:,}): the accuracy can be high while small classes are missed. "
        "--config.data.balance=sampling (or loss) makes up for it, and --config.train.monitor=balanced_accuracy judges "
        "all classes alike",
    )


def _copies(stored: Dataset, config: ConfigDict) -> tuple[str, ...]:
    """Images that stand twice where that matters: in two parts, or in two classes."""
    if not stored.has_files or (not config.data.cut and sum(stored.stored_sizes.values()) > COMPARED):
        return ()
    splits = [split for split in ("train", "validation", "test") if split in stored.stored_sizes]
    found = {split: stored.contents(split) for split in splits}
    hashes = [content for each in found.values() for content in each.hashes]
    labels = np.concatenate([each.labels for each in found.values()])
    names = [name for each in found.values() for name in each.names]
    split_of = np.repeat(splits, [len(each.hashes) for each in found.values()])
    groups = copies(hashes)
    warnings = []
    across = [g for g in groups if len(set(split_of[g])) > 1] if not config.data.folds else []
    if across:
        images = sum(len(g) for g in across)
        one, other = across[0][0], next(i for i in across[0] if split_of[i] != split_of[across[0][0]])
        warnings.append(
            f"{images:,} images are copies of one another across the given parts, such as {names[one]} and "
            f"{names[other]}: what is measured on them is too good"
        )
    twice = [g for g in groups if len(set(labels[g])) > 1]
    if twice:
        one, other = twice[0][0], next(i for i in twice[0] if labels[i] != labels[twice[0][0]])
        warnings.append(
            f"{len(twice):,} images stand in more than one class, such as {names[one]} and {names[other]}: one of the "
            "labels must be wrong"
        )
    return tuple(warnings)
