"""Initial values by formula, against NumPy."""

import functools
import re

import jax
import numpy as np
import pytest

from jaxvit.ops.initial_values import mimetic_attention, patches_of, place_filters, whitening_filters

CHANNELS, HEADS = 24, 3


@functools.cache
def kernels(head_dim, **options):
    made = jax.jit(lambda: mimetic_attention(jax.random.key(4), CHANNELS, HEADS, head_dim, **options))()
    assert made["out"].shape == (HEADS, head_dim, CHANNELS)
    assert {made[name].shape for name in ("query", "key", "value")} == {(CHANNELS, HEADS, head_dim)}
    return {name: np.asarray(kernel, np.float64) for name, kernel in made.items()}


def products(made):
    """Wq Wkᵀ and Wv Wo of each head, (M, C, C) each."""
    logits = [made["query"][:, m] @ made["key"][:, m].T for m in range(HEADS)]
    outputs = [made["value"][:, m] @ made["out"][m] for m in range(HEADS)]
    return np.stack(logits), np.stack(outputs)


def best_of_rank(matrix, rank):
    u, s, vh = np.linalg.svd(matrix)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def looks_like_noise(z):
    """Asserts that z has independent normal values of variance 1/C, which differ between heads."""
    assert abs(z.mean()) < 4 * (z.size * CHANNELS) ** -0.5
    assert z.var() * CHANNELS == pytest.approx(1.0, abs=4 * (2 / z.size) ** 0.5)
    assert (np.abs(z) * CHANNELS**0.5 < 1).mean() == pytest.approx(0.683, abs=0.04)
    flat = z.reshape(len(z), -1)
    assert len(z) == 1 or np.abs(np.corrcoef(flat) - np.eye(len(z))).max() < 0.2


@pytest.mark.parametrize("head_dim", [CHANNELS, 31])
def test_wide_heads_hold_the_whole_formula(head_dim):
    logits, outputs = products(kernels(head_dim, query_key=(0.7, 0.5), value_output=(0.4, 0.3)))
    looks_like_noise((logits - 0.5 * np.eye(CHANNELS)) / 0.7)
    looks_like_noise((outputs * HEADS + 0.3 * np.eye(CHANNELS)) / 0.4)


@pytest.mark.parametrize("head_dim", [5, CHANNELS // HEADS, 20])
def test_narrow_heads_hold_its_best_approximation(head_dim):
    narrow = kernels(head_dim)
    whole, found = products(kernels(CHANNELS)), products(narrow)
    for of_all, of_some in zip(whole, found, strict=True):
        for m in range(HEADS):
            np.testing.assert_allclose(of_some[m], best_of_rank(of_all[m], head_dim), atol=1e-4)
    # The two factors share the singular values evenly.
    singular = np.linalg.svd(whole[0][1], compute_uv=False)[:head_dim]
    for name in ("query", "key"):
        np.testing.assert_allclose(narrow[name][:, 1].T @ narrow[name][:, 1], np.diag(singular), atol=5e-6)


def test_what_is_wider_than_the_formula_can_learn_all_over():
    """Zeros in both factors would have no gradient."""
    wide = kernels(40)
    assert min(np.abs(kernel).max(axis=axis).min() for kernel, axis in ((wide["query"], 0), (wide["out"], 2))) > 0.05
    for of_all, of_wide in zip(products(kernels(CHANNELS)), products(wide), strict=True):
        np.testing.assert_allclose(of_wide, of_all, atol=3e-6)


@pytest.mark.parametrize("head_dim", [4, CHANNELS // HEADS, 11])
def test_jointly_all_heads_together_hold_the_papers_formula(head_dim):
    """With heads of C / heads it is the authors' own way: the factors of one matrix, cut into heads."""
    alone, joint = kernels(head_dim), kernels(head_dim, joint=True)
    np.testing.assert_array_equal(alone["query"], joint["query"])
    whole = products(kernels(CHANNELS, joint=True))[1].sum(axis=0)
    looks_like_noise((whole + 0.4 * np.eye(CHANNELS))[None] / 0.4)
    expected = best_of_rank(whole, head_dim * HEADS)
    np.testing.assert_allclose(products(joint)[1].sum(axis=0), expected, atol=1e-4)


def test_matrices_are_taken_apart_one_at_a_time():
    """Several devices of a CPU that do so with batches have waited for each other for ever."""

    def make(key):
        return mimetic_attention(key, CHANNELS, HEADS, 31)

    text = jax.jit(jax.vmap(make)).lower(jax.random.split(jax.random.key(0), 2)).as_text()
    calls = [line for line in text.splitlines() if "@lapack_" in line]
    assert {name for line in calls for name in re.findall(r"@lapack_s(\w+)_ffi", line)} >= {"gesdd", "geqrf"}
    for line in calls:
        assert re.search(r": \(tensor<\d+x\d+xf32>[,)]", line), line


def test_whitening_filters_make_responses_uncorrelated():
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6)) * [1, 1, 1, 1, 1, 0.01]
    moments = patches.T @ patches / len(patches)
    filters = whitening_filters(moments, eps=0.05)
    responses = patches @ filters.T
    largest_first = np.linalg.eigvalsh(moments)[::-1]
    np.testing.assert_allclose(
        responses.T @ responses / len(patches), np.diag(largest_first / (largest_first + 0.05)), atol=1e-5
    )
    assert (filters[range(6), np.abs(filters).argmax(axis=1)] > 0).all()
    assert np.isfinite(whitening_filters(np.zeros((3, 3)), eps=1e-3)).all()


@pytest.mark.parametrize(("window", "strides"), [((3, 2), (1, 1)), ((2, 2), (2, 2)), ((3, 3), (2, 1))])
def test_patches_are_the_windows_inside(window, strides):
    x = np.random.default_rng(1).normal(size=(2, 6, 7, 3))
    expected = [
        image[i : i + window[0], j : j + window[1]].reshape(-1)
        for image in x
        for i in range(0, 6 - window[0] + 1, strides[0])
        for j in range(0, 7 - window[1] + 1, strides[1])
    ]
    np.testing.assert_array_equal(patches_of(x, window, strides), expected)


@pytest.mark.parametrize("outputs", [2, 4, 6, 8, 11])
def test_filters_then_their_negatives_then_what_was_drawn(outputs):
    drawn = np.full((2, 2, 1, outputs), 7.0, np.float32)
    filters = np.arange(1, 17, dtype=np.float32).reshape(4, 4)
    columns = np.asarray(place_filters(drawn, filters)).reshape(4, outputs).T
    expected = [*filters, *-filters, *np.full((outputs, 4), 7.0)][:outputs]
    np.testing.assert_array_equal(columns, expected)
