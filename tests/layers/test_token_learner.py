"""Every kind of TokenLearner, and TokenFuser, against numpy loops; shapes, masks, video, and use outside of this
package's models."""

import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from reference import gelu, norm

from jaxvit.layers import TokenFuser, TokenLearner

MAP = np.random.default_rng(2).normal(size=(2, 3, 4, 8)).astype(np.float32)


def conv3x3(x, kernel):
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = np.zeros((*x.shape[:3], kernel.shape[-1]))
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            out[:, i, j] = np.einsum("bhwc,hwco->bo", padded[:, i : i + 3, j : j + 3], kernel)
    return out


def grouped(x, kernel, groups):
    size_in, size_out = x.shape[-1] // groups, kernel.shape[-1] // groups
    parts = [
        x[..., g * size_in : (g + 1) * size_in] @ kernel[0][:, g * size_out : (g + 1) * size_out] for g in range(groups)
    ]
    return np.concatenate(parts, -1)


def softmax(logits):
    exps = np.exp(logits)
    return exps / exps.sum(1, keepdims=True)


def learn(p, x, kind, convs=4, groups=2, with_norm=True, reduce="sum"):
    batch, height, width, channels = x.shape
    y = norm(p["norm"], x, 1e-6) if with_norm else x
    values = x.reshape(batch, -1, channels)
    if kind == "v1":
        for i in range(convs):
            y = conv3x3(y, p[f"conv_{i}"]["kernel"])
            y = gelu(y) if i < convs - 1 else 1 / (1 + np.exp(-y))
        weights = y.reshape(batch, height * width, -1)
    elif kind == "v11_mlp":
        q = p["mlp"]
        y = gelu(y @ q["dense_0"]["kernel"] + q["dense_0"]["bias"]) @ q["dense_1"]["kernel"] + q["dense_1"]["bias"]
        weights = softmax(y.reshape(batch, height * width, -1))
    else:
        y = grouped(y, p["mix"]["kernel"], groups) @ p["maps"]["kernel"][0]
        weights = softmax(y.reshape(batch, height * width, -1))
        values = grouped(values, p["value"]["kernel"], groups)
    out = np.array(
        [
            [sum(w[n, s] * v[n] for n in range(len(v))) for s in range(w.shape[1])]
            for w, v in zip(weights, values, strict=True)
        ]
    )
    return out / (height * width) if reduce == "mean" else out


@pytest.mark.parametrize(
    "kwargs",
    [
        {"kind": "v1"},
        {"kind": "v1", "convs": 5, "norm": False, "reduce": "mean"},
        {"kind": "v11_mlp", "hidden": 6},
        {"kind": "v11_conv", "groups": 2},
        {"kind": "v11_conv", "groups": 4, "reduce": "mean"},
    ],
)
def test_every_kind_against_numpy(draw, kwargs):
    module = TokenLearner(tokens=3, **kwargs)
    variables = draw(module, MAP, train=False)
    want = learn(
        variables["params"],
        MAP,
        kwargs["kind"],
        convs=kwargs.get("convs", 4),
        groups=kwargs.get("groups", 0),
        with_norm=kwargs.get("norm", True),
        reduce=kwargs.get("reduce", "sum"),
    )
    np.testing.assert_allclose(module.apply(variables, MAP, train=False), want, atol=3e-5)


@pytest.mark.parametrize("kind", ["v1", "v11_mlp", "v11_conv"])
def test_tokens_prefix_video_and_mask(draw, kind):
    module = TokenLearner(tokens=2, kind=kind)
    variables = draw(module, MAP, train=False)

    def apply(x, **kwargs):
        return np.asarray(module.apply(variables, x, train=False, **kwargs))

    want = apply(MAP)
    flat = MAP.reshape(2, 12, 8)
    np.testing.assert_allclose(apply(flat, grid=(3, 4)), want, atol=1e-6)
    classed = np.concatenate([np.full((2, 1, 8), 9, np.float32), flat], axis=1)
    out = apply(classed, grid=(3, 4), prefix=1)
    np.testing.assert_array_equal(out[:, 0], classed[:, 0])
    np.testing.assert_allclose(out[:, 1:], want, atol=1e-6)
    np.testing.assert_allclose(apply(MAP[None])[0], want, atol=1e-6)  # (1, T=2, H, W, C) to (1, 2, S, C)
    mask = np.ones((2, 3, 4), bool)
    np.testing.assert_allclose(apply(MAP, mask=mask), want, atol=1e-6)
    mask[:, :, 3] = False
    other = np.where(mask[..., None], MAP, 5.0).astype(np.float32)
    masked = apply(MAP, mask=mask)
    np.testing.assert_allclose(apply(other, mask=mask), masked, atol=1e-6)
    np.testing.assert_allclose(masked, apply(MAP[:, :, :3]), atol=1e-5)


def test_token_maps_are_sown(draw):
    module = TokenLearner(tokens=2)
    variables = draw(module, MAP, train=False)
    _, seen = module.apply(variables, MAP, train=False, mutable=["intermediates"])
    (maps,) = seen["intermediates"]["token_maps"]
    assert maps.shape == (2, 2, 12)
    np.testing.assert_allclose(maps.sum(-1), 1, rtol=1e-5)


def test_fuser_against_numpy_and_gives_back_what_it_was_given(draw):
    module = TokenFuser(hidden=5)
    tokens = np.random.default_rng(3).normal(size=(2, 3, 8)).astype(np.float32)
    variables = draw(module, tokens, MAP, train=False)
    p = variables["params"]
    y = norm(p["norm_in"], tokens, 1e-6)
    y = np.einsum("bsc,st->btc", y, p["between"]["kernel"]) + p["between"]["bias"][:, None]
    y = norm(p["norm_out"], y, 1e-6)
    mix = norm(p["norm_original"], MAP, 1e-6) @ p["mlp"]["dense_0"]["kernel"] + p["mlp"]["dense_0"]["bias"]
    mix = gelu(mix) @ p["mlp"]["dense_1"]["kernel"] + p["mlp"]["dense_1"]["bias"]
    mix = 1 / (1 + np.exp(-mix))
    want = sum(mix[..., s, None] * y[:, s][:, None, None] for s in range(3))
    got = module.apply(variables, tokens, MAP, train=False)
    np.testing.assert_allclose(got, want, atol=3e-5)
    flat = module.apply(variables, tokens, MAP.reshape(2, 12, 8), train=False)
    np.testing.assert_allclose(flat, want.reshape(2, 12, 8), atol=3e-5)
    video = module.apply(variables, tokens[None], MAP[None], train=False)
    np.testing.assert_allclose(video, want[None], atol=3e-5)
    _, seen = module.apply(variables, tokens, MAP, train=False, mutable=["intermediates"])
    assert seen["intermediates"]["mix"][0].shape == (2, 12, 3)


def test_fuser_starts_at_zero():
    tokens = np.ones((1, 3, 8), np.float32)
    out, _ = jax.jit(lambda key: TokenFuser().init_with_output(key, tokens, MAP[:1], train=False))(jax.random.key(0))
    np.testing.assert_array_equal(out, np.zeros_like(out))


def test_bad_input_is_refused():
    def run(module, *args, **kwargs):
        return jax.eval_shape(lambda: module.init(jax.random.key(0), *args, train=False, **kwargs))

    flat = MAP.reshape(2, 12, 8)
    with pytest.raises(ValueError, match="kind='v2'"):
        run(TokenLearner(kind="v2"), MAP)
    with pytest.raises(ValueError, match=r"12 tokens do not fill a grid of 3x3: pass grid"):
        run(TokenLearner(kind="v1"), flat)
    with pytest.raises(ValueError, match="groups=3"):
        run(TokenLearner(kind="v11_conv", groups=3), MAP)
    with pytest.raises(ValueError, match="rank 3, 4 or 5"):
        run(TokenLearner(), flat[0])
    with pytest.raises(ValueError, match="leading tokens"):
        run(TokenLearner(), MAP, prefix=1)
    with pytest.raises(ValueError, match="do not belong"):
        run(TokenFuser(), MAP, MAP)


def test_layers_work_from_nnx():
    module = TokenLearner(tokens=2, kind="v1")
    bridged = nnx.bridge.ToNNX(module, rngs=nnx.Rngs(0))
    nnx.bridge.lazy_init(bridged, MAP, train=False)
    state = nnx.to_pure_dict(nnx.state(bridged, nnx.Param))
    want = module.apply({"params": state}, MAP, train=False)
    np.testing.assert_allclose(bridged(MAP, train=False), want, atol=1e-6)


def test_ten_lines_that_import_only_the_layers():
    script = """
        import jax, jax.numpy as jnp
        from jaxvit.layers import TokenLearner
        maps = jnp.ones((10, 64, 48, 96))
        layer = TokenLearner(tokens=8)
        variables = layer.init(jax.random.key(0), maps, train=False)
        tokens = layer.apply(variables, maps, train=False)
        print(tokens.shape)
        import sys
        wanted = ("jaxvit.models", "jaxvit.training", "jaxvit.data", "ml_collections", "tensorflow_datasets", "optax")
        assert not [name for name in wanted if name in sys.modules]
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(10, 8, 96)"


@pytest.mark.parametrize(("tokens", "cell"), [(4, (4, 4)), (8, (4, 2)), (16, (2, 2))])
def test_it_can_start_as_average_pooling_over_a_grid(tokens, cell):
    x = np.random.default_rng(0).normal(size=(2, 1 + 64, 3)).astype(np.float32)
    layer = TokenLearner(tokens=tokens, start="grid", hidden=4)
    how = {"train": False, "grid": (8, 8), "prefix": 1}
    got, variables = layer.init_with_output(jax.random.key(0), x, **how)
    maps = x[:, 1:].reshape(2, 8 // cell[0], cell[0], 8 // cell[1], cell[1], 3).mean(axis=(2, 4)).reshape(2, tokens, 3)
    np.testing.assert_array_equal(got[:, :1], x[:, :1])
    np.testing.assert_allclose(got[:, 1:], maps, atol=0.02)
    params = variables["params"]
    assert params["places"].shape == (tokens, 64) and not params["scale"].any()
    slopes = jax.grad(lambda p: jnp.sum(jnp.square(layer.apply({"params": p}, x, **how))))(params)
    assert all(jnp.any(slopes[name] != 0) for name in ("places", "scale"))
    for wrong in ({"kind": "v1"}, {"reduce": "mean"}):
        with pytest.raises(ValueError, match="start='grid' needs weighted means"):
            TokenLearner(tokens=4, start="grid", **wrong)
    with pytest.raises(ValueError, match="7 tokens do not divide a map of 2x2"):
        TokenLearner(tokens=7, start="grid").init(jax.random.key(0), x[:, :4], train=False)
