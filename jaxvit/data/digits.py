"""`digits`: 1,797 real handwritten digits, 8×8 grey, as a TFDS data set that needs no network.

The images are the test part of the UCI "Optical Recognition of Handwritten Digits" set (Alpaydin and Kaynak, 1998),
which scikit-learn carries. Pixel values 0..16 are stored as round(255·v/16), which can be undone exactly.

Splits are fixed and stratified: `train` 1,437 and `test` 360. Within `train` the classes are interleaved, so that any
contiguous part is stratified too; `configs/digits.py` keeps the last 180 for validation. Once prepared, any TFDS user
can read the directory: ``tfds.data_source('digits', split='test', data_dir=...)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

TEST_IMAGES = 360


def split_indices(labels: np.ndarray, test_images: int = TEST_IMAGES) -> dict[str, np.ndarray]:
    """Indices of the two splits: a function of the labels alone, the same with every library version.

    Args:
      labels: int [N].
      test_images: size of the test split.

    Returns:
      {'train': [N - test_images], 'test': [test_images]}; in each, classes follow one another in turn.
    """
    # Within a class, order by a fixed pseudo-random number; then deal the classes out evenly along [0, 1): taking a
    # prefix of that order takes the same share of every class.
    noise = np.random.Philox(key=1998).random_raw(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        members = members[np.argsort(noise[members], kind="stable")]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    order = np.lexsort((labels, place))
    return {"test": order[:test_images], "train": order[test_images:]}


class Digits(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of `digits`, written in the array_record format."""

    name = "digits"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}

    def __init__(self, **options: Any):
        # TFDS's own default, tfrecord, cannot be read without TensorFlow.
        super().__init__(**{"file_format": "array_record", **options})

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="1,797 real handwritten digits, 8×8 grey (UCI Optical Recognition of Handwritten Digits).",
            homepage="https://archive.ics.uci.edu/dataset/80",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
                    "id": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images = np.round(bunch.images * (255 / 16)).astype(np.uint8)
        labels = bunch.target.astype(np.int64)
        return {
            split: self._generate_examples(split, images[chosen], labels[chosen])
            for split, chosen in split_indices(labels).items()
        }

    def _generate_examples(
        self, split: str, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": Image.fromarray(image), "label": int(label), "id": f"{split}_{i:05d}"}
