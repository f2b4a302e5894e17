"""How much a model's frozen features tell about other classes: `jaxvit probe`.

'linear' is logistic regression on standardised features, 'nearest' a vote of the nearest training images by cosine.
Both follow common practice for frozen features (Caron et al. 2021, arXiv:2104.14294; Kornblith et al. 2019,
arXiv:1805.08974); the strength of the regularisation is chosen on validation images, or by cross-validation.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxvit.data.few import Few, choose_few
from jaxvit.data.parts import Source, StreamedSource
from jaxvit.errors import UsageError
from jaxvit.trained.adapted import AdaptedSource
from jaxvit.trained.embed import features_and_logits
from jaxvit.trained.inference import Predictor
from jaxvit.trained.intervals import wilson
from jaxvit.trained.load import Loaded

KINDS = ("linear", "nearest")
STRENGTHS = tuple(10.0**k for k in range(-4, 3))  # C of scikit-learn: smaller = more regularisation
NEIGHBOURS = 10
_ROUNDS = 500  # most iterations of the regression


@dataclass(frozen=True)
class Features:
    """Features of labelled images.

    Attributes:
      x: float32 [N, C].
      labels: int [N].
    """

    x: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Probed:
    """The result of `probe`.

    Attributes:
      kind: 'linear' or 'nearest'.
      top1: share of the test images whose class is right.
      low, high: its 95 % interval (Wilson).
      count: number of test images.
      train_count: number of training images.
      classes: number of classes.
      features: number of features of an image.
      strength: C of the regression; for 'nearest', the number of neighbours.
      chosen_on: how it was chosen: 'validation', 'cross-validation', or 'fixed'.
    """

    kind: str
    top1: float
    low: float
    high: float
    count: int
    train_count: int
    classes: int
    features: int
    strength: float
    chosen_on: str


def features_of(loaded: Loaded, source: Source | StreamedSource, *, batch_size: int = 0, devices: int = 0) -> Features:
    """Features of every image of a split, as `jaxvit embed` computes them.

    Args:
      loaded: the model.
      source: labelled images of the model's size; grey and RGB are converted into each other.
      batch_size: images per batch; 0 = as in the run's evaluation.
      devices: number of devices; 0 = all.

    Raises:
      UsageError: the images have another size.
    """
    numbers = np.arange(len(source.class_names), dtype=np.int32)
    adapted = AdaptedSource(source, source.class_names, numbers, loaded.image_shape[-1])
    if adapted.image_shape != tuple(loaded.image_shape):
        size, wanted = ("×".join(map(str, shape)) for shape in (adapted.image_shape, loaded.image_shape))
        height, width, _ = loaded.image_shape
        remedy = f"set data.side={height}" if height == width else "only images of that size can be probed"
        raise UsageError(f"{source.name}: images of {size}, and the model takes {wanted}; {remedy}")

    def compute(variables: object, images_BHWC: jax.Array) -> jax.Array:
        return features_and_logits(loaded, variables, images_BHWC)

    predictor = Predictor(loaded, batch_size or loaded.evaluation_batch, devices, compute)
    images = jax.ShapeDtypeStruct((1, *loaded.image_shape), np.uint8)
    places = jax.eval_shape(loaded.apply, loaded.variables, images).shape[-1]
    kept: list[tuple[np.ndarray, np.ndarray]] = []

    def batches() -> Iterator[np.ndarray]:
        for start in range(0, len(adapted), predictor.batch_size):
            rows = np.arange(start, min(start + predictor.batch_size, len(adapted)))
            pixels, labels, good = adapted.batch(rows)
            kept.append((labels, good))
            yield pixels

    found = [row[:, :-places] for row in predictor.logits(batches())]
    x = np.concatenate([rows[good] for rows, (_, good) in zip(found, kept, strict=True)])
    return Features(x, np.concatenate([labels[good] for labels, good in kept]))


def few(source: Source | StreamedSource, shots: int, draw: int = 0) -> Source:
    """The training images of a k-shot probe; see `jaxvit.data.few.choose_few`."""
    try:
        return choose_few(source, Few("", shots, draw))
    except UsageError as error:
        raise UsageError(str(error).replace("config.data.per_class", "--shots")) from None


def probe(kind: str, train: Features, test: Features, validation: Features | None = None) -> Probed:
    """Trains a classifier on features and tests it.

    Args:
      kind: 'linear' or 'nearest'.
      train: features to learn from.
      test: features to test on.
      validation: features to choose the regularisation on; None = up to five-fold cross-validation within `train`, the
        folds stratified by class. Then all training images are used. It is not used by 'nearest'.

    Raises:
      UsageError: another kind, or too few images.

    Example:
      >>> x, y = np.eye(4, dtype=np.float32)[[0, 1, 0, 1]], np.array([0, 1, 0, 1])
      >>> probe("nearest", Features(x, y), Features(x, y)).top1
      1.0
    """
    if kind not in KINDS:
        raise UsageError(f"--kind={kind}: must be one of {', '.join(KINDS)}")
    classes = len(np.unique(train.labels))
    if classes < 2:
        raise UsageError("a probe needs training images of two classes or more")
    if kind == "nearest":
        strength, chosen_on = float(min(NEIGHBOURS, len(train.labels))), "fixed"
        right = _vote(train, test.x, int(strength)) == test.labels
    else:
        strength, chosen_on = _choose(train, validation)
        right = _regression(train, strength).predict(test.x) == test.labels
    top1 = float(right.mean())
    low, high = wilson(top1, len(right))
    sizes = len(right), len(train.labels), classes, train.x.shape[1]
    return Probed(kind, top1, low, high, *sizes, strength, chosen_on)


def _regression(train: Features, strength: float) -> Any:  # scikit-learn has no types
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=_ROUNDS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weak regularisation may not converge: it is then not chosen, or good enough
        return model.fit(train.x.astype(np.float64), train.labels)


def _choose(train: Features, validation: Features | None) -> tuple[float, str]:
    """The strength with the most right answers, and of equal ones the strongest regularisation; and how."""
    if validation is not None:
        right = [float((_regression(train, c).predict(validation.x) == validation.labels).mean()) for c in STRENGTHS]
        return STRENGTHS[int(np.argmax(right))], "validation"
    fewest = int(np.unique(train.labels, return_counts=True)[1].min())
    if fewest < 2:
        return 1.0, "fixed"
    from sklearn.model_selection import StratifiedKFold

    folds = StratifiedKFold(min(5, fewest), shuffle=True, random_state=0)
    counts = np.zeros(len(STRENGTHS))
    for inside, outside in folds.split(train.x, train.labels):
        part = Features(train.x[inside], train.labels[inside])
        for i, c in enumerate(STRENGTHS):
            counts[i] += (_regression(part, c).predict(train.x[outside]) == train.labels[outside]).sum()
    return STRENGTHS[int(np.argmax(counts))], "cross-validation"


def _vote(train: Features, x: np.ndarray, neighbours: int) -> np.ndarray:
    """The class with the largest sum of 1 + cosine over the nearest training images; of equal ones the lower class."""
    ours, theirs = (each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), 1e-12) for each in (train.x, x))
    classes = int(train.labels.max()) + 1
    found = []
    for start in range(0, len(theirs), 1024):
        cosines = theirs[start : start + 1024] @ ours.T
        nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :neighbours]
        votes = np.zeros((len(cosines), classes))
        rows = np.repeat(np.arange(len(cosines)), nearest.shape[1])
        weights = 1 + np.take_along_axis(cosines, nearest, axis=1).reshape(-1)
        np.add.at(votes, (rows, train.labels[nearest.reshape(-1)]), weights)
        found.append(votes.argmax(axis=1))
    return np.concatenate(found)
