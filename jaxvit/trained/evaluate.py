"""How good a trained model is on a split of labelled images: `jaxvit.evaluate`."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxvit import own_code as gate
from jaxvit.config.plan import dataset_of
from jaxvit.data import image_folder
from jaxvit.data.parts import Source, StreamedSource
from jaxvit.data.prepared import data_dir
from jaxvit.data.sources import Dataset, open_dataset
from jaxvit.errors import UsageError
from jaxvit.run.folder import read_environment
from jaxvit.shown import terminal
from jaxvit.trained import scores
from jaxvit.trained.inference import Outcomes, Predictor
from jaxvit.trained.load import Loaded, load

PARTS = ("train", "validation", "test")


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
      run: a run's folder, or what `jaxvit.load` returned.
      split: 'train', 'validation' or 'test' as the run used them, or TFDS notation such as 'test[:100]'; '' = test, or
        where the run has none, validation.
      data: another data set with the same classes, such as 'image_folder:photos'; '' = the run's.
      data_dir: TFDS directory; '' = the run's, else the usual one.
      checkpoint, weights, own_code: as `jaxvit.load`; not used where `run` is loaded already.
      batch_size: images at a time; 0 = as the run's evaluation. It changes no result but by rounding.
      devices: how many; 0 = all.
      max_pixels, max_bytes: what a stored image, and the file of one, may have; 0 = as in the run's config. A larger
        one counts as one that cannot be decoded.

    Returns:
      split, data, step, weights, and everything of `jaxvit.trained.scores.score`: count, loss, top1, top5 (fractions),
      precision, recall, f1, ece, calibration, per_class, confusion, most_confused, class_names.

    Raises:
      UsageError: no such run, data or split; other classes.
      RunFailedError: the scores are not finite, or the device has no memory for such a batch.

    Example:
      >>> jaxvit.evaluate("runs/digits", "validation")["top1"]  # doctest: +SKIP
      0.9944
    """
    loaded = run if isinstance(run, Loaded) else load(run, checkpoint=checkpoint, weights=weights, own_code=own_code)
    loaded = loaded.with_limits(max_pixels, max_bytes)
    name, source = read_split(loaded, split, data, data_dir)
    return evaluate_source(loaded, source, split=name, batch_size=batch_size, devices=devices)[0]


def read_split(
    loaded: Loaded, split: str = "", data: str = "", directory: str = ""
) -> tuple[str, Source | StreamedSource]:
    """(name, images) of a split: one that the run used, any other of its data set, or one of another data set.

    Args:
      loaded: the trained model.
      split: 'train', 'validation' or 'test' as the run's config has them, or TFDS notation; '' = test, or where the
        run has none, validation.
      data: another data set's name; '' = the run's.
      directory: the TFDS directory; '' = the run's, else the usual one.

    Raises:
      UsageError: there is no such data or split, or other classes.
    """
    config = loaded.config.copy_and_resolve_references()
    if directory:
        config.data.dir = directory
    named = {part: config.data[part] for part in PARTS}
    if not split and not data and not (named["test"] or named["validation"]):
        raise UsageError(f"{loaded.workdir}: this run has neither a test nor a validation split; name one with --split")
    split = split or ("test" if named["test"] or data else "validation")
    if split in PARTS and not data and not named[split]:
        raise UsageError(f"--split={split}: this run has none; name images in TFDS notation, such as --split='test'")
    if data:  # the user names it
        dataset = _other(data, config, loaded)
    else:
        with gate.named_by(loaded.workdir, allowed=loaded.own_code):
            dataset = dataset_of(config)
    if dataset.class_names != loaded.class_names:
        theirs, ours = _differing(dataset.class_names, loaded.class_names)
        raise UsageError(f"{dataset.name}: its classes ({theirs}) are not those of the model ({ours})")
    expression = split if data else named.get(split, split)
    dataset.count(expression, "--split")
    source = dataset.read(expression)
    if source.image_shape != loaded.image_shape:
        raise UsageError(
            f"{source.name}: images of {_size(source.image_shape)}, and the model was trained on "
            f"{_size(loaded.image_shape)}; export them with `jaxvit data export` at that size"
        )
    if not data:
        _compare(loaded, expression, source)
    return split, source


def _other(name: str, config: Any, loaded: Loaded) -> Dataset:
    side, shape = config.data.side, loaded.image_shape
    if name.startswith((image_folder.PREFIX, image_folder.TABLE_PREFIX)) and shape[0] == shape[1]:
        side = shape[0]  # files of any size are brought to the model's
    how = {"on_error": config.data.on_error, "side": side, "limits": loaded.limits, "white": config.data.white}
    dataset = open_dataset(name, data_dir(config.data.dir), **how)
    dataset.say_left_out()
    return dataset


def _compare(loaded: Loaded, expression: str, source: Source | StreamedSource) -> None:
    """Warns where a split that the run used is not what it was."""
    used = read_environment(loaded.workdir)["data"]
    for part in PARTS:
        then = used.get(part, {}).get("sha256")
        if then and loaded.config.data[part] == expression and then != source.fingerprint["sha256"]:
            said = f"warning: {source.name}: these are not the images that the run used for {part}"
            print(terminal(said), file=sys.stderr)
            return


def _differing(*lists: Sequence[str]) -> Iterator[str]:
    """Shows each of some lists of classes by four names, from the first place where they differ."""
    start = next(i for i, names in enumerate(itertools.zip_longest(*lists)) if len(set(names)) > 1)
    first = max(0, start - 3)  # some that agree, for the place
    for names in lists:
        shown = names[first : first + 4]
        yield "…, " * (first > 0) + ", ".join(shown) + ", …" * (len(names) > first + 4)


def _size(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def evaluate_source(
    loaded: Loaded, source: Source | StreamedSource, *, split: str = "test", batch_size: int = 0, devices: int = 0
) -> tuple[dict[str, Any], Outcomes]:
    """Evaluates on every image of a split, once.

    Args:
      loaded: the trained model.
      source: labelled images.
      split: its name, for the result.
      batch_size: images at a time; 0 = as the run's evaluation. It changes no result but by rounding.
      devices: how many; 0 = all.

    Returns:
      (split, data, checkpoint step, weights and everything of `jaxvit.trained.scores.score`; what was said of each
      image).
    """
    predictor = Predictor(loaded, batch_size or loaded.evaluation_batch, devices)
    outcomes = predictor.outcomes(source)
    facts = {"split": split, "data": source.name, "step": loaded.step, "weights": loaded.weights}
    return {**facts, **scores.score(outcomes, loaded.class_names, places=predictor.places)}, outcomes
