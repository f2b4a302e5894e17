"""What a trained model says about image files: `jaxvit.predict`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxvit.data.depth import Depth
from jaxvit.data.image_files import class_name
from jaxvit.trained.image_files import ImageFile, find_images, read_images
from jaxvit.trained.inference import Predictor, softmax
from jaxvit.trained.load import Loaded, load

BATCH = 64  # images at a time, unless told otherwise


@dataclass(frozen=True)
class Prediction:
    """What the model says about a file.

    Attributes:
      file: its name.
      top: (class, probability), the most probable first; empty where there is an error.
      truth: the class that the file's folder names; '' = none.
      error: why the file could not be read; '' = it could.
    """

    file: str
    top: tuple[tuple[str, float], ...] = ()
    truth: str = ""
    error: str = ""

    @property
    def right(self) -> bool | None:
        """Whether the most probable class is the true one; None = that one is not known, or there is an error."""
        return self.top[0][0] == self.truth if self.top and self.truth else None


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
) -> Iterator[tuple[np.ndarray | None, Prediction]]:
    """Yields (pixels uint8 [H, W, C] as the model is given them, what it says) for each file, in order.

    Args:
      loaded: the trained model; a file beyond its `limits` counts as one that cannot be read.
      names: of the files; they are read as the results are asked for.
      top: classes to name, at most K.
      batch: images at a time; 0 = 64, or as few as there are.
      devices: how many; 0 = all.
      depth: takes note of images of more than 8 bits; None = the run's own `data.white`, noted nowhere.
    """
    depth = depth or Depth(loaded.config.data.white)
    names = iter(names)
    first = list(itertools.islice(names, batch or BATCH))
    # A few images need not wait for a large batch; powers of two, so that the compiled programs are soon known.
    size = batch or min(BATCH, 1 << max(0, len(first) - 1).bit_length())
    predictor = Predictor(loaded, size, devices)
    waiting: list[list[ImageFile]] = []

    def batches() -> Iterator[np.ndarray]:
        named = itertools.chain(first, names)
        for files in read_images(named, loaded.image_shape, predictor.batch_size, loaded.limits, depth):
            waiting.append(files)
            pixels = [file.pixels for file in files if file.pixels is not None]
            yield np.stack(pixels) if pixels else np.empty((0, *loaded.image_shape), np.uint8)

    for logits_BK in predictor.logits(batches()):
        rows = iter(softmax(logits_BK))
        for file in waiting.pop(0):
            truth = class_name(Path(file.name).parent.name)
            truth = truth if truth in loaded.class_names else ""
            if file.pixels is None:
                yield None, Prediction(file.name, truth=truth, error=file.error)
                continue
            yield file.pixels, Prediction(file.name, _best(next(rows), loaded.class_names, top), truth)


def _best(probabilities_K: np.ndarray, names: tuple[str, ...], top: int) -> tuple[tuple[str, float], ...]:
    order = np.argsort(-probabilities_K[: len(names)], kind="stable")[:top]
    return tuple((names[i], float(probabilities_K[i])) for i in order)
