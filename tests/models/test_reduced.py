"""Whole models with fewer tokens: budgets, counts, and what cannot be reduced."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import linen as nn

from jaxvit.models import create_model
from jaxvit.models.count import count_macs
from jaxvit.models.reduction import reduced
from jaxvit.models.summarize import summarize

SMALL = {"patch": 2, "dim": 8, "heads": 2, "depth": 4}
IMAGES = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)  # 16 tokens


@pytest.fixture(scope="module")
def vit():
    model = create_model("vit", **SMALL, pool="cls", registers=1, initialiser="keras")
    return model, jax.jit(partial(model.init, train=False))(jax.random.key(0), IMAGES)


@pytest.mark.parametrize("text", ["merge:r=0", "prune:keep=1"])
def test_reducing_nothing_is_bit_identical(vit, text):
    model, variables = vit
    programs = [
        jax.jit(partial(each.apply, train=False)).lower(variables, IMAGES).as_text()
        for each in (model, reduced(model, text, (8, 8, 3)))
    ]
    assert programs[0] == programs[1]


def test_fewer_tokens_are_counted_with_the_cost_of_merging(vit):
    model, _ = vit
    found = summarize(reduced(model, "merge:r=3", (8, 8, 3)), (8, 8, 3))
    assert found["tokens"] == [18, 15, 12, 9]
    # Attention sees the tokens before merging, the MLP those after it; 4 channels per head, mean keys of 4.
    wide, matching = 8 * 8, []
    attention = sum(4 * n * wide + 2 * n * n * 8 for n in (18, 15, 12, 9))
    mlps = sum(2 * n * wide * 4 for n in (15, 12, 9, 6))
    for n in (16, 13, 10, 7):
        # The prefix of two tokens makes the first set start at token 2.
        first, second = -(-n // 2), n // 2
        matching.append(first * second * (4 + 8))
    assert found["macs"]["all"] == 16 * 12 * 8 + attention + mlps + sum(matching) + 8 * 10


def test_budgets(vit):
    model, _ = vit
    whole = count_macs(model, (8, 8, 3))["all"]
    for budget in ("merge:macs=.9", "merge:macs=.7", "prune:macs=.5", "prune:macs=.8,by=norm,at=1"):
        fewer = reduced(model, budget, (8, 8, 3))
        share = count_macs(fewer, (8, 8, 3))["all"] / whole
        wanted = float(budget.split("macs=")[1].split(",")[0])
        assert share <= wanted < share + 0.2
        kind, _, amount = fewer.reduce.partition("=")
        if kind == "merge:r":  # one token less would not do
            more = reduced(model, f"merge:r={int(amount) - 1}", (8, 8, 3))
            assert count_macs(more, (8, 8, 3))["all"] > wanted * whole


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("merge:macs=.1", "this budget cannot be met; the most reduction possible here leaves 0.657"),
        ("merge:macs=.9,at=3", "cannot be met"),
        ("merge:r=5", "block 2 has 6 tokens and can merge at most 3"),
        ("merge:r=2,at=4", "there is no block 4"),
        ("prune:macs=.01", "cannot be met"),
    ],
)
def test_what_cannot_be_met_is_refused(vit, text, said):
    with pytest.raises(ValueError, match=said):
        reduced(vit[0], text, (8, 8, 3))


def test_models_without_tokens_to_reduce():
    with pytest.raises(ValueError, match="ShiftViT shifts channels between neighbours"):
        reduced(create_model("shiftvit"), "merge:r=1", (8, 8, 3))
    with pytest.raises(ValueError, match="Dense has no attribute reduce"):
        reduced(nn.Dense(3), "merge:r=1", (8, 8, 3))
    for attributes, said in (
        ({"pool": "flatten"}, "pool='flatten' needs every place"),
        ({"learner": "v11_mlp", "learner_at": (3,)}, "a TokenLearner pools a whole map"),
    ):
        with pytest.raises(ValueError, match=said):
            create_model("vit", **SMALL, **attributes, reduce="prune:keep=.5")


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("vit", {**SMALL, "pool": "flatten"}),
        ("vit", {**SMALL, "pool": "attention", "norm_order": "post"}),
        ("vit", {**SMALL, "learner": "v1", "learner_at": (2,), "learner_tokens": 3}),
        ("cct", {"dim": 8, "heads": 2, "depth": 2, "conv_layers": 1, "pool": "sequence"}),
        ("cct", {"dim": 8, "heads": 2, "depth": 2, "tokenizer": "patch", "patch": 2, "pool": "cls"}),
    ],
)
def test_every_kind_of_model_can_merge(name, attributes):
    """All images alike: merging equal tokens changes nothing, so the answer is that of the whole model."""
    model = create_model(name, **attributes, positions="none", initialiser="keras")
    flat = np.ones((2, 8, 8, 3), np.float32)
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), IMAGES)
    fewer = reduced(model, "merge:r=2", (8, 8, 3))
    want = jax.jit(partial(model.apply, train=False))(variables, flat)
    got = jax.jit(partial(fewer.apply, train=False))(variables, flat)
    if name == "vit":  # the convolutional tokenizer pads, so its tokens differ at the border
        np.testing.assert_allclose(got, want, atol=1e-5)
    other = jax.jit(partial(fewer.apply, train=False))(variables, IMAGES)
    assert np.isfinite(other).all() and other.shape == (2, 10) and (np.asarray(other) != np.asarray(got)).any()
