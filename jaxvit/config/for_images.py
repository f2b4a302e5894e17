"""Chooses a config from the images: `jaxvit train --data=PATH` without a config.

All choices depend on the images only, not on the machine, so that the same command resumes the run on any machine. A
key that is set on the command line keeps its value.
"""

from __future__ import annotations

import glob
import os
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxvit.config.keys import set_value
from jaxvit.config.plan_data import check_classes, resolve_cut, resolve_few
from jaxvit.config.reader import ConfigReader
from jaxvit.data.balance import UNEVEN
from jaxvit.data.dataset import Dataset
from jaxvit.data.decoding import Limits
from jaxvit.data.image_folder import PREFIX
from jaxvit.data.label_table import TABLE_ENDINGS, TABLE_PREFIX
from jaxvit.data.prepared import data_dir
from jaxvit.data.shards import shard_prefix
from jaxvit.data.sources import FILE_PREFIXES, located, open_dataset
from jaxvit.data.split_by_content import copies
from jaxvit.errors import UsageError
from jaxvit.files import local_path

CONFIG = "photos"  # the packaged config that `--data` stands for
SIDES = (64, 48, 32)  # sides to resize images to, in pixels; smaller images keep their side
STEPS, EPOCHS = 2000, (30, 200)  # wanted number of steps; fewest and most epochs
FINE_STEPS, FINE_EPOCHS = 500, (5, 50)  # the same for fine-tuning
BATCHES = (8, 128)  # smallest and largest batch
COMPARED = 50_000  # up to this many images, given splits are searched for copies, which decodes all images
_SHOWN = 20  # classes to list with their counts
# Parts that should share no image, and the harm if they do.
_PAIRS = (
    ("test", "train", "the test accuracy is too high"),
    ("test", "validation", "they choose the weights, so the test accuracy is too high"),
    ("validation", "train", "the validation accuracy is too high, and the weights may be badly chosen"),
)
_MANY = 2_000  # from this many images on, a line announces the decoding


@dataclass(frozen=True)
class Chosen:
    """A config and its description for the user.

    Attributes:
      config: the complete config.
      lines: classes, parts, files left out and chosen values, for stdout.
      warnings: likely problems of the data, for stderr.
    """

    config: ConfigDict
    lines: tuple[str, ...]
    warnings: tuple[str, ...]


def data_name(text: str, flag: str = "--data=") -> str:
    """The config key `data.name` for a value of `--data`: files by their absolute path, else a set's name.

    Args:
      text: a path or a name.
      flag: what stands before it in error messages.

    Raises:
      UsageError: the path does not exist, or is neither a folder nor a table nor shards.

    Example:
      >>> data_name("photos")  # where there is such a folder  # doctest: +SKIP
      'image_folder:/home/me/photos'
    """
    if ":" in text:
        return located(text)
    path = os.path.abspath(local_path(text))
    if text.lower().endswith(TABLE_ENDINGS):
        return TABLE_PREFIX + path
    if os.path.isdir(path):
        return PREFIX + path
    if prefix := shard_prefix(text):
        return prefix + path
    if os.path.exists(path) or text.startswith((".", "/", "~")):
        kind = (
            "is neither a folder nor a table (.csv, .tsv, .jsonl) nor a shard (.tar, .parquet)"
            if os.path.exists(path)
            else "does not exist"
        )
        raise UsageError(f"{flag}{text}: {path} {kind}")
    return text


def default_workdir(name: str, folds: int = 0) -> str:
    """The run folder without `--workdir`: 'runs/photos', or 'runs/photos-5folds' for a cross-validation."""
    last = name
    if name.startswith(FILE_PREFIXES):
        path = Path(name.partition(":")[2])
        while glob.has_magic(path.name) or "{" in path.name:  # a pattern of shards: the folder that holds them
            path = path.parent
        last = path.name if name.startswith(PREFIX) else path.name.removesuffix(path.suffix)
    last = last.replace(":", ".").replace("/", "-")
    return os.path.join("runs", (last.lstrip(".") or "photos") + (f"-{folds}folds" if folds else ""))


def choose(
    config: ConfigDict,
    name: str,
    *,
    given: Collection[str] = (),
    folds: int = 0,
    whole_recipe: bool = True,
    weights_side: Callable[[float], int] | None = None,
) -> Chosen:
    """Chooses the values of a config from a data set.

    Args:
      config: the recipe, `configs/photos.py` or another; it is not modified.
      name: the data set, as `data_name` returns it.
      given: keys that keep their value.
      folds: number of folds of a cross-validation; 0 = none.
      whole_recipe: also choose batch size, duration and details of the model; else only the keys of the data: name,
        side, splits, mean and std.
      weights_side: for fine-tuning: (median shorter side of the images) -> side; the model's attributes, mean and
        standard deviation stay as they are, and the training is short. None = training from scratch.

    Raises:
      UsageError: the images cannot be used.
    """
    config = config.copy_and_resolve_references()
    get = ConfigReader(config)
    if weights_side:
        given = {*given, "augment.mean", "augment.std", "model.name"}
    _set(config, {"data.name": name, "data.classes": (), **({"data.folds": folds} if folds else {})}, given)
    opened = _open(get, name)
    check_classes(opened, name, get("data.classes", tuple))
    side, of_side = _side_of_weights(opened, weights_side) if weights_side else _side(opened)
    if get("data.side", int) and not whole_recipe:
        side, of_side = get("data.side", int), "as in the config"
    _set(config, {"data.side": side, "augment.mean": (), "augment.std": ()}, given)
    stored = opened.changed(side=get("data.side", int), cut=None)
    images = sum(stored.stored_sizes.values())
    if images > _MANY:
        print(f"reading {images:,} images (decoded once, then cached)", flush=True)
    _set(config, _parts(stored, get("data.folds", int)), given)
    cut = resolve_cut(get)
    few = resolve_few(get)
    dataset = stored.changed(side=get("data.side", int), cut=cut, few=few) if cut or few else stored
    splits = {part: get(f"data.{part}", str) for part in ("train", "validation", "test")}
    counts = {part: dataset.count(split) for part, split in splits.items() if split}
    reasons = {"data.side": of_side}
    if whole_recipe:
        batch = get("train.batch_size", int) if "train.batch_size" in given else choose_batch(counts["train"])
        length = (FINE_STEPS, FINE_EPOCHS) if weights_side else (STEPS, EPOCHS)
        epochs = choose_epochs(counts["train"], batch, *length)
        _set(config, {"train.batch_size": batch, "train.duration": f"{epochs} epochs"}, given)
        if get("model.name", str) == "cct" and "model.name" not in given:
            _set(config, {"model.conv_layers": choose_conv_layers(_shown_side(dataset))}, given)
        if dataset.is_grey:
            _set(config, {"augment.flip": False}, given)
            reasons["augment.flip"] = "all images are grey; mirrored writing is wrong"
    lines, warnings = _describe(stored, dataset, get, counts, reasons, given)
    return Chosen(config, lines, warnings)


def choose_batch(images: int) -> int:
    """The largest power of two from 8 to 128 that gives at least 12 steps an epoch; no more than there are images."""
    batch = BATCHES[0]
    while batch * 2 <= min(BATCHES[1], images / 12):
        batch *= 2
    return min(batch, images)


def choose_epochs(images: int, batch: int, steps: int = STEPS, epochs: tuple[int, int] = EPOCHS) -> int:
    """Number of epochs with about `steps` steps in all: a multiple of ten or of the fewest epochs, within `epochs`."""
    per_epoch, unit = -(-images // batch), min(10, epochs[0])
    return min(max(round(steps / per_epoch / unit) * unit, epochs[0]), epochs[1])


def choose_side(shorter: float) -> int:
    """The side, in pixels, for images with this median shorter side: 64, 48 or 32, or the side itself if smaller."""
    return next((side for side in SIDES if side <= shorter), max(int(shorter), 1))


def choose_conv_layers(side: int) -> int:
    """Number of convolutions in CCT's tokenizer. Each halves the side; 16 to 64 tokens remain."""
    return 3 if side > 48 else 2 if side > 16 else 1


def _open(get: ConfigReader, name: str) -> Dataset:
    try:
        return open_dataset(
            name,
            data_dir(get("data.dir", str)),
            classes=get("data.classes", tuple),
            on_error=get("data.on_error", str),
            side=get("data.side", int),
            white=get("data.white", int),
            limits=Limits(get("data.max_pixels", int), get("data.max_bytes", int)),
        )
    except UsageError as error:
        if ":" in name:
            raise
        raise UsageError(
            f"--data={name}: there is no such folder or table here, and no such data set: {error}"
        ) from None


def _set(config: ConfigDict, values: Mapping[str, object], given: Collection[str]) -> None:
    for key, value in values.items():
        if key not in given:
            set_value(config, key, value)


def _parts(stored: Dataset, folds: int) -> dict[str, str]:
    """The keys of the splits. A missing validation or test split is cut off `train`."""
    there = stored.stored_sizes
    if "train" not in there:
        raise UsageError(f"--data: {stored.name} has no training images; it has {', '.join(there)}")
    parts = {f"data.{part}": part for part in ("train", "validation", "test")} | {"data.cut": ""}
    if folds or {"validation", "test"} <= set(there):
        return parts
    if stored.can_be_cut("train"):
        return parts | {"data.cut": "content"}
    if "test" in there:  # too large to be cut by content
        return parts | {"data.train": "train[:90%]", "data.validation": "train[90%:]"}
    if "validation" in there:
        return parts | {"data.train": "train[:90%]", "data.test": "train[90%:]"}
    return parts | {"data.train": "train[:80%]", "data.validation": "train[80%:90%]", "data.test": "train[90%:]"}


def _side(stored: Dataset) -> tuple[int, str]:
    """(value of data.side, reason)."""
    sizes = stored.sample_sizes()
    if not sizes:
        return SIDES[0], "the sizes of the images are not known before they are read"
    shorter = statistics.median(min(size) for size in sizes)
    middle = "×".join(str(round(statistics.median(s[axis] for s in sizes))) for axis in (0, 1))
    same = len(set(sizes)) == 1
    if stored.is_fixed and max(sizes[0]) <= SIDES[0]:
        return 0, f"all images have {middle} pixels"
    return choose_side(shorter), f"the images have {middle} pixels" + ("" if same else " in the middle")


def _side_of_weights(stored: Dataset, weights_side: Callable[[float], int]) -> tuple[int, str]:
    """(value of data.side, reason) for fine-tuning."""
    sizes = stored.sample_sizes()
    if not sizes:
        return weights_side(float("inf")), "that of the weights"
    shorter = statistics.median(min(size) for size in sizes)
    side = weights_side(shorter)
    reason = "that of the weights" if side == weights_side(float("inf")) else "the images are smaller than the weights'"
    same = stored.is_fixed and set(sizes) == {(side, side)}
    return (0 if same else side), (f"all images have {side} pixels" if same else reason)


def _shown_side(dataset: Dataset) -> int:
    return min(dataset.image_shape[:2])


def _describe(
    stored: Dataset,
    dataset: Dataset,
    get: ConfigReader,
    counts: dict[str, int],
    reasons: dict[str, str],
    given: Collection[str],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(lines, warnings) of `Chosen`."""
    names = dataset.class_names
    of_class = _class_counts(dataset, [get(f"data.{part}", str) for part in counts])
    shown = [f"{name} {of_class[i]:,}" if of_class is not None else name for i, name in enumerate(names[:_SHOWN])]
    more = f", … and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    lines = [
        f"{sum(counts.values()):,} images of {len(names):,} classes in {dataset.name}",
        f"  classes: {', '.join(shown)}{more}",
    ]
    if of_class is not None:
        largest = int(of_class.argmax())
        share = of_class[largest] / of_class.sum()
        lines.append(f"  largest class: {names[largest]}, {share:.1%} of the images: the accuracy of a constant answer")
    if stored.understood:
        lines.append(f"  shards: {stored.understood}")
    parts = ", ".join(f"{count:,} {part}" for part, count in counts.items())
    lines.append(f"  parts: {parts}; {_how_cut(stored, get)}")
    left_out = [str(one) for one in dataset.left_out]
    if left_out:
        lines.append(f"  left out: {'; '.join(left_out)}")
    stored.say_left_out(already=True)
    batch = get("train.batch_size", int)
    steps = -(-counts["train"] // batch)
    chosen = {
        "data.side": get("data.side", int) or "as stored",
        "train.batch_size": f"{batch} ({steps:,} steps an epoch)",
        "train.duration": get("train.duration", str),
        "augment.flip": get("augment.flip", bool),
    }
    said = [
        f"{key} {value}" + (f" ({reasons[key]})" if key in reasons else "")
        for key, value in chosen.items()
        if key not in given and (key in reasons or key != "augment.flip")
    ]
    lines.append(f"  chosen: model {get('model.name', str)}, {', '.join(said)}; to change one: --config.KEY=VALUE")
    balanced = get("data.balance", str) != "none"
    uneven = _imbalance(names, of_class) if of_class is not None and not balanced else ()
    folds, cut = get("data.folds", int), get("data.cut", str)
    return tuple(lines), (*uneven, *_copies(stored, folds=bool(folds), cut=bool(cut)))


def _class_counts(dataset: Dataset, splits: Sequence[str]) -> np.ndarray | None:
    """Number of images of each class in all splits; None if the labels of a split are known only after reading it."""
    if not all(dataset.has_files or dataset.is_kept(split) for split in splits):
        return None
    labels = np.concatenate([dataset.read(split).labels for split in splits])
    return np.bincount(labels, minlength=len(dataset.class_names))


def _how_cut(stored: Dataset, get: ConfigReader) -> str:
    folds = get("data.folds", int)
    if folds:
        given = " (the set's own test images are not used)" if "test" in stored.stored_sizes else ""
        return f"fold {max(get('data.fold', int), 0)} of {folds} is test, copies of an image in one fold{given}"
    missing = [part for part in ("validation", "test") if part not in stored.stored_sizes]
    if not missing:
        return "as they are stored"
    if get("data.cut", str):
        return f"{' and '.join(missing)} cut off train, a tenth of each class, copies of an image together"
    return f"{' and '.join(missing)} cut off train"


def _imbalance(names: tuple[str, ...], counts: np.ndarray) -> tuple[str, ...]:
    """Warns of classes of very different size."""
    present = counts[counts > 0]
    if present.max() <= UNEVEN * present.min():
        return ()
    most, least = int(counts.argmax()), int(np.where(counts > 0, counts, counts.max()).argmin())
    return (
        f"the classes differ much in size ({names[most]} has {counts[most]:,} images, {names[least]} "
        f"{counts[least]:,}): the accuracy can be high although small classes are never recognised. "
        "--config.data.balance=sampling (or loss) compensates for it, and --config.train.monitor=balanced_accuracy "
        "gives all classes the same weight",
    )


def _copies(stored: Dataset, *, folds: bool, cut: bool) -> tuple[str, ...]:
    """Warns of images that occur in two given parts, or in two classes."""
    if not stored.has_files or (not cut and sum(stored.stored_sizes.values()) > COMPARED):
        return ()
    splits = [split for split in ("train", "validation", "test") if split in stored.stored_sizes]
    found = {split: stored.contents(split) for split in splits}
    hashes = [content for each in found.values() for content in each.hashes]
    labels = np.concatenate([each.labels for each in found.values()])
    names = [name for each in found.values() for name in each.names]
    split_of = np.repeat(splits, [len(each.hashes) for each in found.values()])
    groups = copies(hashes)
    warnings = []
    for one, other, harm in _PAIRS if not folds else ():
        both = [g for g in groups if {one, other} <= set(split_of[g])]
        if both:
            count = sum(int((split_of[g] == one).sum()) for g in both)
            first, second = (next(names[i] for i in both[0] if split_of[i] == part) for part in (one, other))
            warnings.append(
                f"{count:,} of the {int((split_of == one).sum()):,} {one} images {'is' if count == 1 else 'are'} in "
                f"{other} too, such as {first} as {second}: {harm}"
            )
    twice = [g for g in groups if len(set(labels[g])) > 1]
    if twice:
        one, other = twice[0][0], next(i for i in twice[0] if labels[i] != labels[twice[0][0]])
        warnings.append(
            f"{len(twice):,} {'image is' if len(twice) == 1 else 'images are'} in more than one class, such as "
            f"{names[one]} and {names[other]}: check their labels"
        )
    return tuple(warnings)
