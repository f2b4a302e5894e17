"""Attention with its products in another order, and its dropout, against the plain form."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxvit.layers import Attention
from jaxvit.ops import dropout, implementations

KEY = jax.random.key(0)
NUMBERS = np.random.default_rng(0)


class Attends(nn.Module):
    """Attention on itself or on a context, with a head as wide as the tokens or wider."""

    settings: tuple
    context: bool = False

    @nn.compact
    def __call__(self, x, *, train=False):
        attention = Attention(**dict(self.settings), name="attention")
        return attention(x, jnp.flip(x, 1)[:, :3] if self.context else None, train=train)


def program(model, *arguments):
    return str(jax.make_jaxpr(model.apply)(*arguments))


def softmax(scores):
    weights = np.exp(scores)
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("more", [{}, {"qkv_bias": False}, {"head_dim": 11}])
def test_absorbed_attention_is_attention(draw, more, context):
    model = Attends(tuple({"heads": 3, "head_dim": 6, **more}.items()), context)
    x = jnp.asarray(NUMBERS.normal(size=(8, 5, 6)), jnp.float32)
    variables = draw(model, x)

    def run(variables, x):
        y, state = model.apply(variables, x, mutable=["intermediates"])
        return jnp.sum(jnp.sin(y)), (y, state["intermediates"]["attention"]["attention"][0])

    both = jax.jit(jax.value_and_grad(run, (0, 1), has_aux=True))
    with implementations.use("plain"):
        plain = both(variables, x)
        plain_program = program(model, variables, x)
    fast = both(variables, x)
    assert program(model, variables, x) != plain_program
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), plain, fast)
    half = Attends((*model.settings, ("dtype", "bfloat16")), context)
    rounded = jax.jit(half.apply)(variables, x.astype(jnp.bfloat16))
    assert rounded.dtype == jnp.bfloat16
    spread = np.abs(plain[0][1][0]).max()
    np.testing.assert_allclose(np.asarray(rounded, np.float32), plain[0][1][0], atol=0.03 * spread)


def test_absorbed_attention_with_dropout_drops_the_weights(draw):
    """Also that of the value's bias, which is not the output's bias then."""
    model = Attends((("heads", 2), ("head_dim", 6), ("dropout", 0.5)))
    x = jnp.asarray(NUMBERS.normal(size=(2, 5, 6)), jnp.float32)
    variables = draw(model, x)
    rngs = {"dropout": jax.random.key(3)}
    out = np.asarray(jax.jit(partial(model.apply, train=True))(variables, x, rngs=rngs))

    class Draws(nn.Module):  # the key that the module called 'attention' draws
        @nn.compact
        def __call__(self):
            return self.make_rng("dropout")

    class Whole(nn.Module):
        @nn.compact
        def __call__(self):
            return Draws(name="attention")()

    key = Whole().apply({}, rngs=rngs)
    factors = np.asarray(jax.jit(lambda key: dropout(jnp.ones((2, 10, 5)), 0.5, key))(key)).reshape(2, 5, 2, 5)
    assert 0.2 < (factors == 0).mean() < 0.8
    p = jax.tree.map(np.asarray, variables["params"]["attention"])
    q, k, v = (np.einsum("bnc,cmd->bnmd", x, p[n]["kernel"]) + p[n]["bias"] for n in ("query", "key", "value"))
    weights = softmax(np.einsum("bqmd,bkmd->bqmk", q, k) / np.sqrt(6))
    mixed = np.einsum("bqmk,bkmd->bqmd", weights * factors, v)
    expected = np.einsum("bqmd,mdc->bqc", mixed, p["out"]["kernel"]) + p["out"]["bias"]
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", [{"heads": 2}, {"heads": 2, "head_dim": 6, "qk_norm": True}])
def test_attention_that_has_nothing_to_gain_is_left_alone(settings):
    model, x = Attends(tuple(settings.items())), jnp.ones((1, 4, 6))
    variables = jax.eval_shape(model.init, KEY, x)
    found = program(model, variables, x)
    with implementations.use("plain"):
        assert program(model, variables, x) == found


@pytest.mark.parametrize(("batch", "tokens", "pays"), [(1, 4, False), (64, 4, True), (1, 64, False), (1, 256, True)])
def test_kernels_are_not_multiplied_for_a_few_tokens(batch, tokens, pays):
    """By XLA's own count of the operations."""
    model = Attends((("heads", 2), ("head_dim", 64)))
    x = jax.ShapeDtypeStruct((batch, tokens, 64), jnp.float32)
    variables = jax.eval_shape(model.init, KEY, x)

    def operations(way):
        with implementations.use({"attention": way}):
            return jax.jit(model.apply).lower(variables, x).cost_analysis()["flops"]

    assert operations("absorbed") <= operations("plain") and (operations("absorbed") < operations("plain")) == pays
