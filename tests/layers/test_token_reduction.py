"""An encoder that merges or removes tokens, against numpy; the text that describes it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import mlp, norm

from jaxvit.layers import Encoder, EncoderBlock, Pool, TokenFuser, TokenLearner
from jaxvit.layers.reduction import TokenReduction, parse_reduction
from jaxvit.ops.implementations import use

X = np.random.default_rng(1).normal(size=(2, 1 + 12, 8)).astype(np.float32)  # a class token and a grid of 3 × 4
EPS = 1e-3


def attend(p, x, sizes):
    """One sample, by loops: (output, mean keys, weights (M, N, N)); each token counts as often as its size."""
    heads, total, weights, keys = p["query"]["kernel"].shape[1], np.zeros_like(x), [], []
    for head in range(heads):
        q, k, v = (x @ p[n]["kernel"][:, head] + p[n]["bias"][head] for n in ("query", "key", "value"))
        odds = sizes * np.exp(q @ k.T / np.sqrt(q.shape[-1]))
        weights.append(odds / odds.sum(axis=1, keepdims=True))
        keys.append(k)
        total += weights[-1] @ v @ p["out"]["kernel"][head]
    return total + p["out"]["bias"], np.mean(keys, axis=0), np.array(weights)


def merge(x, keys, sizes, r):
    """One sample with a class token, from the paper's description."""
    first, second = range(2, len(x), 2), range(1, len(x), 2)
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    best = {i: max(second, key=lambda j, i=i: unit[i] @ unit[j]) for i in first}
    gone = sorted(first, key=lambda i: -(unit[i] @ unit[best[i]]))[:r]
    order = [0, *(i for i in first if i not in gone), *second]
    groups = [[k, *(i for i in gone if best[i] == k)] for k in order]
    counts = np.array([sizes[g].sum() for g in groups])
    return np.array([(sizes[g, None] * x[g]).sum(0) for g in groups]) / counts[:, None], counts


def forward(params, reduce, x):
    """One sample through blocks with norm before each branch."""
    sizes = np.ones(len(x))
    for i in range(len(params)):
        p = params[f"block_{i}"]
        out, keys, weights = attend(p["attention"], norm(p["norm_attention"], x, EPS), sizes)
        x = x + out
        if reduce.kind == "merge" and i in (reduce.at or range(3)):
            x, sizes = merge(x, keys, sizes, reduce.r)
        elif reduce.kind == "prune" and i in reduce.at:
            score = {"norm": np.linalg.norm(x, axis=1), "attention": weights[:, 0].mean(axis=0)}[reduce.by]
            keep = int(np.ceil(reduce.keep * (len(x) - 1)))
            stay = sorted(sorted(range(1, len(x)), key=lambda n: -score[n])[:keep])
            x, sizes = x[[0, *stay]], sizes[[0, *stay]]
        x = x + mlp(p["mlp"], norm(p["norm_mlp"], x, EPS), False)
    return x, sizes


def encoder(text="none", depth=3, **attributes):
    block = partial(EncoderBlock, heads=2, mlp_dim=6, norm_eps=EPS)
    reduce = None if text == "none" else parse_reduction(text)
    return Encoder(block, depth, reduce=reduce, class_token=True, **attributes)


@pytest.fixture(scope="module")
def variables():
    made = jax.jit(partial(encoder().init, train=False, grid=(3, 4)))(jax.random.key(0), X)
    return jax.tree.map(
        lambda leaf: leaf + 0.3 * np.random.default_rng(leaf.size).normal(size=leaf.shape).astype("f"), made
    )


@pytest.mark.parametrize("text", ["merge:r=2", "merge:r=5,at=1", "prune:keep=.6,at=0-1", "prune:keep=.5,at=2,by=norm"])
def test_against_numpy(variables, text):
    run = jax.jit(partial(encoder(text).apply, train=False, grid=(3, 4)))
    got = run(variables, X)
    params = jax.tree.map(np.asarray, variables["params"])
    for b in range(2):
        x, sizes = forward(params, parse_reduction(text), X[b])
        np.testing.assert_allclose(got.tokens[b], x, atol=5e-5)
        np.testing.assert_array_equal(got.sizes[b], sizes)
        assert got.places.shape == (2, 13) and got.places.max() == len(x) - 1


def test_remat_scan_and_absorbed_attention_give_the_same(variables):
    def loss(variables, **attributes):
        module = encoder("merge:r=3,at=1", **attributes)
        return jnp.sum(jnp.square(module.apply(variables, X, train=True, grid=(3, 4)).tokens))

    want, slope = jax.jit(jax.value_and_grad(loss))(variables)
    for attributes in ({"remat": "dots"}, {"scan": True}):
        got, other = jax.jit(jax.value_and_grad(partial(loss, **attributes)))(variables)
        np.testing.assert_allclose(got, want, rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), slope, other)
    wide = Encoder(partial(EncoderBlock, heads=2, head_dim=8), 2, reduce=parse_reduction("merge:r=3"))
    made = wide.init(jax.random.key(1), X, train=False)
    with use("plain"):
        plain = jax.jit(partial(wide.apply, train=False))(made, X)
    with use({"attention": "absorbed"}):
        absorbed = jax.jit(partial(wide.apply, train=False))(made, X)
    np.testing.assert_array_equal(plain.places, absorbed.places)
    np.testing.assert_allclose(plain.tokens, absorbed.tokens, atol=2e-5)


def test_a_learner_gets_the_whole_map_back():
    """Merged tokens return to their places: the learner's weights have one value per place."""
    learner, fuser = partial(TokenLearner, tokens=2), partial(TokenFuser)
    for kind in ({"learner_at": (1,)}, {"learner_at": (1,), "fuser": fuser}):
        module = encoder("merge:r=3", depth=2, learner=learner, **kind)
        (found, sown), _ = module.init_with_output(
            jax.random.key(0), X, train=False, grid=(3, 4), method=lambda m, x, **k: (m(x, **k), m.is_initializing())
        )
        assert sown and found.tokens.shape[1] == (13 if "fuser" in kind else 3)
    reduce = TokenReduction("merge", r=1, at=(1,))
    with pytest.raises(ValueError, match="TokenFuser spreads"):
        reduce.blocks(2, (1,), fuse=True)


def test_pooling_counts_a_token_as_often_as_its_size(draw):
    x = X[:, 1:5]
    sizes = np.array([[1, 3, 2, 1], [2, 2, 1, 1]], np.float32)
    repeated = np.stack([np.repeat(x[b], sizes[b].astype(int), axis=0)[:6] for b in range(2)][1:])
    for kind in ("mean", "sequence", "attention"):
        pool = Pool(kind=kind, heads=2)
        made = draw(pool, x, train=False)
        got = pool.apply(made, x[1:], train=False, sizes_BN=sizes[1:])
        np.testing.assert_allclose(got, pool.apply(made, repeated, train=False), atol=1e-5)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("merge:r=8", "merge:r=8"),
        ("merge:r=8,at=2-5", "merge:r=8,at=2-5"),
        ("merge:at=1+3,r=8", "merge:r=8,at=1+3"),
        ("prune:keep=.7,by=norm", "prune:keep=0.7,by=norm"),
        ("merge:macs=.7", "merge:macs=0.7"),
    ],
)
def test_the_text_form(text, want):
    assert str(parse_reduction(text)) == want and str(parse_reduction(want)) == want


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mix:r=8", "not of the form"),
        ("merge", "not of the form"),
        ("merge:8", "'8' is not one of r="),
        ("merge:r=-1", "r=-1 must be a whole number"),
        ("merge:r=1.5", "r=1.5 must be a whole number"),
        ("merge:r=1,r=2", "r is given twice"),
        ("merge:at=2", "merge needs r"),
        ("merge:keep=.5", "merge needs r"),
        ("merge:r=2,keep=.5", "keep belongs to prune"),
        ("prune:r=2", "r belongs to merge"),
        ("prune:by=norm", "prune needs keep"),
        ("prune:keep=0", "keep=0 must be above 0"),
        ("prune:keep=1.5", "keep=1.5 must be above 0 and at most 1"),
        ("prune:keep=nan", "keep=nan must be above 0"),
        ("prune:keep=.5,by=size", "by=size is not one of"),
        ("merge:macs=.5,r=3", "give only one of them"),
        ("merge:r=2,at=5-2", "at=5-2 must name blocks"),
        ("merge:r=2,at=x", "at=x must be a whole number"),
        ("merge:r=2,at=3+1", "rising list"),
    ],
)
def test_wrong_texts_are_refused(text, said):
    with pytest.raises(ValueError, match=said):
        parse_reduction(text)


def test_what_does_not_fit_is_refused():
    assert parse_reduction("prune:keep=.7").blocks(12) == (3, 6, 9)
    assert parse_reduction("merge:r=1").blocks(4, (2,)) == (0, 1)
    with pytest.raises(ValueError, match="there is no block 4; the blocks are 0 to 3"):
        parse_reduction("merge:r=1,at=3-5").blocks(4)
    with pytest.raises(ValueError, match="block 2 has 6 tokens and can merge at most 3"):
        parse_reduction("merge:r=5").left(2, 6)
    with pytest.raises(ValueError, match="has not been worked out"):
        parse_reduction("merge:macs=.5").left(2, 6)
