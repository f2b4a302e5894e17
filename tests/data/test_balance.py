"""Class weights by their formulas, and draws in proportion to them."""

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from jaxvit.data.balance import class_weights, sampled_order
from jaxvit.data.batches import TrainOrder

COUNTS = np.array([30, 4, 100])
LABELS = np.repeat(np.arange(3), COUNTS)


def test_inverse_frequency_is_that_of_scikit_learn():
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    np.testing.assert_allclose(class_weights(COUNTS), expected)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999, 0.999999])
def test_effective_number(beta):
    raw = np.array([(1 - beta) / (1 - beta**n) for n in COUNTS])
    expected = raw * COUNTS.sum() / (raw * COUNTS).sum()
    np.testing.assert_allclose(class_weights(COUNTS, "effective", beta), expected, rtol=1e-6)


def test_the_mean_over_images_is_one_and_an_empty_class_has_no_weight():
    weights = np.array(class_weights(np.array([5, 0, 20])))
    assert weights[1] == 0 and weights @ [5, 0, 20] == pytest.approx(25)


def test_draws_are_in_proportion_and_every_image_gets_its_turn():
    weights = class_weights(COUNTS)
    total = np.zeros(len(LABELS))
    for epoch in range(40):
        order = sampled_order(LABELS, weights, seed=3, epoch=epoch)
        assert len(order) == len(LABELS)
        of_class = np.bincount(LABELS[order], minlength=3)
        np.testing.assert_allclose(of_class, len(LABELS) / 3, atol=1.001)  # all classes alike, to within one
        times = np.bincount(order, minlength=len(LABELS))
        for c in range(3):
            assert set(times[c == LABELS]) <= {int(np.floor(weights[c])), int(np.ceil(weights[c]))}
        total += times
    for c in range(3):
        np.testing.assert_allclose(total[c == LABELS].mean() / 40, weights[c], rtol=0.02)
        assert total[c == LABELS].min() > 0


def test_an_order_is_a_function_of_seed_and_epoch():
    weights = class_weights(COUNTS)
    orders = [sampled_order(LABELS, weights, seed, epoch).tolist() for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert orders[0] == orders[1] and len({tuple(order) for order in orders}) == 3
    drawn = TrainOrder(len(LABELS), 32, 0, sampling=(LABELS, weights))
    assert np.concatenate([drawn[step] for step in range(5)]).tolist() == orders[0] and len(drawn[4]) == 134 - 128
