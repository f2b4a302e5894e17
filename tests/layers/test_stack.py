"""Remat and scan are ways to run: same parameters, same numbers, same noise."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvit.layers import Encoder, EncoderBlock, ShiftBlock, ShiftStage, TokenLearner

RUNS = [{"remat": "full"}, {"remat": "dots"}, {"remat": "dots_no_batch"}, {"scan": True}]
RUNS += [{"remat": "dots", "scan": True}]

quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # programs that run once


def encoder(**run):
    block = partial(EncoderBlock, heads=2, mlp_dim=8, layer_scale=0.5, mlp_dropout=0.2)
    learner = partial(TokenLearner, tokens=2)
    return Encoder(block, 3, drop_path=0.5, learner=learner, learner_at=(2,), **run)


def stage(**run):
    return ShiftStage(partial(ShiftBlock, divisions=4, mlp_dropout=0.2), (0.0, 0.5), **run)


@pytest.mark.parametrize("make, shape", [(encoder, (4, 6, 8)), (stage, (4, 3, 3, 8))])
def test_ways_to_run_agree_in_training_too(draw, make, shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    variables = draw(make(), x, train=False)

    def outcome(module):
        def loss(variables):
            out = module.apply(variables, x, train=True, rngs={"dropout": jax.random.key(5, impl="unsafe_rbg")})
            return jnp.sum(jnp.sin(out)), out

        (_, out), grads = quick(jax.value_and_grad(loss, has_aux=True))(variables)
        return out, grads

    out, grads = outcome(make())
    for run in RUNS:
        module = make(**run)
        abstract = jax.eval_shape(partial(module.init, train=False), jax.random.key(0), x)
        assert jax.tree.map(jnp.shape, abstract) == jax.tree.map(jnp.shape, variables)
        other_out, other_grads = outcome(module)
        np.testing.assert_allclose(other_out, out, atol=1e-5)
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4, rtol=1e-4), other_grads, grads)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize(
    "make, shape, policies",
    [
        (encoder, (4, 6, 8), ("full", "dots_no_batch", "dots", "none")),
        (stage, (4, 3, 3, 8), ("full", "dots", "none")),  # no products of activations: nothing has batch dimensions
    ],
)
def test_the_more_is_recomputed_the_less_is_kept(make, shape, policies, scan):
    x = jnp.zeros(shape)

    def kept(remat):
        module = make(remat=remat, scan=scan)
        variables = jax.eval_shape(partial(module.init, train=False), jax.random.key(0), x)
        backward = jax.eval_shape(
            lambda v, key: jax.vjp(lambda v: module.apply(v, x, train=True, rngs={"dropout": key}), v)[1],
            variables,
            jax.eval_shape(lambda: jax.random.key(0)),
        )
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    sizes = [kept(remat) for remat in policies]
    assert sizes == sorted(set(sizes)), dict(zip(policies, sizes, strict=True))


def test_a_way_to_recompute_that_does_not_exist():
    with pytest.raises(ValueError, match="remat='some' must be 'none', 'full', 'dots' or 'dots_no_batch'"):
        jax.eval_shape(lambda: encoder(remat="some").init(jax.random.key(0), jnp.zeros((1, 2, 8)), train=False))


def test_init_draws_the_same_numbers():
    x = np.zeros((1, 4, 8), np.float32)
    plain, scanned = (
        jax.jit(partial(Encoder(partial(EncoderBlock, heads=2), 2, scan=scan).init, train=False))(
            jax.random.key(0, impl="unsafe_rbg"), x
        )
        for scan in (False, True)
    )
    jax.tree.map(np.testing.assert_array_equal, plain, scanned)


def test_scan_compiles_one_block(draw):
    x = np.zeros((1, 4, 8), np.float32)

    def length(depth, scan):
        module = Encoder(partial(EncoderBlock, heads=2), depth, scan=scan)
        variables = draw(module, x, train=False)
        return str(jax.make_jaxpr(lambda v: module.apply(v, x, train=False))(variables)).count("dot_general")

    assert length(6, True) == length(2, True) < length(2, False) < length(6, False)


def test_intermediates_are_recorded_under_scan_too(draw):
    x = np.zeros((1, 4, 8), np.float32)
    module = Encoder(partial(EncoderBlock, heads=2), 3, scan=True, remat="full")
    _, seen = module.apply(draw(module, x, train=False), x, train=False, mutable=["intermediates"])
    assert sorted(seen["intermediates"]) == ["block_0", "block_1", "block_2"]


def test_remat_with_scan_keeps_less_than_half(draw):
    """By XLA's account of the memory that the gradient of eight blocks works in."""
    block = partial(EncoderBlock, heads=4, mlp_dim=128)
    x = jnp.ones((8, 64, 32))

    def temporary(remat):
        module = Encoder(block, 8, remat=remat, scan=True)
        variables = draw(module, x, train=False)
        gradient = quick(jax.grad(lambda v, x: jnp.sum(jnp.sin(module.apply(v, x, train=False)))))
        return gradient.lower(variables, x).compile().memory_analysis().temp_size_in_bytes

    assert temporary("full") < temporary("dots_no_batch") < 0.7 * temporary("none")
    assert temporary("full") < 0.45 * temporary("none")
