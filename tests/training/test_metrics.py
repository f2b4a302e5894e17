"""Sums against loops, and merging."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import f1_score

from jaxvit.ops.labels import one_hot
from jaxvit.training.loss import cross_entropy
from jaxvit.training.metrics import Totals, classification_sums

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(40, 7)).astype(np.float32) * 3
LABELS = RNG.integers(0, 7, 40).astype(np.int32)


def probabilities():
    e = np.exp(LOGITS - LOGITS.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@jax.jit
def loss_and_sums(logits, labels, mask):
    return classification_sums(logits, labels, cross_entropy(logits, one_hot(labels, logits.shape[-1])), mask)


def sums(logits=LOGITS, labels=LABELS, mask=None):
    mask = np.ones(len(labels), np.float32) if mask is None else mask
    return jax.device_get(loss_and_sums(logits, labels, mask))


def test_against_loops():
    p, got = probabilities(), sums()
    order = np.argsort(-LOGITS, axis=1)
    assert got["count"] == 40
    assert got["top1"] == sum(order[i, 0] == LABELS[i] for i in range(40))
    assert got["top5"] == sum(LABELS[i] in order[i, :5] for i in range(40))
    assert got["loss"] == pytest.approx(-sum(np.log(p[i, LABELS[i]]) for i in range(40)), rel=1e-5)
    # Keras: every output above 1/2 is a positive prediction; micro-averaged over all outputs.
    true_positives = sum(p[i, k] > 0.5 and k == LABELS[i] for i in range(40) for k in range(7))
    predicted = (p > 0.5).sum()
    totals = Totals()
    totals.add(got)
    assert totals.means()["precision"] == pytest.approx(true_positives / predicted)
    assert totals.means()["recall"] == pytest.approx(true_positives / 40)


def test_smoothed_targets_and_loss():
    targets = np.asarray(one_hot(LABELS, 7, 0.1))
    np.testing.assert_allclose(targets.sum(1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(targets[np.arange(40), LABELS], 0.9 + 0.1 / 7, rtol=1e-6)
    expected = -(targets * np.log(probabilities())).sum(1)
    np.testing.assert_allclose(cross_entropy(jnp.asarray(LOGITS), jnp.asarray(targets)), expected, rtol=1e-5)


def test_masked_images_do_not_count_even_when_they_are_not_finite():
    mask = (np.arange(40) < 25).astype(np.float32)
    logits = LOGITS.copy()
    logits[25:] = np.nan
    whole, part = sums(logits, LABELS, mask), sums(LOGITS[:25], LABELS[:25])
    for name in part:
        assert whole[name] == pytest.approx(part[name], rel=1e-6), name


def test_merging_equals_the_whole():
    totals = Totals()
    for chosen in np.array_split(np.arange(40), 4):
        totals.add(sums(LOGITS[chosen], LABELS[chosen]))
    whole = Totals()
    whole.add(sums())
    assert totals.means() == pytest.approx(whole.means(), rel=1e-6)


def test_fewer_classes_than_five_make_top5_one():
    got = sums(LOGITS[:, :4], LABELS % 4)
    assert got["top5"] == 40


def test_ties_go_to_the_lower_class_as_in_argmax_and_nan_is_never_right():
    tied = np.zeros((3, 7), np.float32)
    assert sums(tied, np.array([0, 1, 6], np.int32))["top1"] == 1
    assert sums(tied, np.array([4, 5, 6], np.int32))["top5"] == 1
    assert sums(np.full((2, 7), np.nan, np.float32), np.array([0, 1], np.int32))["top1"] == 0


def test_empty_totals_have_no_means():
    assert Totals().means() == {}


def test_by_class_against_scikit_learn():
    mask = (np.arange(40) < 33).astype(np.float32)
    labels = np.where(LABELS == 6, 0, LABELS).astype(np.int32)  # a class without images counts nowhere
    totals = Totals()
    for half in (slice(0, 20), slice(20, 40)):
        loss = jnp.zeros(20)
        arguments = map(jnp.asarray, (LOGITS[half], labels[half], loss, mask[half]))
        totals.add(jax.device_get(classification_sums(*arguments, by_class=True)))
    guess = LOGITS.argmax(1)[:33]
    there = np.unique(labels[:33])
    expected = f1_score(labels[:33], guess, average="macro", labels=there, zero_division=0.0)
    assert totals.means()["macro_f1"] == pytest.approx(expected)
    recalls = [np.mean(guess[labels[:33] == c] == c) for c in there]
    assert totals.means()["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert totals.means()["top1"] == pytest.approx(np.mean(guess == labels[:33]))


def test_without_classes_there_is_nothing_by_class():
    totals = Totals()
    totals.add(sums())
    assert not {"macro_f1", "balanced_accuracy"} & set(totals.means())
