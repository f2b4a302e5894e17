"""Weights go into models that differ from theirs; whatever does not fit stops, unless it is allowed by name."""

import numpy as np
import pytest

from jaxvit.ops.positions import resize_positions
from jaxvit.weights.adapt import AdaptError, Places, Rules, adapt, summarize

RNG = np.random.default_rng(0)


def tree(patch=4, channels=3, places=16, prefix=1, classes=10, blocks=2):
    shapes = {
        "embed/projection/kernel": (patch, patch, channels, 8),
        "position_embed/table": (prefix + places, 8),
        **{f"encoder/block_{i}/mlp/dense_0/kernel": (8, 16) for i in range(blocks)},
        "head/logits/kernel": (8, classes),
        "head/logits/bias": (classes,),
    }
    return {path: RNG.standard_normal(shape).astype(np.float32) for path, shape in shapes.items()}


def outcomes(decisions):
    return {decision.path: decision.outcome for decision in decisions}


def test_equal_models_take_everything():
    weights, fresh = tree(), tree()
    found, decisions = adapt(weights, fresh, Rules(), source=Places((4, 4), 1), target=Places((4, 4), 1))
    assert all(np.array_equal(found[path], weights[path]) for path in fresh)
    assert summarize(decisions) == "6 loaded"


def test_other_classes_sizes_and_channels():
    weights, fresh = tree(), tree(patch=6, channels=1, places=15, prefix=0, classes=3)
    found, decisions = adapt(weights, fresh, Rules(positions="cct"), source=Places((4, 4), 1), target=Places((3, 5), 0))
    assert {path: array.shape for path, array in found.items()} == {path: a.shape for path, a in fresh.items()}
    table = resize_positions(weights["position_embed/table"][1:], source=(4, 4), target=(3, 5), method="cct")
    assert np.allclose(found["position_embed/table"], table)
    assert np.array_equal(found["head/logits/bias"], fresh["head/logits/bias"])
    said = outcomes(decisions)
    assert said["head/logits/kernel"] == "fresh" and said["embed/projection/kernel"] == "resized"
    assert said["encoder/block_0/mlp/dense_0/kernel"] == "loaded"
    assert "2 resized (embed/projection/kernel, position_embed/table)" in summarize(decisions)


def test_a_class_token_more_or_less():
    weights, fresh = tree(prefix=0), tree(prefix=1)
    found, _ = adapt(weights, fresh, Rules(), source=Places((4, 4), 0), target=Places((4, 4), 1))
    assert not found["position_embed/table"][0].any()
    assert np.array_equal(found["position_embed/table"][1:], weights["position_embed/table"])


def test_a_dense_stem():
    weights, fresh = {"embed/projection/kernel": np.ones((48, 8))}, {"embed/projection/kernel": np.zeros((12, 8))}
    found, decisions = adapt(weights, fresh, Rules(), dense_stem=(4, 2))
    assert found["embed/projection/kernel"].shape == (12, 8) and decisions[0].outcome == "resized"


def test_equal_shapes_of_other_classes_are_fresh():
    weights, fresh = tree(), tree()
    found, decisions = adapt(weights, fresh, Rules(), same_classes=False)
    assert np.array_equal(found["head/logits/kernel"], fresh["head/logits/kernel"])
    assert outcomes(decisions)["head/logits/bias"] == "fresh"


def test_patterns():
    weights, fresh = tree(), tree()
    _, decisions = adapt(weights, fresh, Rules(keep=("encoder/*",), skip=("*/block_1/*",)))
    assert {path for path, outcome in outcomes(decisions).items() if outcome == "loaded"} == {
        "encoder/block_0/mlp/dense_0/kernel"
    }


def test_the_unexpected_stops_unless_it_is_allowed():
    fewer, more = tree(blocks=1), tree(blocks=2)
    with pytest.raises(AdaptError, match=r"weights have no encoder/block_1/\S+: allow it with init\.allow"):
        adapt(fewer, more, Rules())
    with pytest.raises(AdaptError, match=r"the weights have encoder/block_1/.*, which the model has not"):
        adapt(more, fewer, Rules())
    rules = Rules(allow=("encoder/block_1/*",))
    assert outcomes(adapt(fewer, more, rules)[1])["encoder/block_1/mlp/dense_0/kernel"] == "fresh"
    assert outcomes(adapt(more, fewer, rules)[1])["encoder/block_1/mlp/dense_0/kernel"] == "unused"
    wide = {**more, "encoder/block_0/mlp/dense_0/kernel": np.zeros((8, 32), np.float32)}
    with pytest.raises(AdaptError, match=r"is \[8, 16\] in the weights and \[8, 32\] in the model"):
        adapt(more, wide, Rules())
    with pytest.raises(AdaptError, match="nothing would be loaded"):
        adapt(more, more, Rules(skip=("*",)))
    for key in ("keep", "skip"):  # misspelt
        with pytest.raises(AdaptError, match=rf"init\.{key} has '!nowhere/\*', which matches no parameter"):
            adapt(more, more, Rules(**{key: ("!nowhere/*",)}))
