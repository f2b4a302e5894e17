"""The parameters that get initial values by formula, in every family; all others are unchanged."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from tiny import FAMILIES

from jaxvit.layers import EncoderBlock, PositionEmbed
from jaxvit.models import create_model
from jaxvit.models.initial_sites import Sites, Stem, start_attention, start_positions, start_stem, stem_input, survey
from jaxvit.ops.patches import image_to_patches
from jaxvit.ops.positions import sincos_positions

BLOCKS = {"vit": 2, "token_learner_vit": 3, "fuser": 3, "cct": 2, "shiftvit": 0}
STEMS = {
    "vit": Stem(("embed", "projection"), (4, 4), (4, 4), 16),
    "token_learner_vit": Stem(("embed", "projection"), (2, 2), (2, 2), 4),
    "fuser": Stem(("embed", "projection"), (2, 2), (2, 2), 4),
    "cct": Stem(("embed", "conv_0"), (3, 3), (1, 1), 9),
    "shiftvit": Stem(("embed", "projection"), (1, 1), (1, 1), 1),
}
GRIDS = {"vit": (2, 3), "token_learner_vit": (4, 6), "cct": (4, 6)}


def of_family(name, **changes):
    family = {"fuser": "token_learner_vit"}.get(name, name)
    return create_model(family, **{**FAMILIES[name], **changes})


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_surveyed(name):
    sites = survey(of_family(name), (8, 12, 1))
    assert sites.attention == tuple(("encoder", f"block_{i}", "attention") for i in range(BLOCKS[name]))
    assert sites.positions == (((("position_embed",), GRIDS[name]),) if name in GRIDS else ())
    assert sites.stem == STEMS[name]


def test_what_is_no_site():
    """Fixed positions, attention pooling with a learned query, patches cut for a dense stem."""
    assert survey(of_family("cct", frozen_positions=True), (8, 8, 1)).positions == ()
    assert survey(of_family("cct", positions="sine"), (8, 8, 1)).positions == ()
    sites = survey(of_family("vit", pool="attention", stem="dense", stem_norm=True), (8, 8, 3))
    assert len(sites.attention) == 2 and not any("pool" in part for path in sites.attention for part in path)
    assert sites.stem == Stem(("embed", "projection"), (), (), 48)


class Own(nn.Module):
    """A user's model with jaxvit's and other layers."""

    @nn.compact
    def __call__(self, images, *, train: bool):
        x = nn.Conv(8, (2, 3), strides=2, padding="VALID")(images)
        tokens = PositionEmbed()(x.reshape(x.shape[0], -1, 8), grid=x.shape[1:3])
        return nn.Dense(10)(EncoderBlock(heads=2)(tokens, train=train).mean(axis=1))


class Grouped(nn.Module):
    """A first layer that sees parts of a patch only."""

    @nn.compact
    def __call__(self, images, *, train: bool):
        return nn.Dense(10)(nn.Conv(6, (2, 2), feature_group_count=3)(images).mean(axis=(1, 2)))


def test_a_model_of_ones_own():
    tables = ((("PositionEmbed_0",), (4, 3)),)
    stem = Stem(("Conv_0",), (2, 3), (2, 2), 18)
    assert survey(Own(), (8, 8, 3)) == Sites((("EncoderBlock_0", "attention"),), tables, stem)
    assert survey(Grouped(), (8, 8, 3)) == Sites((), (), None)


@pytest.fixture(scope="module")
def vit():
    """(sites, parameters as drawn) of the tiny ViT with a class token and registers."""
    model = of_family("vit", remat="none")
    images = np.zeros((1, 8, 12, 1), np.float32)
    return survey(model, (8, 12, 1)), jax.jit(lambda: model.init(jax.random.key(0), images, train=False))()["params"]


def changed(before, after):
    """Paths of the leaves that differ."""
    leaves = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    return {"/".join(part.key for part in path) for (path, old), new in leaves if not np.array_equal(old, new)}


def test_only_the_kernels_of_attention_change_and_each_block_has_its_own(vit):
    sites, params = vit
    after = start_attention(params, sites.attention, jax.random.key(1), query_key=(0.1, 0.9))
    names = ("query", "key", "value", "out")
    expected = {f"encoder/block_{i}/attention/{name}/kernel" for i in range(2) for name in names}
    assert changed(params, after) == expected
    blocks = [after["encoder"][f"block_{i}"]["attention"]["query"]["kernel"] for i in range(2)]
    assert not np.array_equal(*blocks)
    # One block alone begins as it does among others.
    alone = start_attention(params, sites.attention[1:], jax.random.key(1), query_key=(0.1, 0.9))
    np.testing.assert_array_equal(alone["encoder"]["block_1"]["attention"]["query"]["kernel"], blocks[1])


def test_a_learned_table_begins_at_the_fixed_one_and_the_prefix_as_drawn(vit):
    sites, params = vit
    after = start_positions(params, sites.positions, scale=0.5)
    assert changed(params, after) == {"position_embed/table"}
    before, table = params["position_embed"]["table"], after["position_embed"]["table"]
    np.testing.assert_array_equal(table[0], before[0])
    np.testing.assert_allclose(table[1:], 0.5 * sincos_positions((2, 3), 8), rtol=1e-6)


def test_the_filters_go_into_the_stem(vit):
    sites, params = vit
    filters = np.arange(256, dtype=np.float32).reshape(16, 16)
    after = start_stem(params, sites.stem, filters)
    assert changed(params, after) == {"embed/projection/kernel"}
    np.testing.assert_array_equal(after["embed"]["projection"]["kernel"].reshape(16, 8), filters[:8].T)


def test_what_the_stem_is_given():
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    model = of_family("cct")
    given = jax.jit(lambda x: stem_input(model, survey(model, (8, 8, 3)).stem, x))(images)
    np.testing.assert_array_equal(given, images)
    model = of_family("vit", stem="dense", stem_norm=True)
    given = jax.jit(lambda x: stem_input(model, survey(model, (8, 8, 3)).stem, x))(images)
    patches = np.asarray(image_to_patches(images, patch=4))
    mean, variance = patches.mean(axis=-1, keepdims=True), patches.var(axis=-1, keepdims=True)
    np.testing.assert_allclose(given, (patches - mean) / np.sqrt(variance + 1e-6), atol=1e-5)
