"""From images to tokens, and from tokens to logits, compared with numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import mlp, norm

from jaxvit.layers import AttentionPool, Classifier, ConvTokenizer, PatchEmbed, Pool, PositionEmbed, SequencePool
from jaxvit.layers.initialisers import SCHEMES, attention_kernel
from jaxvit.models import list_models, model_defaults
from jaxvit.ops import image_to_patches, sincos_positions

IMAGE = np.random.default_rng(5).normal(size=(2, 7, 6, 3)).astype(np.float32)
TOKENS = np.random.default_rng(6).normal(size=(2, 5, 8)).astype(np.float32)


def test_the_two_stems_are_one_function(draw):
    conv, dense = (PatchEmbed(dim=8, patch=2, kind=kind, crop=True) for kind in ("conv", "dense"))
    variables = draw(conv, IMAGE)
    p = variables["params"]["projection"]
    want = np.asarray(image_to_patches(IMAGE, patch=2, crop=True)) @ p["kernel"].reshape(12, 8) + p["bias"]
    np.testing.assert_allclose(conv.apply(variables, IMAGE), want, atol=1e-5)
    flat = {"params": {"projection": {**p, "kernel": p["kernel"].reshape(12, 8)}}}
    np.testing.assert_allclose(dense.apply(flat, IMAGE), want, atol=1e-5)
    with pytest.raises(ValueError, match="patch=2 does not divide"):
        jax.eval_shape(lambda: PatchEmbed(dim=8, patch=2).init(jax.random.key(0), IMAGE))


def test_patches_may_be_cut_beforehand(draw):
    module = PatchEmbed(dim=8, patch=2, kind="dense", norm=True, crop=True, takes_patches=True)
    patches = image_to_patches(IMAGE, patch=2, crop=True)
    variables = draw(module, patches)
    np.testing.assert_array_equal(module.apply(variables, patches), module.apply(variables, IMAGE))


@pytest.mark.parametrize("quirks", [{}, {"pad_after_conv": True, "same_pooling": True}])
def test_conv_tokenizer(draw, quirks):
    image = IMAGE[:, :6]
    module = ConvTokenizer(dim=8, layers=1, **quirks)
    variables = draw(module, image)
    kernel = variables["params"]["conv_0"]["kernel"]
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = np.zeros((2, 6, 6, 8))
    for i in range(6):
        for j in range(6):
            inside = 1 <= i < 5 and 1 <= j < 5
            if inside or not quirks:
                y[:, i, j] = np.einsum("bhwc,hwco->bo", padded[:, i : i + 3, j : j + 3], kernel)
    y = np.maximum(y, 0)
    start = 0 if quirks else -1  # TensorFlow pads an even side at its end only
    want = np.zeros((2, 3, 3, 8))
    for i in range(3):
        for j in range(3):
            rows, columns = (range(max(0, 2 * k + start), min(6, 2 * k + start + 3)) for k in (i, j))
            want[:, i, j] = np.max([y[:, r, c] for r in rows for c in columns], axis=0)
    np.testing.assert_allclose(module.apply(variables, image), want, atol=1e-5)


def test_tokenizer_of_seven_strides_by_two():
    out = jax.eval_shape(
        lambda: ConvTokenizer(dim=4, kernel=7).init_with_output(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    )[0]
    assert out.shape == (1, 14, 14, 4)


def test_positions(draw):
    grid = (2, 2)  # and one leading token
    learned = PositionEmbed()
    variables = draw(learned, TOKENS, grid=grid)
    assert variables["params"]["table"].shape == (5, 8)
    want = TOKENS + variables["params"]["table"][None]
    np.testing.assert_allclose(learned.apply(variables, TOKENS, grid=grid), want, rtol=1e-6)
    sincos = PositionEmbed(kind="sincos").apply({}, TOKENS, grid=grid)
    np.testing.assert_array_equal(sincos[:, 0], TOKENS[:, 0])
    np.testing.assert_allclose(sincos[:, 1:], TOKENS[:, 1:] + sincos_positions(grid, 8)[None], rtol=1e-6)
    np.testing.assert_array_equal(PositionEmbed(kind="none").apply({}, TOKENS, grid=grid), TOKENS)
    frozen = PositionEmbed(frozen=True, initialiser="keras")
    first, again = (frozen.apply({}, TOKENS, grid=grid) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    program = jax.make_jaxpr(lambda x: frozen.apply({}, x, grid=grid))(TOKENS)
    assert {str(equation.primitive) for equation in program.eqns} <= {"add", "broadcast_in_dim"}  # nothing is drawn
    table = np.asarray(first - TOKENS)
    assert 0.02 < np.abs(table).max() < 0.0501 and np.allclose(table[0], table[1], atol=1e-6)


def test_sequence_pool(draw):
    module = SequencePool()
    variables = draw(module, TOKENS)
    p = variables["params"]["score"]
    scores = np.exp(TOKENS @ p["kernel"][:, 0] + p["bias"])
    weights = scores / scores.sum(1, keepdims=True)
    want = [sum(w * x for w, x in zip(ws, xs, strict=True)) for ws, xs in zip(weights, TOKENS, strict=True)]
    got, seen = module.apply(variables, TOKENS, mutable=["intermediates"])
    np.testing.assert_allclose(got, want, atol=1e-5)
    np.testing.assert_allclose(seen["intermediates"]["pool_weights"][0][:, 0], weights, atol=1e-6)
    mask = np.array([[1, 1, 1, 0, 0]] * 2, bool)
    want = module.apply(variables, TOKENS[:, :3])
    np.testing.assert_allclose(module.apply(variables, TOKENS, mask_BN=mask), want, atol=1e-6)


def test_attention_pool(draw):
    module = AttentionPool(heads=2, mlp_dim=6)
    variables = draw(module, TOKENS, train=False)
    p = variables["params"]
    a = p["attention"]
    x = np.zeros((2, 8)) + a["out"]["bias"]
    for b in range(2):
        for head in range(2):
            q = p["probe"][0] @ a["query"]["kernel"][:, head] + a["query"]["bias"][head]
            k = TOKENS[b] @ a["key"]["kernel"][:, head] + a["key"]["bias"][head]
            v = TOKENS[b] @ a["value"]["kernel"][:, head] + a["value"]["bias"][head]
            weights = np.exp(k @ q / 2)
            x[b] += (weights / weights.sum()) @ v @ a["out"]["kernel"][head]
    want = x + mlp(p["mlp"], norm(p["norm"], x, 1e-6), twice=False)
    np.testing.assert_allclose(module.apply(variables, TOKENS, train=False), want, atol=2e-5)


def test_pools_know_the_prefix():
    def pool(kind):
        return Pool(kind=kind, prefix=1).apply({}, TOKENS, train=False)

    np.testing.assert_array_equal(pool("cls"), TOKENS[:, 0])
    np.testing.assert_allclose(pool("mean"), TOKENS[:, 1:].mean(1), atol=1e-6)
    np.testing.assert_array_equal(pool("flatten"), TOKENS[:, 1:].reshape(2, -1))
    with pytest.raises(ValueError, match="kind='max'"):
        pool("max")


def test_classifier(draw):
    module = Classifier(3, hidden=(6, 4), activation="relu", dropout=0.5, input_dropout=0.5, dtype="bfloat16")
    x = TOKENS[:, 0]
    variables = draw(module, x, train=False)
    p = variables["params"]
    want = x
    for name in ("hidden_0", "hidden_1"):
        want = np.maximum(want @ p[name]["kernel"] + p[name]["bias"], 0)
    want = want @ p["logits"]["kernel"] + p["logits"]["bias"]
    got = module.apply(variables, x, train=False)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=0.05)
    noisy = module.apply(variables, x, train=True, rngs={"dropout": jax.random.key(0)})
    assert not np.allclose(noisy, got)


def test_initialisers_have_the_scale_of_their_source():
    key, shape = jax.random.key(0), (128, 3, 128)
    limits = {
        name: float(np.abs(attention_kernel(name, shape)(key, (128, 384))).max()) for name in ("keras", "keras_3d")
    }
    assert abs(limits["keras"] - 0.1083) < 1e-3 and abs(limits["keras_3d"] - 0.0189) < 1e-3
    conv = SCHEMES["cct"].conv(key, (3, 3, 64, 128))
    assert abs(float(conv.std()) - (2 / 576) ** 0.5) < 1e-3
    assert abs(float(SCHEMES["cct"].positions(key, (256, 64)).std()) - 0.2) < 0.01
    assert not SCHEMES["vit"].head(key, (4, 4)).any()
    assert abs(float(SCHEMES["vit"].positions(key, (256, 64)).std()) - 0.02) < 0.001
    for channels in (64, 192):
        assert abs(float(SCHEMES["big_vision"].positions(key, (256, channels)).std()) * channels**0.5 - 1) < 0.03
    assert SCHEMES["big_vision"]._replace(positions=None) == SCHEMES["vit"]._replace(positions=None)


def test_keras_attention_by_version():
    """The mini ViT's query (128 channels, 4 heads of 128), by both versions' rule for fan-in and fan-out."""
    key, shape = jax.random.key(0), (128, 4, 128)
    by_matrix, by_window = (2 / (128 + 4 * 128)) ** 0.5, (2 / (128 * 4 + 128 * 128)) ** 0.5
    assert round(by_matrix, 4) == 0.0559 and round(by_window, 4) == 0.0109
    for new, old in (("keras_3.15", "keras_3.14"), ("keras", "keras_3d")):
        stds = [float(attention_kernel(name, shape)(key, (128, 512)).std()) for name in (new, old)]
        np.testing.assert_allclose(stds, [by_matrix, by_window], rtol=0.02)
    assert SCHEMES["keras_3.15"] is SCHEMES["keras"] and SCHEMES["keras_3.14"] is SCHEMES["keras_3d"]
    tutorials = [name for name in list_models() if name.startswith("tutorial_") and "shift" not in name]
    assert {model_defaults(name)["initialiser"] for name in tutorials} == {"keras_3d"}  # the documents' time


@pytest.mark.parametrize("kind", ["mean", "attention", "sequence", "flatten"])
def test_no_pool_reads_the_prefix(kind, draw):
    from jaxvit.layers.pool import Pool

    pool = Pool(kind=kind, prefix=2, heads=2)
    x_BNC = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)
    variables = draw(pool, jnp.asarray(x_BNC), train=False)
    other = x_BNC.copy()
    other[:, :2] = 100.0
    want, got = (pool.apply(variables, jnp.asarray(x), train=False) for x in (x_BNC, other))
    np.testing.assert_array_equal(want, got)
