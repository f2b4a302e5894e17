"""Labels as distributions."""

import jax.numpy as jnp
import numpy as np

from jaxvit.ops.labels import one_hot

LABELS = np.array([2, 0, 4], np.int32)


def test_targets_are_smoothed_as_optax_does():
    """(1 - s) on the label, and s shared by all classes alike."""
    for smoothing in (0.0, 0.1, 1.0):
        expected = np.full((3, 5), smoothing / 5)
        expected[np.arange(3), LABELS] += 1 - smoothing
        np.testing.assert_allclose(one_hot(jnp.asarray(LABELS), 5, smoothing), expected, rtol=1e-6)


def test_a_label_that_is_no_class_has_its_share_of_the_smoothing_only():
    targets = one_hot(jnp.array([5, -1]), 5, 0.1)
    np.testing.assert_allclose(targets, np.full((2, 5), 0.02), rtol=1e-6)
