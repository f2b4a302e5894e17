"""Features of images: the input of a trained model's head, for search, clustering and maps of a data set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from PIL import Image

from jaxvit.data.depth import Depth
from jaxvit.errors import UsageError
from jaxvit.files import replaced
from jaxvit.trained.image_files import Converted, class_of, find_images
from jaxvit.trained.load import Loaded, load
from jaxvit.trained.predict import read_and_compute
from jaxvit.trained.rows import parquet_rows

ENDINGS = (".npz", ".parquet")
MAPS = ("tsne", "pca")
FEWEST = 5  # smallest number of images for t-SNE


@dataclass(frozen=True)
class Embedded:
    """The features of a file.

    Attributes:
      file: its name.
      features: float32 [C]; None where there is an error.
      predicted: the most probable class.
      truth: the class that the file's folder is named after; '' = none.
      error: why the file could not be read; '' if it could.
    """

    file: str
    features: np.ndarray | None
    predicted: str = ""
    truth: str = ""
    error: str = ""


def embed(
    run: str | Path | Loaded,
    images: str | Path | Iterable[str | Path],
    *,
    checkpoint: str = "best",
    weights: str = "chosen",
    batch_size: int = 0,
    devices: int = 0,
    own_code: bool = False,
) -> list[Embedded]:
    """Features of image files: the vector that the head of a trained model takes.

    Args:
      run: a run's folder, or a model that `jaxvit.load` returned.
      images: a file, a folder, a pattern, or several of them, as in `jaxvit.predict`.
      checkpoint, weights, own_code: see `jaxvit.load`; ignored if `run` is a loaded model.
      batch_size: images per batch; 0 = at most 64, and fewer for fewer files.
      devices: number of devices; 0 = all.

    Returns:
      An `Embedded` for each file, in order; a file that cannot be read has an `error` and no features.

    Raises:
      UsageError: no such run, or a model of the user's own without a head.
      RunFailedError: the features are not finite, or the batch does not fit into device memory.

    Example:
      >>> jaxvit.embed("runs/pets", "photos")[0].features.shape  # doctest: +SKIP
      (128,)
    """
    loaded = run if isinstance(run, Loaded) else load(run, checkpoint=checkpoint, weights=weights, own_code=own_code)
    words = [images] if isinstance(images, str | Path) else images
    names = find_images(str(word) for word in words)
    return [found for _, found in embed_files(loaded, names, batch=batch_size, devices=devices)]


def features_and_logits(loaded: Loaded, variables: Any, images_BHWC: jax.Array) -> jax.Array:
    """Features [B, C] and scores [B, K] side by side, float32 [B, C + K]; to be traced.

    The features are the input of the layer `head`; in a model of the user's own that has none, of its last dense layer.

    Raises:
      UsageError: it has neither.
    """
    taken: list[jax.Array] = []
    of_head: list[jax.Array] = []

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name == "__call__" and args:
            if context.module.path == ("head",):
                of_head.append(args[0])
            elif isinstance(context.module, nn.Dense):
                taken.append(args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        logits_BK = loaded.apply(variables, images_BHWC)
    found = of_head or taken
    if not found or found[-1].shape[0] != len(images_BHWC):
        raise UsageError(f"{loaded.config.model.name}: has no layer 'head' and no dense layer, so it has no features")
    features_BC = found[-1].reshape(len(images_BHWC), -1).astype(jnp.float32)
    return jnp.concatenate([features_BC, logits_BK.astype(jnp.float32)], axis=1)


def embed_files(
    loaded: Loaded,
    names: Iterator[str],
    *,
    batch: int = 0,
    devices: int = 0,
    depth: Depth | None = None,
    converted: Converted | None = None,
) -> Iterator[tuple[np.ndarray | None, Embedded]]:
    """Yields (the model's input pixels, uint8 [H, W, C], or None; its features) for each file, in order.

    Args:
      loaded, names, batch, devices, depth, converted: see `jaxvit.trained.predict.predict_files`.
    """
    images = jax.ShapeDtypeStruct((1, *loaded.image_shape), jnp.uint8)
    places = jax.eval_shape(loaded.apply, loaded.variables, images).shape[-1]

    def compute(variables: Any, images_BHWC: jax.Array) -> jax.Array:
        return features_and_logits(loaded, variables, images_BHWC)

    how = {"batch": batch, "devices": devices, "depth": depth or Depth(loaded.config.data.white)}
    for files, found in read_and_compute(loaded, names, **how, converted=converted, compute=compute):
        rows = iter(found)
        for file in files:
            truth = class_of(file.name, loaded.class_names)
            if file.pixels is None:
                yield None, Embedded(file.name, None, truth=truth, error=file.error)
                continue
            row = next(rows)
            scores_K = row[-places:][: len(loaded.class_names)]
            yield file.pixels, Embedded(file.name, row[:-places], loaded.class_names[scores_K.argmax()], truth)


def write_features(found: Iterable[Embedded], file: Path) -> int:
    """Writes features with the names of their files; returns how many. Files that cannot be read are left out.

    Args:
      found: the features, read one by one. A Parquet file is written in groups of rows; .npz keeps all features in
        memory.
      file: path that ends in .npz (arrays `features` float32 [N, C]; `files`, `true` and `predicted`, strings [N]; no
        pickles) or .parquet (columns `file`, `true`, `predicted`, and `features`, a list of C numbers).

    Raises:
      UsageError: no file could be read.
    """
    good = (one for one in found if one.features is not None)
    first = next(good, None)
    if first is None:
        raise UsageError(f"{file}: is not written, since no image could be read")
    count = 0
    with replaced(file) as beside:
        if file.suffix.lower() == ".parquet":
            import pyarrow

            features = pyarrow.list_(pyarrow.float32(), first.features.size)
            columns = {"file": "string", "true": "string", "predicted": "string", "features": features}
            with parquet_rows(beside, columns) as write:
                for one in _with_first(first, good):
                    write([one.file, one.truth or None, one.predicted, one.features])
                    count += 1
            return count
        every = [*_with_first(first, good)]
        names = {
            "files": np.array([one.file for one in every]),
            "true": np.array([one.truth for one in every]),
            "predicted": np.array([one.predicted for one in every]),
        }
        with beside.open("wb") as stream:
            np.savez(stream, features=np.stack([one.features for one in every]), **names)
        return len(every)


def _with_first(first: Embedded, others: Iterable[Embedded]) -> Iterator[Embedded]:
    yield first
    yield from others


class MapSample:
    """A uniform random sample of images for a map, from a stream of unknown length (reservoir sampling).

    Args:
      size: largest number of images in the sample.
      side: side of the thumbnails, in pixels.
      seed: seed of the random choice.
    """

    def __init__(self, size: int, side: int = 32, seed: int = 0):
        self._size, self._side, self._rng, self._seen = size, side, np.random.default_rng(seed), 0
        self._kept: list[tuple[int, Embedded, np.ndarray]] = []

    def add(self, pixels: np.ndarray, found: Embedded) -> None:
        """Adds an image of the stream; it may replace another one in the sample."""
        place = len(self._kept) if len(self._kept) < self._size else int(self._rng.integers(0, self._seen + 1))
        if place < self._size:
            entry = (self._seen, found, _thumbnail(pixels, self._side))
            self._kept[place : place + 1] = [entry]
        self._seen += 1

    @property
    def images(self) -> list[tuple[Embedded, np.ndarray]]:
        """(features, uint8 thumbnail [h, w, C]) of each, in the order of the stream."""
        return [(found, thumbnail) for _, found, thumbnail in sorted(self._kept, key=lambda entry: entry[0])]


def _thumbnail(pixels: np.ndarray, side: int) -> np.ndarray:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    image.thumbnail((side, side))
    small = np.array(image)
    return small[..., None] if small.ndim == 2 else small


def place_on_map(features_NC: np.ndarray, how: str = "tsne", seed: int = 0) -> np.ndarray:
    """Projects features to two dimensions, float [N, 2], with scikit-learn; reproducible on the same machine.

    Args:
      features_NC: N ≥ 1.
      how: 'pca' (the two directions of largest variance) or 'tsne' (t-SNE, van der Maaten and Hinton 2008: keeps near
        neighbours near; distances between groups mean little). Fewer than `FEWEST` images always use 'pca'.
      seed: seed for t-SNE.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    count = len(features_NC)
    features_NC = features_NC.astype(np.float64)
    places_N2 = np.zeros((count, 2))
    if not np.ptp(features_NC, axis=0).any():  # all alike
        return places_N2
    if how == "tsne" and count >= FEWEST:
        perplexity = min(30.0, (count - 1) / 3)
        init = "pca" if features_NC.shape[1] > 1 else "random"
        tsne = TSNE(2, init=init, perplexity=perplexity, random_state=seed)
        return np.asarray(tsne.fit_transform(features_NC))
    dims = min(2, *features_NC.shape)
    places_N2[:, :dims] = PCA(dims, svd_solver="full").fit_transform(features_NC)
    return places_N2
