"""Evaluates a trained model on a split of labelled images: `jaxvit.evaluate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from jaxvit import own_code as gate
from jaxvit.config.for_images import data_name
from jaxvit.config.plan import dataset_of
from jaxvit.data.dataset import Dataset
from jaxvit.data.parts import Source, StreamedSource
from jaxvit.data.prepared import data_dir
from jaxvit.data.sources import is_own, open_dataset
from jaxvit.errors import UsageError
from jaxvit.models.count import count_macs
from jaxvit.run.folder import read_environment
from jaxvit.shown import terminal
from jaxvit.trained import scores
from jaxvit.trained.adapted import AdaptedSource
from jaxvit.trained.cascade import Cascade, choose_threshold, combined
from jaxvit.trained.inference import Outcomes, Predictor
from jaxvit.trained.load import Loaded, load

PARTS = ("train", "validation", "test")
AnySource = Source | StreamedSource | AdaptedSource


def evaluate(
    run: str | Path | Loaded,
    split: str = "",
    *,
    data: str = "",
    data_dir: str = "",
    checkpoint: str = "best",
    weights: str = "chosen",
    batch_size: int = 0,
    devices: int = 0,
    own_code: bool = False,
    max_pixels: int = 0,
    max_bytes: int = 0,
) -> dict[str, Any]:
    """Evaluates a trained model on every image of a split, once.

    Args:
      run: a run's folder, or a model that `jaxvit.load` returned.
      split: 'train', 'validation' or 'test' of the run, or TFDS notation such as 'test[:100]'; '' = test, or validation
        if the run has no test split.
      data: another data set, such as a folder of photos; '' = the run's. It may lack some classes. RGB images are
        converted for a grey model, and grey images for an RGB model.
      data_dir: the TFDS directory; '' = the run's, else the default.
      checkpoint, weights, own_code: see `jaxvit.load`; ignored if `run` is a loaded model.
      batch_size: images per batch; 0 = as in the run's evaluation. It affects the results only by rounding.
      devices: number of devices; 0 = all.
      max_pixels, max_bytes: largest size of a stored image and of its file; 0 = as in the run's config. Larger images
        count as damaged.

    Returns:
      split, data, step, weights; reduce or tokens, and macs, for a model with fewer tokens; and everything of
      `jaxvit.trained.scores.score`: count, loss, top1, top5 (fractions), precision, recall, f1, ece, calibration,
      per_class, confusion, most_confused, class_names.

    Raises:
      UsageError: unknown run, data or split, or images of a class that the model does not know.
      RunFailedError: the scores are not finite, or the batch does not fit into device memory.

    Example:
      >>> jaxvit.evaluate("runs/digits", "validation")["top1"]  # doctest: +SKIP
      0.9944
    """
    loaded = run if isinstance(run, Loaded) else load(run, checkpoint=checkpoint, weights=weights, own_code=own_code)
    loaded = loaded.with_limits(max_pixels, max_bytes)
    name, source = read_split(loaded, split, data, data_dir)
    return evaluate_source(loaded, source, split=name, batch_size=batch_size, devices=devices)[0]


def read_split(loaded: Loaded, split: str = "", data: str = "", directory: str = "") -> tuple[str, AnySource]:
    """Reads a split of the run's data set or of another one, and returns (name of the split, its images).

    Args:
      loaded: the trained model.
      split: 'train', 'validation' or 'test' of the run's config, or TFDS notation. '' = for the run's data, test, or
        validation if it has no test split; for other data, the only split, or test if there are several.
      data: name of another data set; '' = the run's.
      directory: the TFDS directory; '' = the run's, else the default.

    Raises:
      UsageError: unknown data or split, or images of a class that the model does not know.
    """
    config = loaded.config.copy_and_resolve_references()
    if directory:
        config.data.dir = directory
    named = {part: config.data[part] for part in PARTS}
    if not split and not data and not (named["test"] or named["validation"]):
        raise UsageError(
            f"{loaded.workdir}: this run has neither a test nor a validation split; name one with --split, or other "
            "images with --data"
        )
    split = split or ("" if data else "test" if named["test"] else "validation")
    if not data and split in PARTS and not named[split]:
        raise UsageError(f"--split={split}: this run has none; name images in TFDS notation, such as --split='test'")
    if data:  # the user names it
        dataset = _other(data, config, loaded)
    else:
        with gate.named_by(loaded.workdir, allowed=loaded.own_code):
            dataset = dataset_of(config)
        if dataset.has_files and "train" not in dataset.stored_sizes and not config.data.folds:
            dataset = dataset.changed(side=config.data.side, cut=None)  # only the given parts are left of the folder
    numbers = _numbers(dataset, loaded)
    if data and not split:  # the one split that a folder of classes has
        there = [*dataset.stored_sizes]
        split = there[0] if len(there) == 1 else "test"
    expression = split if data else named.get(split, split)
    dataset.count(expression, "--split")
    if data and dataset.name == config.data.name and expression.startswith("train"):
        _say(f"{dataset.name}: the run was trained on images of {split}; without --data, its test part is evaluated")
    source = adapt(dataset.read(expression), numbers, loaded)
    if source.image_shape != loaded.image_shape:
        raise UsageError(
            f"{source.name}: images of {_size(source.image_shape)}, and the model was trained on "
            f"{_size(loaded.image_shape)}; export them with `jaxvit data export` at that size"
        )
    if not data:
        _compare(loaded, expression, source)
    return split, source


def _numbers(dataset: Dataset, loaded: Loaded) -> np.ndarray:
    """Returns the index of each class of a data set among the classes of the model; -1 = absent.

    Raises:
      UsageError: the model has none of the classes, or class names are not unique.
    """
    theirs, ours = dataset.class_names, loaded.class_names
    if theirs == ours:
        return np.arange(len(ours), dtype=np.int32)
    places = {name: number for number, name in enumerate(ours)}
    found = np.array([places.get(name, -1) for name in theirs], np.int32)
    if (found < 0).all() or len(places) < len(ours) or len({*theirs}) < len(theirs):
        few, known = (", ".join(names[:4]) + ", …" * (len(names) > 4) for names in (theirs, ours))
        raise UsageError(f"{dataset.name}: its classes ({few}) are not those of the model ({known})")
    return found


def adapt(source: Source | StreamedSource, numbers: np.ndarray, loaded: Loaded) -> AnySource:
    """Converts labels and colours of a split to those of the model; a note on stderr names every change.

    Args:
      source: the split.
      numbers: the index of each of its classes among the classes of the model; -1 = absent.
      loaded: the trained model.

    Raises:
      UsageError: it has images of a class that the model does not know.
    """
    channels, names = loaded.image_shape[-1], source.class_names
    same = len(numbers) == len(loaded.class_names) and (numbers == np.arange(len(numbers))).all()
    if same and source.image_shape[-1] == channels:
        return source
    adapted = AdaptedSource(source, loaded.class_names, numbers, channels)
    if source.image_shape[-1] != channels:
        kinds = {1: "grey", 3: "RGB"}
        _say(f"{source.name}: {kinds[3 if channels == 1 else 1]} images are converted to {kinds[channels]}")
    counted = isinstance(source, Source) or hasattr(source.records, "labels")
    if not same and counted:
        there = np.unique(adapted.labels)
        if len(there) < len(loaded.class_names):
            _say(f"{source.name}: has images of {len(there)} of the model's {len(loaded.class_names)} classes")
        if empty := [name for name, number in zip(names, numbers, strict=True) if number < 0]:
            _say(f"{source.name}: classes without images that the model does not know: {', '.join(empty[:4])}")
    return adapted


def _say(what: str) -> None:
    print(terminal(f"note: {what}"), file=sys.stderr)


def _other(name: str, config: Any, loaded: Loaded) -> Dataset:
    if not is_own(name):
        name = data_name(name)
    shape = loaded.image_shape
    how = {"on_error": config.data.on_error, "limits": loaded.limits, "white": config.data.white}
    dataset = open_dataset(name, data_dir(config.data.dir), **how)
    if shape[0] == shape[1] and (not dataset.is_fixed or dataset.image_shape[:2] != shape[:2]) and not is_own(name):
        if dataset.is_fixed:
            here = _size(dataset.image_shape[:2])
            _say(f"{name}: images of {here} are resized to {_size(shape[:2])}, as by `predict`")
        dataset = dataset.changed(side=shape[0], cut=None)  # the size of the model
    dataset.say_left_out()
    return dataset


def _compare(loaded: Loaded, expression: str, source: AnySource) -> None:
    """Prints a warning if a split of the run has changed since training."""
    used = read_environment(loaded.workdir)["data"]
    for part in PARTS:
        then = used.get(part, {}).get("sha256")
        if then and loaded.config.data[part] == expression and then != source.fingerprint["sha256"]:
            said = f"warning: {source.name}: these are not the images that the run used for {part}"
            print(terminal(said), file=sys.stderr)
            return


def _size(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def evaluate_cascade(
    cascade: Cascade,
    source: AnySource,
    chosen_on: AnySource | None = None,
    *,
    max_drop: float = 0.0,
    split: str = "test",
    batch_size: int = 0,
    devices: int = 0,
) -> tuple[dict[str, Any], Outcomes]:
    """Evaluates a cascade on every image of a split, once.

    Args:
      cascade: the two stages.
      source: labelled images.
      chosen_on: other labelled images, on which the threshold is chosen; None = the cascade's own threshold.
      max_drop: share of the images that the cascade may be less accurate there than its second stage alone.
      split, batch_size, devices: as in `evaluate_source`.

    Returns:
      (result, outcomes): as of `evaluate_source`, with threshold; again, the share of images that went on to the second
      stage; mean_macs, multiply-adds per image; and macs and top1_alone of the second stage alone.
    """
    few, more = (Predictor(each, batch_size or each.evaluation_batch, devices) for each in (cascade.few, cascade.more))
    threshold = cascade.threshold
    if chosen_on is not None:
        threshold = choose_threshold(few.outcomes(chosen_on), more.outcomes(chosen_on), max_drop)
    alone = more.outcomes(source)
    outcomes, again = combined(few.outcomes(source), alone, threshold)
    loaded = cascade.more
    facts = {
        "split": split,
        "data": source.name,
        "step": loaded.step,
        "weights": loaded.weights,
        "threshold": threshold,
        "again": again,
        "mean_macs": cascade.mean_macs(again),
        "macs": count_macs(loaded.model, loaded.input_shape)["all"],
        "top1_alone": float((alone.rank == 0).mean()),
    }
    return {**facts, **scores.score(outcomes, loaded.class_names, places=more.places)}, outcomes


def evaluate_source(
    loaded: Loaded, source: AnySource, *, split: str = "test", batch_size: int = 0, devices: int = 0
) -> tuple[dict[str, Any], Outcomes]:
    """Evaluates a loaded model on every image of a split, once.

    Args:
      loaded: the trained model.
      source: labelled images.
      split: name of the split, for the result.
      batch_size: images per batch; 0 = as in the run's evaluation. It affects the results only by rounding.
      devices: number of devices; 0 = all.

    Returns:
      (result, outcomes): the result of `evaluate`, and the outcome of each image.
    """
    predictor = Predictor(loaded, batch_size or loaded.evaluation_batch, devices)
    outcomes = predictor.outcomes(source)
    facts = {"split": split, "data": source.name, "step": loaded.step, "weights": loaded.weights}
    fewer = {"reduce": getattr(loaded.model, "reduce", "none"), "tokens": getattr(loaded.model, "learner_keep", 0)}
    if fewer := {name: value for name, value in fewer.items() if value not in ("none", 0)}:
        facts |= {**fewer, "macs": count_macs(loaded.model, loaded.input_shape)["all"]}
    return {**facts, **scores.score(outcomes, loaded.class_names, places=predictor.places)}, outcomes
