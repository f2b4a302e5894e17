"""Where images come from: a TFDS directory in, uint8 arrays, labels and class names out. No TensorFlow.

`open_dataset` looks (sizes, shapes, names: cheap), `Dataset.read` decodes one split into memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxvit.errors import UsageError, nearest


@dataclass(frozen=True)
class Source:
    """One split, decoded.

    Attributes:
      name: data set and split, such as 'digits: train[:1257]'.
      images: uint8 [N, H, W, C], in the order they are stored.
      labels: int32 [N].
      class_names: K names; ``class_names[label]``.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Count, class balance, channel mean and standard deviation (0..1 range) and a hash of pixels and labels."""
        channels = self.images.reshape(-1, self.images.shape[-1])
        # Sums of integers are exact, so the figures do not depend on the order of the images.
        counts = [np.bincount(channel, minlength=256) for channel in channels.T]
        levels = np.arange(256) / 255
        means = [float(c @ levels / c.sum()) for c in counts]
        stds = [float(np.sqrt(c @ (levels - m) ** 2 / c.sum())) for c, m in zip(counts, means, strict=True)]
        digest = hashlib.sha256(np.ascontiguousarray(self.images)).copy()
        digest.update(np.ascontiguousarray(self.labels.astype("<i4")))
        return {
            "count": len(self),
            "classes": np.bincount(self.labels, minlength=len(self.class_names)).tolist(),
            "mean": [round(m, 6) for m in means],
            "std": [round(s, 6) for s in stds],
            "sha256": digest.hexdigest()[:16],
        }


class Dataset:
    """A prepared TFDS classification data set."""

    def __init__(self, builder: Any):
        self._builder = builder
        self.name: str = builder.name
        self.version = str(builder.version)
        features = builder.info.features
        if not {"image", "label"} <= set(features) or not hasattr(features["label"], "names"):
            raise UsageError(
                f"config.data.name: '{self.name}' has no features named image and label; "
                "only classification data sets can be trained on"
            )
        self.class_names: tuple[str, ...] = tuple(features["label"].names)
        self.image_shape: tuple[int | None, ...] = tuple(features["image"].shape)

    def count(self, split: str, key: str = "split") -> int:
        """Number of images of a split in TFDS notation.

        Raises:
          UsageError: the split does not exist or is empty; `key` names the config key at fault.
        """
        try:
            number = self._builder.info.splits[split].num_examples
        except (KeyError, ValueError, AssertionError) as error:
            have = ", ".join(f"{s} ({i.num_examples})" for s, i in self._builder.info.splits.items())
            reason = "" if isinstance(error, KeyError) else f" ({str(error).splitlines()[0]})"
            raise UsageError(f"{key}='{split}': not a split of {self.name}{reason}; it has {have}") from None
        if number == 0:
            raise UsageError(f"{key}='{split}': this part of {self.name} holds no image")
        return number

    def read(self, split: str) -> Source:
        """Decodes a split into memory."""
        self.count(split)
        with _quiet():
            examples = self._builder.as_data_source(split=split)
            images = np.stack([example["image"] for example in examples])
            labels = np.array([example["label"] for example in examples], np.int32)
        return Source(f"{self.name}: {split}", images, labels, self.class_names)


def open_dataset(name: str, directory: Path) -> Dataset:
    """Opens a data set by its TFDS name, preparing `digits` on first use.

    Raises:
      UsageError: it is not prepared in `directory`, or the name is unknown.
    """
    if name == "digits":
        return Dataset(_prepare_digits(directory))
    tfds = _import_tfds()
    try:
        with _quiet():
            builder = tfds.builder_from_directory(_version_directory(directory / name))
    except FileNotFoundError:
        prepared = sorted({info.relative_to(directory).parts[0] for info in directory.glob("*/**/dataset_info.json")})
        have = f"; prepared there: {', '.join(prepared)}" if prepared else ""
        raise UsageError(
            f"config.data.name: '{name}' is not prepared in {directory}{nearest(name, [*prepared, 'digits'])}{have}; "
            "set --config.data.dir or TFDS_DATA_DIR to where it is, in TFDS's array_record format"
        ) from None
    return Dataset(builder)


def _version_directory(folder: Path) -> Path:
    versions = [info.parent for info in folder.glob("**/dataset_info.json")]
    if not versions:
        raise FileNotFoundError(folder)

    def number(path: Path) -> tuple[int, ...]:
        return tuple(int(part) if part.isdigit() else -1 for part in path.name.split("."))

    return max(versions, key=number)


def _prepare_digits(directory: Path) -> Any:
    _import_tfds()
    from jaxvit.data.digits import Digits

    try:
        with _quiet():
            builder = Digits(data_dir=directory)
            builder.download_and_prepare()
    except OSError as error:
        raise UsageError(
            f"cannot write the digits data set into {directory}: {error.strerror or error}; "
            "set --config.data.dir or TFDS_DATA_DIR to a folder that can be written"
        ) from None
    return builder


def _import_tfds() -> Any:
    from absl import logging

    before = logging.get_verbosity()
    with _quiet():
        logging.set_verbosity(logging.ERROR)  # it warns of a missing OpenCV at every import
        import tensorflow_datasets as tfds

        tfds.disable_progress_bar()
        logging.set_verbosity(before)
    return tfds


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TFDS prints to both streams; what it prints is shown only if it fails."""
    if os.environ.get("JAXVIT_VERBOSE"):
        yield
        return
    captured = io.StringIO()
    with contextlib.redirect_stdout(captured), contextlib.redirect_stderr(captured):
        try:
            yield
        except (OSError, UsageError):
            raise
        except Exception:
            print(captured.getvalue(), file=sys.__stderr__)
            raise
