"""Remat and scan are ways to run: same parameters, same numbers, same noise."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvit.layers import Encoder, EncoderBlock, ShiftBlock, ShiftStage, TokenLearner

RUNS = [{"remat": True}, {"scan": True}]

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
    module = Encoder(partial(EncoderBlock, heads=2), 3, scan=True, remat=True)
    _, seen = module.apply(draw(module, x, train=False), x, train=False, mutable=["intermediates"])
    assert sorted(seen["intermediates"]) == ["block_0", "block_1", "block_2"]
