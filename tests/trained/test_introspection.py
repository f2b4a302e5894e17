"""Introspection of a model, compared with loops over its layers' weights."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import train_family

import jaxvit
from jaxvit.errors import RunFailedError
from jaxvit.trained import introspection
from jaxvit.trained.introspection import Recorded, RecordedStep, attention_rollout


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of all families, each trained when it is first asked for."""
    folder = tmp_path_factory.mktemp("runs")

    class Runs(dict):
        def __missing__(self, name):
            self[name] = train_family(folder / name, name)
            return self[name]

    return Runs()


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 255, (3, 8, 8, 1), np.uint8)


@pytest.mark.parametrize(
    ("name", "kinds", "grid", "covered"),
    [
        ("vit", ["block_0", "block_1"], (2, 2), (8, 8)),
        ("token_learner_vit", ["block_0", "token_learner_1", "block_1", "block_2"], (4, 4), (8, 8)),
        (
            "fuser",
            ["block_0", "token_learner_1", "block_1", "token_fuser_1", "token_learner_2", "block_2", "token_fuser_2"],
            (4, 4),
            (8, 8),
        ),
        ("cct", ["block_0", "block_1"], (4, 4), (8, 8)),
        ("shiftvit", [], (8, 8), (8, 8)),
    ],
)
def test_the_weights_of_every_layer_in_their_order(runs, images, name, kinds, grid, covered):
    recorded = introspection.record(jaxvit.load(runs[name]), images)
    assert [step.name for step in recorded.steps] == kinds
    assert (recorded.grid, recorded.covered) == (grid, covered)
    for step in recorded.steps:
        assert step.weights.shape[0] == 3 and step.weights.min() >= 0 and step.weights.max() <= 1
        if step.kind == "attention":
            np.testing.assert_allclose(step.weights.sum(axis=-1), 1, atol=1e-5)
        if step.kind == "learn":
            assert step.weights.shape == (3, 3, 16)
            softmax = name == "token_learner_vit"
            assert step.weighting == ("softmax" if softmax else "sigmoid")
            assert np.allclose(step.weights.sum(axis=-1), 1, atol=1e-5) == softmax
        if step.kind == "fuse":
            assert step.weights.shape == (3, 16, 3)
    if name == "cct":
        assert recorded.pool.shape == (3, 1, 16)
        np.testing.assert_allclose(recorded.pool.sum(axis=-1), 1, atol=1e-5)


def test_weights_that_cannot_be_are_refused(runs, images, monkeypatch):
    loaded = jaxvit.load(runs["token_learner_vit"])
    from jaxvit.layers import token_learner

    plain = token_learner.token_weights
    monkeypatch.setattr(token_learner, "token_weights", lambda *a, **k: 2 * plain(*a, **k))
    with pytest.raises(RunFailedError, match="token_learner_1: its weights do not sum to 1"):
        introspection.record(loaded, images)


def rows_of_ones(rng, *shape):
    weights = rng.random(shape)
    return weights / weights.sum(axis=-1, keepdims=True)


def test_rollout_is_the_product_of_half_identities():
    rng = np.random.default_rng(0)
    first, second = rows_of_ones(rng, 1, 2, 5, 5), rows_of_ones(rng, 1, 2, 5, 5)
    steps = (RecordedStep("attention", "block_0", first), RecordedStep("attention", "block_1", second))
    layers = [0.5 * np.eye(5) + 0.25 * w[0, 0] + 0.25 * w[0, 1] for w in (first, second)]
    product = layers[1] @ layers[0]
    np.testing.assert_allclose(product.sum(axis=1), 1)
    recorded = Recorded((2, 2), (8, 8), 1, steps, None)
    expected = product[0, 1:] / product[0, 1:].sum()
    np.testing.assert_allclose(attention_rollout(recorded, "cls")[0], expected)
    expected = product[1:, 1:].mean(axis=0)
    np.testing.assert_allclose(attention_rollout(recorded, "mean")[0], expected / expected.sum())


def test_rollout_through_learned_tokens_and_back():
    """A loop over paths: from a place, through a token, to a token, to a place."""
    rng = np.random.default_rng(1)
    learn, among, mix = rng.random((1, 2, 4)), rows_of_ones(rng, 1, 1, 2, 2), rng.random((1, 4, 2))
    steps = (
        RecordedStep("learn", "a", learn, "sigmoid"),
        RecordedStep("attention", "b", among),
        RecordedStep("fuse", "c", mix),
    )
    pool = rows_of_ones(rng, 1, 1, 4)
    found = attention_rollout(Recorded((2, 2), (8, 8), 0, steps, pool), "sequence")[0]
    expected = np.zeros(4)
    for end in range(4):
        for start in range(4):
            flow = 0.5 * (end == start)
            for last in range(2):
                for token in range(2):
                    inside = 0.5 * (last == token) + 0.5 * among[0, 0, last, token]
                    given = mix[0, end, last] / mix[0, end].sum()
                    flow += 0.5 * given * inside * learn[0, token, start] / learn[0, token].sum()
            expected[start] += pool[0, 0, end] * flow
    np.testing.assert_allclose(found, expected / expected.sum())


@pytest.mark.parametrize("name", ["vit", "token_learner_vit", "fuser", "cct"])
def test_rollout_of_every_family_adds_up_to_one(runs, images, name):
    loaded = jaxvit.load(runs[name])
    recorded = introspection.record(loaded, images)
    rollout = attention_rollout(recorded, loaded.model.pool)
    assert rollout.shape == (3, np.prod(recorded.grid)) and rollout.min() >= 0
    np.testing.assert_allclose(rollout.sum(axis=1), 1)


def test_similarities_of_learned_positions(runs):
    loaded = jaxvit.load(runs["vit"])
    table = np.asarray(loaded.variables["params"]["position_embed"]["table"])[1:]  # the class token has no place
    found, grid = introspection.position_similarities(loaded)
    assert grid == (2, 2)
    for i in range(4):
        for j in range(4):
            cosine = table[i] @ table[j] / np.linalg.norm(table[i]) / np.linalg.norm(table[j])
            assert found[i, j] == pytest.approx(cosine, abs=1e-5)


def test_fixed_positions_have_similarities_and_maps_have_none(runs):
    found, _ = introspection.position_similarities(jaxvit.load(runs["fuser"]))
    np.testing.assert_allclose(np.diag(found), 1)
    assert found[0, 1] > found[0, 3]  # near places are alike
    assert introspection.position_similarities(jaxvit.load(runs["shiftvit"])) is None


def test_a_shift_sees_one_pixel_further_with_each_block(runs, images):
    """Two blocks after patches of one pixel: a diamond of radius 2; after a merge and another block, 2×2 and more."""
    fields = introspection.receptive_fields(jaxvit.load(runs["shiftvit"]), images)
    assert list(fields) == ["stage 0 (8×8)", "stage 1 (4×4)"]
    rows, columns = np.indices((8, 8))
    diamond = abs(rows - 4) + abs(columns - 4) <= 2
    np.testing.assert_array_equal(fields["stage 0 (8×8)"] > 0, diamond)
    second = fields["stage 1 (4×4)"] > 0
    assert second[4:6, 4:6].all() and second.sum() > diamond.sum()
    assert [field.max() for field in fields.values()] == [1.0, 1.0]
    assert introspection.receptive_fields(jaxvit.load(runs["vit"]), images) == {}


def test_pictures_are_the_images_again(runs, images):
    loaded = jaxvit.load(runs["vit"])
    np.testing.assert_allclose(loaded.pictures(images), images / np.float32(255), atol=1e-6)
    assert jnp.asarray(loaded.pictures(images)).shape == (3, *loaded.input_shape)
