"""Patch embeddings for other patches and other channels than they were trained with."""

from __future__ import annotations

import numpy as np


def resize_patch_kernel(kernel_HWIO: np.ndarray, target: tuple[int, int]) -> np.ndarray:
    """Resizes a patch embedding's kernel so that it answers to resized patches as it did to the patches before.

    A patch of the new size that is a bilinear enlargement of an old one gets the same embedding: the kernel is
    multiplied by the pseudo-inverse of the (linear) resizing. Resizing the kernel itself would change both the size
    and the meaning of its answers.

    Args:
      kernel_HWIO: (rows, columns, input channels, output channels).
      target: rows and columns wanted.

    Returns:
      (target rows, target columns, input channels, output channels), float32.

    Source: Beyer et al. 2023, FlexiViT (arXiv:2212.08013), section 3.4.

    Example:
      >>> resize_patch_kernel(np.ones((4, 4, 3, 8), np.float32), (6, 6)).shape
      (6, 6, 3, 8)
    """
    rows, columns, channels, outputs = kernel_HWIO.shape
    if (rows, columns) == tuple(target):
        return np.asarray(kernel_HWIO, np.float32)
    resize = np.kron(_bilinear(rows, target[0]), _bilinear(columns, target[1]))  # (new places, old places)
    flat = np.asarray(kernel_HWIO, np.float64).reshape(rows * columns, channels * outputs)
    found = np.linalg.pinv(resize.T) @ flat
    return found.reshape(*target, channels, outputs).astype(np.float32)


def _bilinear(size: int, target: int) -> np.ndarray:
    """The matrix (target, size) of linear interpolation with shared outlines, smoothed where it shrinks."""
    scale = target / size
    centres = (np.arange(target) + 0.5) / scale - 0.5
    width = max(1.0, 1 / scale)
    weights = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(size)) / width)
    return weights / weights.sum(1, keepdims=True)


def change_channels(kernel_HWIO: np.ndarray, channels: int, how: str = "sum") -> np.ndarray:
    """A first kernel for images of another number of channels.

    Args:
      kernel_HWIO: (rows, columns, input channels, output channels).
      channels: number of channels of the new images.
      how: 'sum' = each new channel takes the sum of the old ones, divided by the number of new ones: a grey image
        gets the answer that its copies in all old channels got. 'mean' = their mean, undivided: the usual choice
        where the new channels are something else than colours.

    Raises:
      ValueError: another `how`.

    Example:
      >>> change_channels(np.ones((4, 4, 3, 8), np.float32), 1).max()
      3.0
    """
    if how not in ("sum", "mean"):
        raise ValueError(f"how={how!r} is neither 'sum' nor 'mean'")
    old = kernel_HWIO.shape[2]
    if old == channels:
        return np.asarray(kernel_HWIO, np.float32)
    total = np.asarray(kernel_HWIO, np.float32).sum(2, keepdims=True)
    each = total / channels if how == "sum" else total / old
    return np.repeat(each, channels, axis=2).astype(np.float32)
