"""Frozen parameters and head first, against an optimizer that knows the trained parameters alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvit.errors import UsageError
from jaxvit.training.frozen import check_frozen, clip_active, describe_frozen, hold
from jaxvit.training.optimizer import average_weights, layer_factors, make_optimizer
from jaxvit.training.settings import OptimizerSettings

RNG = np.random.default_rng(0)


def array(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def dense():
    return {"kernel": array(4, 6), "bias": array(6)}


PARAMS = {"embed": {"projection": dense()}, "encoder": {f"block_{i}": {"mlp": dense()} for i in range(3)}}
PARAMS |= {"head": {"logits": dense()}}
FREEZE = "*/embed*|*/block_[0-1]/*"
TRAINED = {"encoder": {"block_2": PARAMS["encoder"]["block_2"]}, "head": PARAMS["head"]}
SETTINGS = OptimizerSettings(peak_lr=0.1, total_steps=8, weight_decay=0.1, clip_norm=0.5)


@pytest.fixture(autouse=True)
def _optax_mixes_dtypes():
    with jax.numpy_dtype_promotion("standard"):
        yield


def updates_of(settings, params, gradients, scale=None):
    """Parameters after each step, and the state after the last."""
    optimizer = make_optimizer(settings)
    state, found = optimizer.init(params), []
    step = jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = step(gradient, state, params)
        updates = jax.tree.map(lambda u, f: u * f, updates, scale) if scale else updates
        params = optax.apply_updates(params, updates)
        found.append(params)
    return found, state


def cut(tree):
    return {"encoder": {"block_2": tree["encoder"]["block_2"]}, "head": tree["head"]}


GRADIENTS = [jax.tree.map(lambda x: array(*x.shape), PARAMS) for _ in range(4)]


@pytest.mark.parametrize(
    "changes",
    [{}, {"name": "muon"}, {"name": "sgd", "decay": "independent"}, {"name": "lion", "layer_decay": 0.5}],
    ids=str,
)
def test_frozen_parameters_stay_and_the_others_move_as_if_they_were_alone(changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    found, state = updates_of(dataclasses.replace(settings, freeze=FREEZE), PARAMS, GRADIENTS)
    alone = dataclasses.replace(settings, layer_decay=1.0)
    scale = cut(layer_factors(PARAMS, settings.layer_decay))
    expected, own = updates_of(alone, TRAINED, [cut(g) for g in GRADIENTS], scale)
    for mine, theirs in zip(found, expected, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), cut(mine), theirs)
        frozen = {"embed": mine["embed"], **{f"block_{i}": mine["encoder"][f"block_{i}"] for i in (0, 1)}}
        were = {"embed": PARAMS["embed"], **{f"block_{i}": PARAMS["encoder"][f"block_{i}"] for i in (0, 1)}}
        jax.tree.map(np.testing.assert_array_equal, frozen, were)
    # As many numbers as the optimizer of the trained ones alone has; the clipping counts its steps.
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(each) if leaf.ndim) for each in (state, own)]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_head_alone_first_and_then_all(name):
    settings = dataclasses.replace(SETTINGS, name=name, schedule="constant", head_first_steps=2)
    found, _ = updates_of(settings, PARAMS, GRADIENTS)
    plain = dataclasses.replace(settings, head_first_steps=0)
    head, _ = updates_of(plain, {"head": PARAMS["head"]}, [{"head": g["head"]} for g in GRADIENTS[:2]])
    for mine, theirs in zip(found[:2], head, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), mine["head"], theirs["head"])
        jax.tree.map(np.testing.assert_array_equal, mine["encoder"], PARAMS["encoder"])
    # The body's first update is that of a new optimizer, of gradients clipped together with the head's.
    first, _ = updates_of(plain, PARAMS, GRADIENTS[2:3])
    rest = found[2]["encoder"], first[0]["encoder"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *rest)
    assert not np.array_equal(found[3]["embed"]["projection"]["kernel"], found[2]["embed"]["projection"]["kernel"])


def test_the_norm_is_that_of_the_parameters_that_move():
    clip = clip_active(1.0, FREEZE, 1)
    state = clip.init(PARAMS)
    for trained in ({"head": GRADIENTS[0]["head"]}, cut(GRADIENTS[0])):
        found, state = clip.update(GRADIENTS[0], state)
        norm = np.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(trained)))
        np.testing.assert_allclose(found["head"]["logits"]["bias"], GRADIENTS[0]["head"]["logits"]["bias"] / norm, 1e-5)


def test_frozen_parameters_have_no_gradient_and_an_exact_average():
    def loss(params):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(hold(params, "embed/*")))

    gradient = jax.grad(loss)(PARAMS)
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient["embed"]))
    assert all(leaf.any() for leaf in jax.tree.leaves(gradient["head"]))
    average = average_weights(PARAMS, PARAMS, jnp.int32(3), 0.99, False, "embed/*")
    jax.tree.map(np.testing.assert_array_equal, average["embed"], PARAMS["embed"])


@pytest.mark.parametrize(
    ("freeze", "steps", "says"),
    [
        ("embed/*|blocks/*", 0, "'blocks/\\*' matches no parameter of this model, such as 'embed/projection/bias'"),
        ("*", 0, "matches every parameter"),
        ("head/*", 2, "no trained parameter whose name begins with 'head/'"),
    ],
)
def test_patterns_that_make_no_sense(freeze, steps, says):
    with pytest.raises(UsageError, match=says):
        check_frozen(PARAMS, freeze, steps)


def test_all_but_the_head():
    check_frozen(PARAMS, "!head/*")
    assert describe_frozen(PARAMS, "!head/*").startswith("frozen: 8 of 10 arrays, 120 of 150 parameters")
