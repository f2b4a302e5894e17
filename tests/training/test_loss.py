"""What a student learns from a teacher, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxvit.training.loss import cross_entropy, distillation_loss, feature_distance
from jaxvit.training.settings import Distillation
from jaxvit.training.state import create_state
from jaxvit.training.step import cut_examples, gradients_and_sums, loss, prepare

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


def test_the_step_mixes_them_and_the_teacher_sees_the_same_images():
    seen = []

    def apply(variables, images, *, train, key=None):
        features = images.reshape(len(images), -1) @ variables["params"]["kernel"]
        return features[:, :4], features

    def teach(images):
        seen.append(images)
        return {"teacher_logits": jnp.asarray(TEACHER), "teacher_features": jnp.asarray(TEACHER)}

    images = RNG.normal(size=(6, 2, 2, 1)).astype(np.float32)
    batch = {"image": images, "label": np.arange(6, dtype=np.int32) % 4, "mask": np.array([1, 1, 1, 1, 0, 1], "f")}
    targets = np.eye(4, dtype=np.float32)[batch["label"]]
    examples = prepare(
        jnp.int32(0), batch, key=jax.random.key(0), transform=lambda *_: (images + 1, targets), teach=teach
    )
    np.testing.assert_array_equal(seen[0], images + 1)
    params = {"kernel": jnp.asarray(RNG.normal(size=(4, 4)), jnp.float32)}
    mix = Distillation(weight=0.3, temperature=2.0, features=0.7)
    total, (logits, loss_B) = loss(params, {}, examples, apply=apply, distillation=mix)
    want = 0.7 * cross_entropy(logits, targets) + 0.3 * distillation_loss(logits, TEACHER, 2.0)
    want = want + 0.7 * feature_distance(logits, TEACHER)
    np.testing.assert_allclose(loss_B, want, rtol=1e-6)
    np.testing.assert_allclose(total, (want * batch["mask"]).sum() / 5, rtol=1e-6)
    alone, _ = loss(params, {}, examples, apply=lambda *a, **k: apply(*a, **k)[0])
    np.testing.assert_allclose(alone, (cross_entropy(logits, targets) * batch["mask"]).sum() / 5, rtol=1e-6)
    # Part by part gives the same gradients: each part has its own images' answers.
    import optax

    state = create_state(lambda key: {"params": params}, optax.sgd(0.1), jax.random.key(0))
    how = {"apply": apply, "distillation": mix}
    whole, _ = gradients_and_sums(state, examples, **how)
    parts, _ = gradients_and_sums(state, examples, accumulate=2, **how)
    np.testing.assert_allclose(whole["kernel"], parts["kernel"], rtol=1e-5, atol=1e-6)
    assert cut_examples(examples, 2)["teacher_logits"].shape == (2, 3, 4)
