"""Merging and removing tokens, against loops written from the papers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvit.ops import compose_places, merge_tokens, prune_tokens, size_bias, token_scores, unmerge_tokens

RNG = np.random.default_rng(0)
B, N, C, D = 3, 11, 4, 5
X = RNG.normal(size=(B, N, C)).astype(np.float32)
KEYS = RNG.normal(size=(B, N, D)).astype(np.float32)
SIZES = RNG.integers(1, 4, (B, N)).astype(np.float32)
MASK = np.ones((B, N), bool)
MASK[0, 8:] = False
MASK[1, 3] = False


def merged_by_loops(x, keys, r, prefix, sizes):
    """One sample: (tokens, sizes, places), by greedy search over pairs, as the paper describes it in words."""
    # The authors split all tokens alternately, so that a class token, number 0, is in the first set.
    first = [i for i in range(prefix, len(x)) if i % 2 == 0]
    second = [i for i in range(prefix, len(x)) if i % 2 == 1]
    edges = []
    for i in first:
        cosines = [keys[i] @ keys[j] / (np.linalg.norm(keys[i]) * np.linalg.norm(keys[j])) for j in second]
        edges.append((max(cosines), i, second[int(np.argmax(cosines))]))
    edges.sort(key=lambda edge: -edge[0])
    into = {i: j for _, i, j in edges[:r]}
    order = [*range(prefix), *(i for i in first if i not in into), *second]
    tokens, counts = [], []
    for k in order:
        members = [k, *(i for i, j in into.items() if j == k)]
        counts.append(sum(sizes[m] for m in members))
        tokens.append(sum(sizes[m] * x[m] for m in members) / counts[-1])
    return np.array(tokens), np.array(counts), np.array([order.index(into.get(i, i)) for i in range(len(x))])


@pytest.mark.parametrize(("r", "prefix"), [(1, 0), (5, 0), (5, 1), (2, 2)])
@pytest.mark.parametrize("sized", [False, True])
def test_merging(r, prefix, sized):
    sizes = SIZES if sized else np.ones((B, N), np.float32)
    got = jax.jit(partial(merge_tokens, r=r, prefix=prefix))(X, KEYS, sizes_BN=SIZES if sized else None)
    for b in range(B):
        tokens, counts, places = merged_by_loops(X[b], KEYS[b], r, prefix, sizes[b])
        np.testing.assert_allclose(got.tokens[b], tokens, rtol=2e-6, atol=1e-6)
        np.testing.assert_array_equal(got.sizes[b], counts)
        np.testing.assert_array_equal(got.places[b], places)


def test_merging_nothing_returns_the_tokens_themselves():
    got = merge_tokens(X, KEYS, 0, prefix=1)
    assert got.tokens is X
    np.testing.assert_array_equal(got.places, np.broadcast_to(np.arange(N), (B, N)))


def test_masked_tokens_go_first_and_have_no_influence():
    wild = np.where(MASK[..., None], X, np.nan).astype(np.float32)
    keys = np.where(MASK[..., None], KEYS, np.inf).astype(np.float32)
    for prefix, r in ((0, 2), (1, 3), (0, 5)):
        got = merge_tokens(wild, keys, r, prefix=prefix, mask_BN=MASK)
        assert np.isfinite(got.tokens).all()
        np.testing.assert_array_equal(got.sizes.sum(axis=1), MASK.sum(axis=1))
        for b in range(B):
            gone = {i for i in range(N) if got.sizes[b, got.places[b, i]] > 1 or not MASK[b, i]}
            hidden_first = [i for i in range(prefix, N) if i % 2 == 0 and not MASK[b, i]]
            assert set(hidden_first) <= gone
            # What is left is the mean of the valid tokens that went there.
            for k in range(N - r):
                members = [i for i in range(N) if got.places[b, i] == k and MASK[b, i]]
                want = np.mean([X[b, i] for i in members], axis=0) if members else np.zeros(C)
                np.testing.assert_allclose(got.tokens[b, k], want, rtol=2e-6, atol=1e-6)
    # As many valid pairs merge as r leaves after the masked tokens: sample 0 loses 8 and 10, so r = 2 merges none.
    got = merge_tokens(wild, keys, 2, mask_BN=MASK)
    assert got.sizes[0].max() == 1


def test_the_weighted_sum_of_the_tokens_is_kept():
    got = merge_tokens(X, KEYS, 4, sizes_BN=SIZES)
    want = (X * SIZES[..., None]).sum(axis=1)
    np.testing.assert_allclose((got.tokens * got.sizes[..., None]).sum(axis=1), want, rtol=1e-5, atol=1e-5)


def test_two_steps_and_back_again():
    one = merge_tokens(X, KEYS, 3, prefix=1)
    two = merge_tokens(one.tokens, one.tokens, 2, prefix=1, sizes_BN=one.sizes)
    places = compose_places(one.places, two.places)
    back = unmerge_tokens(two.tokens, places)
    assert back.shape == X.shape
    for b in range(B):
        for k in range(N - 5):
            members = np.flatnonzero(np.asarray(places)[b] == k)
            assert len(members) == two.sizes[b, k]
            np.testing.assert_allclose(two.tokens[b, k], X[b, members].mean(axis=0), rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(back[b, members], np.repeat(two.tokens[b, k][None], len(members), 0))


@pytest.mark.parametrize("prefix", [0, 2])
def test_pruning(prefix):
    scores = RNG.normal(size=(B, N)).astype(np.float32)
    scores[2, 4] = scores[2, 7]
    for keep in (1, 4, N - prefix):
        got = prune_tokens(X, scores, keep, prefix=prefix, sizes_BN=SIZES)
        for b in range(B):
            best = sorted(range(prefix, N), key=lambda i: (-scores[b, i], i))[:keep]
            stay = [*range(prefix), *sorted(best)]
            np.testing.assert_array_equal(got.tokens[b], X[b, stay])
            np.testing.assert_array_equal(got.sizes[b], SIZES[b, stay])
            want = [stay.index(i) if i in stay else -1 for i in range(N)]
            np.testing.assert_array_equal(got.places[b], want)
    spread = unmerge_tokens(*prune_tokens(X, scores, 4, prefix=prefix)[::2])
    np.testing.assert_array_equal(np.any(np.asarray(spread) != 0, axis=-1).sum(axis=1), [4 + prefix] * B)


def test_pruning_removes_masked_tokens_first():
    got = prune_tokens(X, np.where(MASK, 0.0, 1.0), 8, mask_BN=MASK)
    assert (np.asarray(got.places)[0, 8:] == -1).all() and got.places[1, 3] == -1


def test_scores():
    attention = jax.nn.softmax(jnp.asarray(RNG.normal(size=(B, 2, N, N)), jnp.float32))
    np.testing.assert_allclose(token_scores("norm", X), np.linalg.norm(X, axis=-1), rtol=1e-6)
    got = token_scores("attention", X, attention_BMQN=attention, class_token=True)
    np.testing.assert_allclose(got, np.mean([attention[:, m, 0] for m in range(2)], axis=0), rtol=1e-6)
    got = token_scores("attention", X, attention_BMQN=attention)
    want = np.mean([attention[:, m, q] for m in range(2) for q in range(N)], axis=0)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    noise = token_scores("random", X, seed=1)
    assert len(set(np.asarray(noise[0]).tolist())) == N
    np.testing.assert_array_equal(noise[0], noise[1])
    assert (noise != token_scores("random", X, seed=2)).any()


def test_attention_with_the_bias_counts_a_token_as_often_as_its_size():
    logits = RNG.normal(size=4)
    sizes = np.array([1.0, 3.0, 0.0, 2.0])
    got = jax.nn.softmax(logits + size_bias(jnp.asarray(sizes[None]))[0])
    want = sizes * np.exp(logits) / (sizes * np.exp(logits)).sum()
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_gradients_vmap_and_bfloat16():
    def loss(x):
        return jnp.sum(jnp.square(merge_tokens(x, KEYS, 4, prefix=1, sizes_BN=SIZES).tokens))

    def loss_by_loops(x):  # the decision depends on KEYS only, so the tokens are linear in x
        places = merge_tokens(X, KEYS, 4, prefix=1, sizes_BN=SIZES).places
        one_hot = (places[:, None, :] == jnp.arange(N - 4)[None, :, None]).astype(jnp.float32) * SIZES[:, None]
        return jnp.sum(jnp.square(one_hot @ x / one_hot.sum(-1, keepdims=True)))

    np.testing.assert_allclose(jax.grad(loss)(X), jax.grad(loss_by_loops)(X), rtol=1e-4, atol=1e-5)
    keyed = jax.grad(lambda keys: jnp.sum(merge_tokens(X, keys, 4).tokens))(KEYS)
    np.testing.assert_array_equal(keyed, np.zeros_like(keyed))
    mapped = jax.vmap(lambda x, k: merge_tokens(x[None], k[None], 4).tokens[0])(X, KEYS)
    np.testing.assert_allclose(mapped, merge_tokens(X, KEYS, 4).tokens, rtol=1e-6)
    half = jnp.asarray(X, jnp.bfloat16)
    got = merge_tokens(half, jnp.asarray(KEYS, jnp.bfloat16), 4)
    assert got.tokens.dtype == jnp.bfloat16 and got.sizes.dtype == jnp.float32
    exact = merge_tokens(half.astype(jnp.float32), jnp.asarray(KEYS, jnp.bfloat16).astype(jnp.float32), 4)
    np.testing.assert_array_equal(got.places, exact.places)
    np.testing.assert_allclose(got.tokens.astype(jnp.float32), exact.tokens, rtol=1e-2, atol=1e-2)
    pruned = prune_tokens(half, KEYS[..., 0], 4)
    assert pruned.tokens.dtype == jnp.bfloat16
    slope = jax.grad(lambda x: jnp.sum(prune_tokens(x, KEYS[..., 0], 4).tokens))(X)
    np.testing.assert_array_equal(slope.sum(axis=(1, 2)), [4 * C] * B)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: merge_tokens(X, KEYS, 6), "r=6 is more than 5, half of the 11 tokens"),
        (lambda: merge_tokens(X, KEYS, 5, prefix=2), "r=5 is more than 4"),
        (lambda: merge_tokens(X, KEYS, -1), "r=-1 must be a whole number"),
        (lambda: merge_tokens(X, KEYS, 1, prefix=11), "leaves none"),
        (lambda: merge_tokens(X, KEYS[:, :5], 1), "do not fit"),
        (lambda: merge_tokens(X, KEYS, 1, mask_BN=MASK[:, 1:]), "mask_BN"),
        (lambda: merge_tokens(X, KEYS, 1, sizes_BN=SIZES[:2]), "sizes_BN"),
        (lambda: prune_tokens(X, KEYS[..., 0], 0), "keep=0"),
        (lambda: prune_tokens(X, KEYS[..., 0], 11, prefix=1), "keep=11 is more than the 10"),
        (lambda: prune_tokens(X, KEYS[:, 1:, 0], 3), "do not fit"),
        (lambda: token_scores("size", X), "by='size'"),
        (lambda: token_scores("attention", X), "needs attention_BMQN"),
        (lambda: unmerge_tokens(X, np.zeros((2, 4), int)), "differ in the batch"),
    ],
)
def test_bad_input_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
