"""A patch embedding answers to resized patches as before, and to grey images as to their copies in three channels."""

import jax
import numpy as np
import pytest

from jaxvit.ops.patch_kernels import change_channels, resize_patch_kernel

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("target", [(6, 6), (8, 5), (4, 7), (16, 16)])
def test_an_enlarged_patch_keeps_its_embedding(target):
    kernel, patches = RNG.standard_normal((4, 4, 3, 5)), RNG.standard_normal((7, 4, 4, 3))
    large = np.asarray(jax.image.resize(patches, (7, *target, 3), "linear"))
    found = np.einsum("nhwc,hwco->no", large, resize_patch_kernel(kernel, target))
    np.testing.assert_allclose(found, np.einsum("nhwc,hwco->no", patches, kernel), atol=2e-4)


def test_a_smaller_patch_keeps_what_it_can():
    """Shrinking loses something: of all kernels, the found one is the nearest in the mean over random patches."""
    kernel = RNG.standard_normal((6, 6, 1, 1))
    small = resize_patch_kernel(kernel, (3, 3))
    resize = np.stack(
        [np.asarray(jax.image.resize(unit.reshape(6, 6), (3, 3), "linear")).ravel() for unit in np.eye(36)]
    )

    def error(candidate):
        return np.sum((resize @ candidate.ravel() - kernel.ravel()) ** 2)

    best = error(small)
    assert all(error(small + 1e-2 * RNG.standard_normal(small.shape)) > best for _ in range(20))
    assert resize_patch_kernel(kernel, (6, 6)) == pytest.approx(kernel, abs=1e-6)


def test_other_channels():
    kernel, grey = (
        RNG.standard_normal((4, 4, 3, 5)).astype(np.float32),
        RNG.standard_normal((4, 4, 1)).astype(np.float32),
    )
    answer = np.einsum("hwc,hwco->o", np.repeat(grey, 3, 2), kernel)
    one = change_channels(kernel, 1)
    assert np.einsum("hwc,hwco->o", grey, one) == pytest.approx(answer, abs=1e-4)
    back = change_channels(one, 3)
    assert np.einsum("hwc,hwco->o", np.repeat(grey, 3, 2), back) == pytest.approx(answer, abs=1e-4)
    assert change_channels(kernel, 4, "mean") == pytest.approx(np.repeat(kernel.mean(2, keepdims=True), 4, 2), abs=1e-6)
    with pytest.raises(ValueError, match="neither 'sum' nor 'mean'"):
        change_channels(kernel, 4, "first")
