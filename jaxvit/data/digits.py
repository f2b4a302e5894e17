"""`digits`: 1,797 real handwritten digits, 8×8 grey, as a TFDS data set that needs no network.

The images are the test part of the UCI "Optical Recognition of Handwritten Digits" set (Alpaydin and Kaynak, 1998),
which scikit-learn includes. Pixel values 0..16 are stored as round(255·v/16), which is exactly invertible.

Splits are fixed and stratified: 1,437 images in `train`, 360 in `test`. The classes in `train` are interleaved, so any
contiguous part is stratified too; `configs/digits.py` keeps the last 180 images for validation. Any TFDS user can read
the prepared directory: ``tfds.data_source('digits', split='test', data_dir=...)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

TEST_IMAGES = 360


def split_indices(labels: np.ndarray, test_images: int = TEST_IMAGES) -> dict[str, np.ndarray]:
    """Returns the indices of the two splits. They depend only on the labels, not on library versions.

    Args:
      labels: int [N].
      test_images: size of the test split.

    Returns:
      {'train': int [N - test_images], 'test': int [test_images]}, with interleaved classes.
    """
    # Shuffle each class with a fixed seed and spread it evenly over [0, 1). Any prefix of the resulting order then
    # contains the same share of every class.
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
        # The default of TFDS, tfrecord, cannot be read without TensorFlow.
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
