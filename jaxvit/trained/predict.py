"""What a trained model says about image files: `jaxvit.predict`."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxvit.data.depth import Depth
from jaxvit.trained.image_files import Converted, ImageFile, class_of, find_images, read_images
from jaxvit.trained.inference import Predictor
from jaxvit.trained.load import Loaded, load
from jaxvit.trained.prediction import Prediction, most_probable, softmax

BATCH = 64  # images at a time, unless told otherwise


def predict(
    run: str | Path | Loaded,
    images: str | Path | Iterable[str | Path],
    *,
    top: int = 5,
    checkpoint: str = "best",
    weights: str = "chosen",
    batch_size: int = 0,
    devices: int = 0,
    own_code: bool = False,
    max_pixels: int = 0,
    max_bytes: int = 0,
) -> list[Prediction]:
    """What a trained model says about image files.

    Args:
      run: a run's folder, or what `jaxvit.load` returned.
      images: a file, a folder (searched to its depths), a pattern such as 'photos/*.jpg', or several of them.
      top: classes to name for each image, at most K.
      checkpoint, weights, own_code: as `jaxvit.load`; not used where `run` is loaded already.
      batch_size: images at a time; 0 = 64, or as few as there are.
      devices: how many; 0 = all.
      max_pixels, max_bytes: what a file may have, 0 = as in the run's config; a larger one counts as one that cannot
        be read.

    Returns:
      A `Prediction` for each file, in order; a file that cannot be read has an `error` and no classes.

    Raises:
      UsageError: no such run.
      RunFailedError: the scores are not finite, or the device has no memory for such a batch.

    Example:
      >>> jaxvit.predict("runs/digits", "images/3/test_00000.png")[0].top[0]  # doctest: +SKIP
      ('3', 0.8844)
    """
    loaded = run if isinstance(run, Loaded) else load(run, checkpoint=checkpoint, weights=weights, own_code=own_code)
    words = [images] if isinstance(images, str | Path) else images
    names = find_images(str(word) for word in words)
    loaded = loaded.with_limits(max_pixels, max_bytes)
    return [said for _, said in predict_files(loaded, names, top=top, batch=batch_size, devices=devices)]


def predict_files(
    loaded: Loaded,
    names: Iterator[str],
    *,
    top: int = 5,
    batch: int = 0,
    devices: int = 0,
    depth: Depth | None = None,
    converted: Converted | None = None,
) -> Iterator[tuple[np.ndarray | None, Prediction]]:
    """Yields (pixels uint8 [H, W, C] as the model is given them, what it says) for each file, in order.

    Args:
      loaded: the trained model; a file beyond its `limits` counts as one that cannot be read.
      names: of the files; they are read as the results are asked for.
      top: classes to name, at most K.
      batch: images at a time; 0 = 64, or as few as there are.
      devices: how many; 0 = all.
      depth: takes note of images of more than 8 bits; None = the run's own `data.white`, noted nowhere.
      converted: counts colour images for a grey model, and grey images for an RGB model.
    """
    depth = depth or Depth(loaded.config.data.white)
    for files, logits_BK in read_and_compute(
        loaded, names, batch=batch, devices=devices, depth=depth, converted=converted
    ):
        rows = iter(softmax(logits_BK))
        for file in files:
            truth = class_of(file.name, loaded.class_names)
            if file.pixels is None:
                yield None, Prediction(file.name, truth=truth, error=file.error)
                continue
            yield file.pixels, Prediction(file.name, most_probable(next(rows), loaded.class_names, top), truth)


def read_and_compute(
    loaded: Loaded,
    names: Iterator[str],
    *,
    batch: int = 0,
    devices: int = 0,
    depth: Depth | None = None,
    converted: Converted | None = None,
    compute: Callable[[Any, jax.Array], jax.Array] | None = None,
) -> Iterator[tuple[list[ImageFile], np.ndarray]]:
    """Yields (files, float32 [n, K] with a row for each that could be read) for each batch, in order.

    Args:
      loaded, names, batch, devices, depth, converted: as `predict_files`.
      compute: see `jaxvit.trained.inference.Predictor`.
    """
    names = iter(names)
    first = list(itertools.islice(names, batch or BATCH))
    # A few images need not wait for a large batch; powers of two, so that the compiled programs are soon known.
    size = batch or min(BATCH, 1 << max(0, len(first) - 1).bit_length())
    predictor = Predictor(loaded, size, devices, compute)
    waiting: deque[list[ImageFile]] = deque()

    def batches() -> Iterator[np.ndarray]:
        named = itertools.chain(first, names)
        read = read_images(named, loaded.image_shape, predictor.batch_size, loaded.limits, depth, converted)
        for files in read:
            waiting.append(files)
            pixels = [file.pixels for file in files if file.pixels is not None]
            yield np.stack(pixels) if pixels else np.empty((0, *loaded.image_shape), np.uint8)

    for found_BK in predictor.logits(batches()):
        yield waiting.popleft(), found_BK
