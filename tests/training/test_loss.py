"""The losses of distillation, against numpy."""

import jax
import numpy as np

from jaxvit.training.loss import distillation_loss, feature_distance

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(0, 2, (2, 6, 4)).astype(np.float32)


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def test_the_divergence_of_softened_answers():
    for temperature in (1.0, 3.0):
        p, q = softmax(TEACHER / temperature), softmax(STUDENT / temperature)
        want = temperature**2 * (p * np.log(p / q)).sum(-1)
        np.testing.assert_allclose(distillation_loss(STUDENT, TEACHER, temperature), want, rtol=2e-5, atol=1e-6)
        slope = jax.grad(lambda x, t=temperature: distillation_loss(x, TEACHER, t).sum())(STUDENT)
        np.testing.assert_allclose(slope, temperature * (q - p), rtol=1e-4, atol=1e-5)


def test_the_distance_of_features():
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(STUDENT, TEACHER, strict=True)]
    np.testing.assert_allclose(feature_distance(STUDENT, 3 * TEACHER), 1 - np.array(cosines), rtol=1e-5, atol=1e-6)
    assert np.isfinite(jax.grad(lambda x: feature_distance(x, TEACHER).sum())(np.zeros_like(STUDENT))).all()
