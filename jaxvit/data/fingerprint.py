"""Identifies a split by its count, class balance, colour statistics and hashes, and detects altered copies."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

_CHUNK = 2048

# Order-independent content hashes of the original splits. A copy with another content has been altered; for example, a
# JPEG-compressed copy of CIFAR-10 circulates that costs 2 to 3 points of accuracy.
ORIGINALS: dict[tuple[str, str], str] = {
    ("cifar10", "train"): "466ae98cda90cb44",
    ("cifar10", "test"): "be65edee9b16f69c",
    ("fashion_mnist", "train"): "ac14fe4d375e9202",
    ("fashion_mnist", "test"): "bcd6e6b6c70c030d",
}


def fingerprint(images: np.ndarray, labels: np.ndarray, classes: int) -> dict[str, Any]:
    """Computes the fingerprint of a split.

    Args:
      images: uint8 [N, H, W, C]; read in chunks.
      labels: int [N].
      classes: K.

    Returns:
      A dict: 'count'; 'classes', the images of each class; 'mean' and 'std' of each channel, in the 0..1 range;
      'sha256', the hash of pixels and labels in their order; 'content', an order-independent hash. Each hash has 16
      hex digits.
    """
    channels = images.shape[-1]
    counts = np.zeros((channels, 256), np.int64)
    digest, unordered = hashlib.sha256(), 0
    for start in range(0, len(labels), _CHUNK):
        some = np.ascontiguousarray(images[start : start + _CHUNK])
        digest.update(some)
        for channel in range(channels):
            counts[channel] += np.bincount(some[..., channel].ravel(), minlength=256)
        for image, label in zip(some, labels[start : start + _CHUNK], strict=True):
            one = hashlib.blake2b(image, digest_size=8, salt=int(label).to_bytes(8, "little"))
            unordered = (unordered + int.from_bytes(one.digest(), "little")) % 2**64
    digest.update(np.ascontiguousarray(labels.astype("<i4")))
    # Integer sums are exact, so the statistics do not depend on the order of the images.
    levels = np.arange(256) / 255
    means = [float(c @ levels / c.sum()) for c in counts]
    stds = [float(np.sqrt(c @ (levels - m) ** 2 / c.sum())) for c, m in zip(counts, means, strict=True)]
    return {
        "count": len(labels),
        "classes": np.bincount(labels, minlength=classes).tolist(),
        "mean": [round(m, 6) for m in means],
        "std": [round(s, 6) for s in stds],
        "sha256": digest.hexdigest()[:16],
        "content": f"{unordered:016x}",
    }


def warning(name: str, split: str, found: dict[str, Any]) -> str:
    """Returns a warning if a whole split differs from the published one; '' if it matches or is unknown."""
    original = ORIGINALS.get((name, split))
    if original is None or found["content"] == original:
        return ""
    jpeg = ", such as the JPEG-compressed copy that circulates and costs 2 to 3 points" if name == "cifar10" else ""
    return (
        f"{name} {split}: these are not the original pixels (content {found['content']}, not {original}); it is "
        f"a damaged copy{jpeg}: prepare it again with `jaxvit data prepare {name} --force`"
    )
