"""Names, overrides and errors."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jaxvit.models import FAMILIES, create_model, input_shape, list_models, model_defaults, resolve_class


class Own(nn.Module):
    """A user's model."""

    width: int
    num_classes: int = 3
    rates: tuple = (0.1,)
    act: object = None

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


PLUGIN = f"{__name__}:Own"


def test_defaults_are_plain_values_in_order_and_say_what_the_name_says():
    for name in [*list_models(), *FAMILIES]:
        defaults = model_defaults(name)
        assert all(type(v) in (bool, int, float, str, tuple) for v in defaults.values())
        assert next(iter(defaults)) == "num_classes" and {"dtype", "remat", "scan"} <= set(defaults)
        assert create_model(name, **defaults) == create_model(name)
        assert len(input_shape(name)) == 3
    assert model_defaults("vit_b16_224")["dim"] == 768


def test_families_are_no_published_models_but_can_be_made():
    assert set(FAMILIES) == {"vit", "token_learner_vit", "shiftvit", "cct"}
    assert not set(FAMILIES) & set(list_models())
    for name in FAMILIES:
        model = create_model(name, num_classes=7)
        images = jnp.zeros((2, *input_shape(name)))
        out = jax.eval_shape(lambda m=model, x=images: m.init_with_output(jax.random.key(0), x, train=False))[0]
        assert out.shape == (2, 7)


def test_any_attribute_can_be_overridden():
    model = create_model("vit_ti16_224", dim=64, depth=4, heads=2, patch=2, num_classes=10, drop_path=0)
    assert (model.dim, model.depth, model.num_classes, model.pool) == (64, 4, 10, "cls")
    assert isinstance(model.drop_path, float)
    assert create_model("shiftvit", depths=[1, 2]).depths == (1, 2)


@pytest.mark.parametrize(
    "name, overrides, sentence",
    [
        ("vit_b16_244", {}, "no model 'vit_b16_244'; did you mean 'vit_b16_224'"),
        ("vit", {"detph": 3}, "no attribute 'detph' in model 'vit'; did you mean 'depth'"),
        ("vit", {"depth": 1.5}, "attribute 'depth' of model 'vit' takes int, not float 1.5"),
        ("vit", {"depth": True}, "takes int, not bool"),
        ("vit", {"heads": 3}, "heads=3 does not divide dim=128"),
        ("vit", {"pool": "max"}, "pool='max' is not one of"),
        ("vit", {"stem_norm": True}, "stem='dense'"),
        ("token_learner_vit", {"depth": 2}, r"learner_at=\(3,\) must be a rising list of blocks from 0 to 1"),
        ("token_learner_vit", {"learner_at": (1, 3)}, "fuse=True"),
        ("vit", {"learner": "v1"}, "set both or neither"),
        ("vit", {"fuse": True}, "fuse=True has no learned tokens"),
        ("vit", {"positions": "rotary"}, "positions='rotary'"),
        ("shiftvit", {"depths": ()}, "depths"),
        ("shiftvit", {"divisions": 3}, "divisions=3"),
        ("shiftvit", {"drop_path_ramp": "none"}, "drop_path_ramp"),
        ("cct", {"tokenizer": "word"}, "tokenizer='word'"),
        ("cct", {"frozen_positions": True, "positions": "sine"}, "frozen_positions"),
        ("no_such_package:Model", {}, "cannot be imported"),
        ("math:pi", {}, "not a flax.linen Module class"),
        (PLUGIN, {}, "cannot be built"),
        (PLUGIN, {"wdith": 3}, "did you mean 'width'"),
    ],
)
def test_mistakes_get_one_clear_sentence(name, overrides, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        create_model(name, **overrides)
    assert "\n" not in str(raised.value)


def test_a_class_of_ones_own_plugs_in():
    assert resolve_class(PLUGIN).__name__ == "Own"
    assert model_defaults(PLUGIN) == {"num_classes": 3, "rates": (0.1,)}
    model = create_model(PLUGIN, width=2, num_classes=5)
    assert (model.width, model.num_classes) == (2, 5)


def test_images_that_do_not_suit_are_refused():
    for name, shape, sentence in (
        ("vit", (1, 30, 32, 3), "patch=4 does not divide an image of 30x32"),
        ("vit", (32, 32, 3), r"must have shape \(B, H, W, C\), not \(32, 32, 3\)"),
        ("tutorial_shiftvit", (1, 50, 48, 3), "patch=4 does not divide"),
        ("shiftvit", (1, 4, 4, 3), "cannot be halved"),
    ):
        model = create_model(name)
        with pytest.raises(ValueError, match=sentence):
            jax.eval_shape(lambda m=model, s=shape: m.init(jax.random.key(0), jnp.zeros(s), train=False))


def test_a_dtype_may_be_a_type():
    by_name = create_model("vit", dtype="bfloat16")
    assert create_model("vit", dtype=jnp.bfloat16) == type(by_name)(dtype=jnp.bfloat16) == by_name
    with pytest.raises(ValueError, match="dtype"):
        create_model("vit", dtype=jnp.int32)
