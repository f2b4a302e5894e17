"""The encoder block in its four orders of norm and shortcut, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import attention, mlp, norm

from jaxvit.layers import Attention, Encoder, EncoderBlock, Mlp, Norm, TokenFuser, TokenLearner

X = np.random.default_rng(1).normal(size=(2, 5, 8)).astype(np.float32)


def block(p, x, order, twice=False, scaled=False):
    def attention_branch(y):
        return attention(p["attention"], y) * (p["scale_attention"] if scaled else 1)

    def mlp_branch(y):
        return mlp(p["mlp"], y, twice) * (p["scale_mlp"] if scaled else 1)

    eps = 1e-3
    if order == "pre":
        x = x + attention_branch(norm(p["norm_attention"], x, eps))
        return x + mlp_branch(norm(p["norm_mlp"], x, eps))
    if order == "cct":
        x = norm(p["norm_mlp"], x + attention_branch(norm(p["norm_attention"], x, eps)), eps)
        return x + mlp_branch(x)
    first, second = ("norm_shared",) * 2 if order == "post_shared" else ("norm_attention", "norm_mlp")
    x = norm(p[first], x + attention_branch(x), eps)
    return norm(p[second], x + mlp_branch(x), eps)


@pytest.mark.parametrize(
    "order, kwargs",
    [
        ("pre", {}),
        ("post", {"head_dim": 3}),
        ("post_shared", {"activate_twice": True, "head_dim": 8}),
        ("cct", {"qkv_bias": False, "layer_scale": 0.1}),
    ],
)
def test_against_numpy(draw, order, kwargs):
    module = EncoderBlock(heads=2, mlp_dim=6, norm_order=order, norm_eps=1e-3, **kwargs)
    variables = draw(module, X, train=False)
    want = block(variables["params"], X, order, kwargs.get("activate_twice"), "layer_scale" in kwargs)
    np.testing.assert_allclose(module.apply(variables, X, train=False), want, atol=2e-5)


def test_qk_norm(draw):
    module = Attention(heads=2, qk_norm=True, norm_eps=1e-3)
    variables = draw(module, X, train=False)
    want = attention(variables["params"], X, qk_eps=1e-3)
    np.testing.assert_allclose(module.apply(variables, X, train=False), want, atol=1e-5)


def test_norm_over_a_sample_is_pytorchs_group_norm_of_one_group(draw):
    x = np.random.default_rng(0).normal(200, 1, (2, 3, 3, 4)).astype(np.float32)
    module = Norm(over="sample", epsilon=1e-5)
    variables = draw(module, x)
    flat = x.reshape(2, -1).astype(np.float64)
    flat = (flat - flat.mean(1, keepdims=True)) / np.sqrt(flat.var(1, keepdims=True) + 1e-5)
    p = variables["params"]
    np.testing.assert_allclose(module.apply(variables, x), flat.reshape(x.shape) * p["scale"] + p["bias"], atol=2e-4)


def test_noise_comes_only_in_training_and_from_the_named_stream(draw):
    for kwargs in ({"attention_dropout": 0.5}, {"projection_dropout": 0.5}, {"mlp_dropout": 0.5}):
        module = EncoderBlock(heads=2, **kwargs)
        variables = draw(module, X, train=False)
        still = module.apply(variables, X, train=False)
        train = jax.jit(lambda key, m=module, v=variables: m.apply(v, X, train=True, rngs={"dropout": key}))
        noisy = [train(jax.random.key(i, impl="unsafe_rbg")) for i in (0, 0, 1)]
        np.testing.assert_array_equal(noisy[0], noisy[1])
        assert not np.allclose(noisy[0], noisy[2]) and not np.allclose(noisy[0], still)


def test_drop_path_leaves_the_shortcut(draw):
    module = EncoderBlock(heads=2)
    x = np.repeat(X[:1], 64, axis=0)
    variables = draw(module, x, train=False)
    out = module.apply(variables, x, train=True, drop_path=0.5, rngs={"dropout": jax.random.key(0)})
    kinds = {tuple(np.round(row.ravel(), 3)) for row in np.asarray(out)}
    assert len(kinds) == 4  # each of two branches kept or dropped
    assert tuple(np.round(X[0].ravel(), 3)) in kinds


def test_attention_is_sown_on_request_only(draw):
    module = EncoderBlock(heads=2, attention_dropout=0.5)
    variables = draw(module, X, train=False)
    out, seen = module.apply(variables, X, train=False, mutable=["intermediates"])
    (weights,) = seen["intermediates"]["attention"]["attention"]
    assert weights.shape == (2, 2, 5, 5) and weights.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(out, module.apply(variables, X, train=False))


def test_learned_tokens_inside_the_encoder(draw):
    """With a fuser, only the chosen blocks see few tokens, a class token passes through, and the map comes back."""

    def make_block(**kwargs):
        return EncoderBlock(heads=2, **kwargs)

    def learner(**kwargs):
        return TokenLearner(tokens=3, kind="v1", **kwargs)

    x = np.random.default_rng(0).normal(size=(2, 1 + 2 * 4, 8)).astype(np.float32)
    module = Encoder(make_block, 4, learner=learner, learner_at=(0, 2), fuser=TokenFuser)
    variables = draw(module, x, train=False, grid=(2, 4))
    out, seen = module.apply(variables, x, train=False, grid=(2, 4), mutable=["intermediates"])
    assert out.shape == x.shape
    sizes = [seen["intermediates"][f"block_{i}"]["attention"]["attention"][0].shape[-1] for i in range(4)]
    assert sizes == [4, 9, 4, 9]
    p = {"params": variables["params"]}
    first = learner().apply({"params": p["params"]["token_learner_0"]}, x, train=False, grid=(2, 4), prefix=1)
    first = make_block().apply({"params": p["params"]["block_0"]}, first, train=False)
    spread = TokenFuser().apply({"params": p["params"]["token_fuser_0"]}, first[:, 1:], x[:, 1:], train=False)
    want = np.concatenate([first[:, :1], x[:, 1:] + spread], axis=1)
    got = Encoder(make_block, 1, learner=learner, learner_at=(0,), fuser=TokenFuser).apply(
        p, x, train=False, grid=(2, 4)
    )
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_bad_attributes_are_refused():
    for make, sentence in (
        (lambda: EncoderBlock(heads=3), "heads=3 does not divide 8"),
        (lambda: Encoder(EncoderBlock, 2, learner=TokenLearner, learner_at=(2,)), "from 0 to 1"),
        (lambda: Encoder(EncoderBlock, 3, learner=TokenLearner, learner_at=(0, 1)), "fuse=True"),
    ):
        with pytest.raises(ValueError, match=sentence):
            jax.eval_shape(lambda make=make: make().init(jax.random.key(0), X, train=False))


def test_mlp_makes_other_sizes(draw):
    module = Mlp(hidden=4, out=3, activation="relu")
    variables = draw(module, X, train=False)
    p = variables["params"]
    want = np.maximum(X @ p["dense_0"]["kernel"] + p["dense_0"]["bias"], 0) @ p["dense_1"]["kernel"]
    np.testing.assert_allclose(module.apply(variables, X, train=False), want + p["dense_1"]["bias"], atol=1e-5)
