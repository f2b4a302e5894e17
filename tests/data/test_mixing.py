"""Erasing, mixup and CutMix: changed pixels, and labels that stay distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvit.data import mixing

B, K = 64, 5
# Image i is the constant i, so that a pixel names the image it came from.
IMAGES = np.broadcast_to(np.arange(B, dtype=np.float32)[:, None, None, None], (B, 16, 12, 3))
TARGETS = np.asarray(jax.nn.one_hot(np.arange(B) % K, K)) * 0.9 + 0.1 / K
ALL = np.ones(B, np.float32)


def run(mask=ALL, key=0, **settings):
    settings = {"mixup": 0.0, "cutmix": 0.0, **settings}
    images, targets = jax.jit(lambda k: mixing.mix(k, jnp.asarray(IMAGES), jnp.asarray(TARGETS), mask, **settings))(
        jax.random.key(key)
    )
    return np.asarray(images), np.asarray(targets)


@pytest.mark.parametrize(
    "settings", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}, {"mixup": 0.2, "mix_probability": 0.5}]
)
def test_labels_stay_distributions_and_follow_the_pixels(settings):
    if "mix_probability" in settings:
        settings = {"mixup": 0.2, "probability": 0.5}
    images, targets = run(**settings)
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-5)
    assert targets.min() >= 0
    # The mean pixel says how much of the partner is there, and the target must say the same.
    partner = B - 1 - np.arange(B)
    own = (images.mean((1, 2, 3)) - partner) / (np.arange(B) - partner)
    np.testing.assert_allclose(targets, own[:, None] * TARGETS + (1 - own[:, None]) * TARGETS[partner], atol=1e-4)
    assert (own > -1e-5).all() and (own < 1 + 1e-5).all() and own.std() > 0.1  # one decision an image


def test_cutmix_cuts_a_box_and_mixup_blends():
    images, _ = run(cutmix=1.0)
    for i, image in enumerate(images[..., 0]):
        foreign = image == B - 1 - i
        assert (foreign | (image == i)).all()
        if foreign.any():
            ys, xs = np.nonzero(foreign)
            assert foreign[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].all()
    images, _ = run(mixup=1.0)
    assert all(np.ptp(image) < 1e-4 for image in images)


def test_beta_is_that_of_alpha():
    shares = []
    for key in range(8):
        images, _ = run(mixup=0.8, key=key)
        partner = B - 1 - np.arange(B)
        shares.append((images[:, 0, 0, 0] - partner) / (np.arange(B) - partner))
    shares = np.concatenate(shares)
    assert abs(shares.mean() - 0.5) < 0.05 and abs(shares.var() - 1 / (4 * (2 * 0.8 + 1))) < 0.02


@pytest.mark.parametrize(("switch", "boxes"), [(0.0, 0), (1.0, B), (0.5, B / 2)])
def test_the_switch_chooses_between_the_two(switch, boxes):
    images, _ = run(mixup=0.8, cutmix=1.0, switch=switch)
    whole = sum(set(np.unique(image)) <= {i, B - 1 - i} for i, image in enumerate(images))
    assert abs(whole - boxes) <= 16 * (switch == 0.5)


def test_probability_and_the_step_turn_it_off():
    untouched = [run(mixup=0.8, probability=0.0), run(mixup=0.8, active=jnp.bool_(False))]
    for images, targets in untouched:
        np.testing.assert_array_equal(images, IMAGES)
        np.testing.assert_allclose(targets, TARGETS, atol=1e-7)
    half = run(mixup=0.8, probability=0.5)[0]
    assert 16 <= sum(np.array_equal(a, b) for a, b in zip(half, IMAGES, strict=True)) <= 48


def test_parts_of_a_batch_are_mixed_within_themselves():
    """Devices mix in this way: the partner is in the same part, and the weight of an image does not change."""

    def in_four_parts(blend):
        def run(*arrays):
            parts = [blend(*(x[i * 16 : (i + 1) * 16] for x in arrays)) for i in range(4)]
            return tuple(jnp.concatenate(found) for found in zip(*parts, strict=True))

        return run

    mask = np.array(([1.0] * 16 + [1.0] * 6 + [0.0] * 10) * 2, np.float32)
    whole, _ = run(mixup=0.8)
    images, targets = run(mask=mask, mixup=0.8, within=in_four_parts)
    for i in range(B):
        real = [j for j in range(i // 16 * 16, i // 16 * 16 + 16) if mask[j]]
        partner = real[::-1][real.index(i)] if mask[i] else i
        own = (whole[i, 0, 0, 0] - (B - 1 - i)) / (i - (B - 1 - i))  # the weight of mixing without parts
        own = 1.0 if partner == i else own
        np.testing.assert_allclose(images[i], own * i + (1 - own) * partner, atol=1e-3)
        np.testing.assert_allclose(targets[i], own * TARGETS[i] + (1 - own) * TARGETS[partner], atol=1e-5)


def test_padding_is_nobodys_partner():
    mask = (np.arange(B) < 9).astype(np.float32)
    assert np.asarray(mixing.partners(mask))[:9].tolist() == [8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert np.asarray(mixing.partners(mask))[9:].tolist() == list(range(9, B))
    images, _ = run(mask=mask, mixup=0.8, cutmix=1.0)
    assert images[:9].max() <= 8
    np.testing.assert_array_equal(images[9:], IMAGES[9:])
    scattered = np.array([0, 1, 0, 1, 1], np.float32)
    assert np.asarray(mixing.partners(scattered)).tolist() == [0, 4, 2, 3, 1]
    assert np.asarray(mixing.partners(np.zeros(3, np.float32))).tolist() == [0, 1, 2]


@pytest.mark.parametrize("mode", ["zero", "noise"])
def test_erasing_overwrites_one_box(mode):
    x = np.full((256, 16, 12, 3), 9.0, np.float32)
    keys = jax.random.split(jax.random.key(1), 256)
    out = np.asarray(mixing.random_erasing(keys, x, 0.25, mode=mode))
    gone = (out != 9.0).all(-1)
    touched = gone.any((1, 2))
    assert 40 <= touched.sum() <= 90
    shares = gone[touched].mean((1, 2))
    assert shares.min() >= 0.01 and 0.25 < shares.max() <= 0.38
    for box in gone[touched]:
        ys, xs = np.nonzero(box)
        assert box[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].all()
    filling = out[gone]
    assert (filling == 0).all() if mode == "zero" else abs(filling.std() - 1) < 0.05
