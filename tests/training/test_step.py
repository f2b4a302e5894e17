"""The training step: what it computes, on padded batches too, and under jit, a mesh and pmap."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvit.data.augment import augment
from jaxvit.data.settings import Augmentation
from jaxvit.ops.labels import one_hot
from jaxvit.training import nans
from jaxvit.training.state import create_state, derive_key
from jaxvit.training.step import eval_step, loss, prepare, step_keys, train_step, train_steps

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (8, 2, 2, 1), dtype=np.uint8)
LABELS = RNG.integers(0, 3, 8).astype(np.int32)


def init(key):
    return {"params": {"kernel": jax.random.normal(key, (4, 3)), "bias": jnp.zeros(3)}}


def apply(variables, images, *, train, key=None):
    return images.reshape(images.shape[0], -1) @ variables["params"]["kernel"] + variables["params"]["bias"][None]


def scale(images):
    return images.astype(jnp.float32) / 255.0


def transform_with(smoothing):
    return lambda key, step, batch: (scale(batch["image"]), one_hot(batch["label"], 3, smoothing))


def build(axis_name=None, smoothing=0.0, accumulate=1, **more):
    settings = {"key": jax.random.key(0), "apply": apply, "transform": transform_with(smoothing), **more}
    return partial(train_step, optimizer=optax.sgd(0.5), accumulate=accumulate, axis_name=axis_name, **settings)


def fresh_state():
    return create_state(init, optax.sgd(0.5), derive_key(0, "init"))


def batch(mask=None):
    return {"image": IMAGES, "label": LABELS, "mask": np.ones(8, np.float32) if mask is None else mask}


def numpy_step(params, images, labels, smoothing=0.0):
    x, w, b = images.reshape(len(images), -1) / 255.0, np.asarray(params["kernel"]), np.asarray(params["bias"])
    logits = x @ w + b
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    targets = np.eye(3)[labels] * (1 - smoothing) + smoothing / 3
    g = (p - targets) / len(x)
    return {"kernel": w - 0.5 * x.T @ g, "bias": b - 0.5 * g.sum(0)}, -(targets * np.log(p)).sum()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_one_sgd_step_against_numpy(smoothing):
    state = fresh_state()
    after, sums = jax.jit(build(smoothing=smoothing))(state, batch())
    params, loss = numpy_step(state.params, IMAGES, LABELS, smoothing)
    np.testing.assert_allclose(after.params["kernel"], params["kernel"], rtol=1e-5)
    np.testing.assert_allclose(after.params["bias"], params["bias"], rtol=1e-4, atol=1e-7)
    assert float(sums["loss"]) == pytest.approx(loss, rel=1e-5)
    assert int(after.step) == 1 and int(sums["count"]) == 8
    change = jax.tree.map(lambda a, b: a - b, after.params, state.params)
    assert float(sums["update_norm"]) == pytest.approx(float(optax.tree.norm(change)), rel=1e-5)
    assert float(sums["gradient_norm"]) == pytest.approx(2 * float(sums["update_norm"]), rel=1e-5)
    assert float(sums["parameter_norm"]) == pytest.approx(float(optax.tree.norm(after.params)), rel=1e-6)


def test_padding_changes_nothing():
    mask = (np.arange(8) < 5).astype(np.float32)
    padded, sums = jax.jit(build())(fresh_state(), batch(mask))
    params, loss = numpy_step(fresh_state().params, IMAGES[:5], LABELS[:5])
    np.testing.assert_allclose(padded.params["kernel"], params["kernel"], rtol=1e-5)
    assert float(sums["loss"]) == pytest.approx(loss, rel=1e-5) and int(sums["count"]) == 5


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulation_takes_the_same_step_with_padding_in_some_parts_only(parts):
    mask = (np.arange(8) < 5).astype(np.float32)
    expected, expected_sums = jax.jit(build())(fresh_state(), batch(mask))
    after, sums = jax.jit(build(accumulate=parts))(fresh_state(), batch(mask))
    np.testing.assert_allclose(after.params["kernel"], expected.params["kernel"], rtol=1e-5)
    for name, value in expected_sums.items():
        assert float(sums[name]) == pytest.approx(float(value), rel=1e-5), name


def test_pmap_takes_the_same_step():
    """One device suffices: the axis name, the sums over it and the division by the whole count are the same code."""
    state = fresh_state()
    mask = (np.arange(8) < 5).astype(np.float32)
    devices = jax.local_devices()[:1]
    stacked = jax.tree.map(lambda x: jnp.asarray(x)[None], (state, batch(mask)))
    after, sums = jax.pmap(build("batch"), axis_name="batch", devices=devices)(*stacked)
    expected, expected_sums = jax.jit(build())(state, batch(mask))
    np.testing.assert_allclose(after.params["kernel"][0], expected.params["kernel"], rtol=1e-6)
    for name, value in expected_sums.items():
        assert float(sums[name][0]) == pytest.approx(float(value), rel=1e-6), name


def test_randomness_follows_the_step_and_nothing_else():
    def noisy(key, step, batch):
        images, targets = transform_with(0.0)(key, step, batch)
        return images + jax.random.normal(key, images.shape), targets

    examples = partial(prepare, key=jax.random.key(7), transform=noisy)
    params = init(jax.random.key(0))["params"]
    both = jax.jit(lambda step: loss(params, {}, examples(step, batch()), apply=apply)[0])
    values = [float(both(np.int32(step))) for step in (0, 1, 0)]
    assert values[0] == values[2] != values[1]


def test_keys_by_name_and_seed():
    keys = [jax.random.key_data(derive_key(seed, name)).tolist() for seed in (0, 1) for name in ("init", "step")]
    assert len({tuple(key) for key in keys}) == 4


def test_evaluation_has_no_smoothing_and_counts():
    sums = jax.jit(partial(eval_step, apply=apply, transform=scale))(init(jax.random.key(0)), batch())
    assert int(sums["count"]) == 8
    _, expected = numpy_step(init(jax.random.key(0))["params"], IMAGES, LABELS)
    assert float(sums["loss"]) == pytest.approx(expected, rel=1e-5)


def test_several_steps_in_one_go_are_the_same_steps():
    step, masks = build(), np.ones((4, 8), np.float32)
    masks[2, 5:] = 0
    batches = {"image": np.stack([IMAGES] * 4), "label": np.stack([LABELS] * 4), "mask": masks}
    state, sums = jax.jit(partial(train_steps, step=step))(fresh_state(), batches, np.int32(3))
    one_by_one, each = fresh_state(), []
    for i in range(3):
        one_by_one, one = jax.jit(step)(one_by_one, batch(masks[i]))
        each.append(one)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state, one_by_one)
    for name, stacked in sums.items():
        np.testing.assert_allclose(stacked[:3], [one[name] for one in each], rtol=1e-5)
        assert stacked.shape == (4,) and stacked[3] == 0


def test_a_step_is_repeated_part_by_part_with_the_noise_of_its_parts():
    seen = []

    def noting(variables, images, *, train, key=None):
        if not isinstance(key, jax.core.Tracer):
            entry = (jax.random.key_data(key).tolist(), np.asarray(images).tolist())
            seen.extend([entry] if entry not in seen else [])
        return apply(variables, images, train=train)

    with jax.disable_jit():  # the loop over the parts runs in Python: all can be looked at
        build(accumulate=2)(fresh_state(), batch(), apply=noting)
    trained = list(seen)
    seen.clear()
    examples = partial(prepare, key=jax.random.key(0), transform=transform_with(0.0))
    nans.explain(examples, partial(loss, apply=noting), fresh_state(), batch(), accumulate=2)
    assert seen == trained and [len(images) for _, images in seen] == [4, 4]


def test_an_explanation_looks_at_every_part():
    targets = jnp.ones((8, 3)).at[1, 0].set(jnp.nan)  # in the second part
    examples = partial(prepare, key=jax.random.key(0), transform=lambda *_: (scale(jnp.asarray(IMAGES)), targets))
    phrase = nans.explain(examples, partial(loss, apply=apply), fresh_state(), batch(), accumulate=2)
    assert phrase == "the forward pass is finite; the gradient of bias is not"


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_weighted_loss_under_mixup_and_accumulation(smoothing, accumulate):
    """An image mixed from a (share s) and b has the loss s w_a CE(a) + (1 - s) w_b CE(b). Loss and gradient are means
    over all images, whatever the accumulation."""
    weights, mask = np.array([0.5, 3.0, 1.25]), np.ones(8, np.float32)
    mask[6:] = 0
    settings = Augmentation(mixup=1.0)
    key, given = jax.random.key(5), {"image": IMAGES, "label": LABELS, "mask": mask}
    augment_key, _ = step_keys(key, jnp.int32(0))
    images, shares = augment(augment_key, jnp.int32(0), given, settings, classes=3)  # shares of the classes
    x, w = np.asarray(images).reshape(8, -1), np.asarray(fresh_state().params["kernel"])
    logits = x @ w
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    smooth = np.eye(3) * (1 - smoothing) + smoothing / 3
    losses = np.zeros(8)
    gradient = np.zeros_like(w)
    for i in range(6):
        for k in range(3):
            part = float(shares[i, k]) * weights[k]
            losses[i] -= part * smooth[k] @ log_p[i]
            gradient += part * np.outer(x[i], np.exp(log_p[i]) - smooth[k]) / 6
    assert np.count_nonzero((np.asarray(shares) > 0).sum(1) == 2) > 1, "nothing is mixed"

    weighted = {"classes": 3, "label_smoothing": smoothing, "class_weights": tuple(weights)}
    transform = partial(augment, settings=settings, **weighted)
    options = {"apply": apply, "transform": transform, "optimizer": optax.sgd(0.5), "accumulate": accumulate}
    after, sums = jax.jit(partial(train_step, key=key, **options))(fresh_state(), given)
    assert float(sums["loss"]) == pytest.approx(losses.sum(), rel=1e-5) and float(sums["count"]) == 6
    np.testing.assert_allclose(after.params["kernel"], w - 0.5 * gradient, rtol=1e-4, atol=1e-6)
