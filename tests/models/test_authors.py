"""The published sizes, compared with the authors' configurations attribute by attribute; counts cannot see them all."""

import jax
import numpy as np
import pytest
from authors import AUTHORS, DEPARTURES

from jaxvit.config.files import load_config_file
from jaxvit.layers import ShiftBlock
from jaxvit.models import create_model, input_shape, list_models, model_defaults


def test_the_authors_names_are_all_but_the_tutorials():
    assert set(AUTHORS) == {name for name in list_models() if not name.startswith("tutorial_")}
    assert set(DEPARTURES) < set(AUTHORS)


@pytest.mark.parametrize("name", AUTHORS)
def test_every_attribute_is_the_authors(name):
    """Except for the listed departures, each of which must differ."""
    theirs, departures = AUTHORS[name], DEPARTURES.get(name, {})
    added = {"reduce": "none", "learner_keep": 0, "learner_start": "random"}  # ours alone, and off
    ours = {"input": input_shape(name), **model_defaults(name)}
    ours = {key: value for key, value in ours.items() if added.get(key) != value}
    assert {k for k, v in departures.items() if v == theirs[k]} == set()
    assert ours == {**theirs, **departures}


@pytest.mark.parametrize("name", [name for name in AUTHORS if name.startswith("shiftvit")])
def test_channels_that_a_shift_moves(name):
    """Compared with SPACH's shift_feat, with the size's n_div, at the width of the first stage."""
    model = create_model(name)
    n_div, channels = AUTHORS[name]["divisions"], AUTHORS[name]["dim"]
    g = channels // n_div
    assert g == 8
    x = np.random.default_rng(0).normal(size=(1, 3, 4, channels)).astype(np.float32)
    want = np.zeros_like(x)
    want[:, :, :-1, :g] = x[:, :, 1:, :g]
    want[:, :, 1:, g : 2 * g] = x[:, :, :-1, g : 2 * g]
    want[:, :-1, :, 2 * g : 3 * g] = x[:, 1:, :, 2 * g : 3 * g]
    want[:, 1:, :, 3 * g : 4 * g] = x[:, :-1, :, 3 * g : 4 * g]
    want[..., 4 * g :] = x[..., 4 * g :]
    block = ShiftBlock(groups=model.groups, divisions=model.divisions, pixels=model.pixels, shift=model.shift)
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x, train=False))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)  # the MLP adds nothing
    np.testing.assert_array_equal(block.apply(variables, x, train=False), want)


@pytest.mark.parametrize(
    ("variant", "theirs"),
    [
        (
            "vit_s16",
            {"model.activation": "gelu_tanh", "model.initialiser": "big_vision", "optim.decay_mask": "kernels"},
        ),
        ("shiftvit_t", {"model.activation": "gelu", "model.divisions": 12, "optim.decay_mask": "kernels"}),
        ("cct_14", {"model.activation": "gelu", "optim.decay_mask": "not_1d"}),
        (
            "token_learner_b16",
            {"model.activation": "gelu_tanh", "model.learner_activation": "gelu_tanh", "optim.decay_mask": "all"},
        ),
        ("authors", {"model.activation": "gelu", "optim.decay_mask": "not_1d"}),
    ],
)
def test_the_authors_recipes_have_the_authors_activation_and_decay(variant, theirs):
    config = load_config_file(f"{'cct' if variant == 'authors' else 'imagenet'}:{variant}")
    assert {key: config[key.split(".")[0]][key.split(".")[1]] for key in theirs} == theirs
