"""Classifies image files with a trained model: `jaxvit.predict`."""

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

BATCH = 64  # default batch size


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
    """Classifies image files with a trained model.

    Args:
      run: a run's folder, or a model that `jaxvit.load` returned.
      images: a file, a folder (searched recursively), a pattern such as 'photos/*.jpg', or several of them.
      top: number of classes to return for each image, at most K.
      checkpoint, weights, own_code: see `jaxvit.load`; ignored if `run` is a loaded model.
      batch_size: images per batch; 0 = at most 64, and fewer for fewer files.
      devices: number of devices; 0 = all.
      max_pixels, max_bytes: largest size of an image and of its file; 0 = as in the run's config. Larger images count
        as unreadable.

    Returns:
      A `Prediction` for each file, in order; a file that cannot be read has an `error` and no classes.

    Raises:
      UsageError: the run cannot be loaded.
      RunFailedError: the scores are not finite, or the batch does not fit into device memory.

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
    make: Callable[..., Predictor] | None = None,
) -> Iterator[tuple[np.ndarray | None, Prediction]]:
    """Yields (the model's input pixels, uint8 [H, W, C], or None; its prediction) for each file, in order.

    Args:
      loaded: the trained model; files over its `limits` count as unreadable.
      names: paths of the files, which are read lazily.
      top: number of classes to return, at most K.
      batch: images per batch; 0 = at most 64, and fewer for fewer files.
      devices: number of devices; 0 = all.
      depth: converts images of more than 8 bits, and records their values; None = a new one with the run's
        `data.white`.
      converted: counts colour images for a grey model, and grey images for an RGB model.
      make: see `read_and_compute`.
    """
    depth = depth or Depth(loaded.config.data.white)
    for files, logits_BK in read_and_compute(
        loaded, names, batch=batch, devices=devices, depth=depth, converted=converted, make=make
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
    make: Callable[..., Predictor] | None = None,
) -> Iterator[tuple[list[ImageFile], np.ndarray]]:
    """Yields (files, outputs float32 [n, K] of the readable files among them) for each batch, in order.

    Args:
      loaded, names, batch, devices, depth, converted: see `predict_files`.
      compute: see `jaxvit.trained.inference.Predictor`.
      make: makes the predictor, from (loaded, size of a batch, devices, compute); None = `Predictor`.
    """
    names = iter(names)
    first = list(itertools.islice(names, batch or BATCH))
    # A small batch for a few images. Powers of two limit the number of programs to compile.
    size = batch or min(BATCH, 1 << max(0, len(first) - 1).bit_length())
    predictor = (make or Predictor)(loaded, size, devices, compute)
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
