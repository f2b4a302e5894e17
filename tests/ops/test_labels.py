"""Labels as distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxvit.ops.labels import one_hot

LABELS = np.array([2, 0, 4], np.int32)


def test_targets_are_as_optax_smooths_them():
    for smoothing in (0.0, 0.1, 1.0):
        expected = optax.smooth_labels(jax.nn.one_hot(LABELS, 5), smoothing)
        np.testing.assert_array_equal(one_hot(jnp.asarray(LABELS), 5, smoothing), expected)


def test_a_label_that_is_no_class_has_its_share_of_the_smoothing_only():
    targets = one_hot(jnp.array([5, -1]), 5, 0.1)
    np.testing.assert_allclose(targets, np.full((2, 5), 0.02), rtol=1e-6)
