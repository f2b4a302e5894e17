"""Parameters and multiply-adds of every registered model, as published or derived from the authors' code."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jaxvit.models import count_macs, count_params, create_model, input_shape, list_models
from jaxvit.models.count import abstract_variables
from jaxvit.ops import implementations

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text().splitlines()

# name: parameters, multiply-adds ('all'; exact, or in G with the digits known)
TABLE = {
    "tutorial_fashion_vit": (922_420, 24_240_600),
    "tutorial_fashion_fast_vit": (927_604, 14_114_840),
    "tutorial_mini_vit": (1_344_650, 101_549_312),
    "tutorial_mini_vit_8l": (2_665_610, 202_212_608),
    "tutorial_mini_vit_tl4": (1_349_946, 78_065_920),
    "tutorial_mini_vit_tl8": (1_355_850, 79_836_416),
    "tutorial_mini_vit_v11_g4t4": (1_353_610, 78_300_416),
    "tutorial_mini_vit_v11_g8t8": (1_350_026, 79_463_680),
    "tutorial_mini_vit_v11_g4t8": (1_354_122, 79_725_824),
    "tutorial_vit_cifar100": (21_759_012, 201_375_744),
    "tutorial_vit_cifar100_gap": (3_015_716, 182_632_448),
    "tutorial_shiftvit": (11_690_602, 103_890_432),
    "tutorial_cct": (416_331, 41_189_376),
    "vit_ti16_224": (5_717_416, "1.254"),
    "vit_s16_224": (22_050_664, "4.599"),
    "vit_s32_224": (22_878_952, "1.143"),
    "vit_b16_224": (86_567_656, "17.564"),
    "vit_b32_224": (88_224_232, "4.409"),
    "vit_l16_224": (304_326_632, "61.555"),
    "token_learner_vit_b16_224": (86_617_912, "13.49"),
    # three pairs: 86,566,120 of the mean-pooled B/16, and 51,792 + 55,136 for each
    "token_learner_fuser_vit_b16_224": (86_886_904, "13.55"),
    "shiftvit_light_tiny": (19_608_328, "2.963"),
    "shiftvit_r4_tiny": (31_426_312, "4.582"),
    "shiftvit_tiny": (28_566_664, "4.582"),
    "shiftvit_light_small": (33_796_360, "5.738"),
    "shiftvit_r4_small": (51_523_336, "8.512"),
    "shiftvit_small": (50_304_136, "8.743"),
    "shiftvit_light_base": (59_708_776, "10.194"),
    "shiftvit_r4_base": (87_271_528, "15.126"),
    "shiftvit_base": (89_026_408, "15.537"),
    "cct_2_3x2_32": (283_723, ".0353"),
    "cct_4_3x2_32": (482_123, ".0500"),
    "cct_6_3x1_32": (3_233_803, "1.0138"),
    "cct_6_3x2_32": (3_326_923, ".2535"),
    "cct_7_3x1_32": (3_760_139, "1.1816"),
    "cct_7_3x2_32": (3_853_259, ".2891"),
    "cct_7_7x2_224": (4_573_735, "1.6046"),
    "cct_14_7x2_224": (22_367_273, "5.5219"),
    "cct_14_7x2_384": (22_513_193, "18.580"),
    "cvt_2_4_32": (214_539, ".0151"),
    "cvt_4_4_32": (412_939, ".0298"),
    "cvt_6_4_32": (3_190_283, ".2147"),
    "cvt_7_4_32": (3_716_619, ".2504"),
    "vit_lite_2_4_32": (214_666, ".0153"),
    "vit_lite_4_4_32": (413_066, ".0303"),
    "vit_lite_6_4_32": (3_190_538, ".2182"),
    "vit_lite_7_4_32": (3_716_874, ".2545"),
}


def params(name, **overrides):
    return count_params(abstract_variables(create_model(name, **overrides), input_shape(name)))


def test_every_model_has_its_row():
    assert set(TABLE) == set(list_models()) and len(list_models()) == len(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_counts(name):
    want_params, want_macs = TABLE[name]
    assert params(name) == want_params
    counts = count_macs(create_model(name), input_shape(name))
    macs = counts["all"]
    columns = [f"`{name}`", "x".join(map(str, input_shape(name))), *(f"{n:,}" for n in (want_params, *counts.values()))]
    assert f"| {' | '.join(columns)} |" in PAGE
    if isinstance(want_macs, int):
        assert macs == want_macs
    else:
        digits = len(want_macs.partition(".")[2])
        assert abs(macs / 1e9 - float(want_macs)) <= 0.5000001 * 10**-digits


@pytest.mark.parametrize(
    "name, overrides, want",
    [
        ("tutorial_fashion_vit", {"num_classes": 10}, 923_326),
        ("tutorial_fashion_fast_vit", {"num_classes": 10}, 928_510),
        ("tutorial_mini_vit_tl4", {"learner": "v11_mlp"}, 1_353_422),
        ("tutorial_mini_vit_tl8", {"learner": "v11_mlp"}, 1_353_682),
        ("tutorial_shiftvit", {"stem_norm": True, "final_norm": True}, 11_692_330),
        ("tutorial_cct", {"frozen_positions": True}, 408_139),
        ("tutorial_cct", {"positions": "none"}, 408_139),
        ("cct_7_3x1_32", {"positions": "sine"}, 3_694_603),
        ("cct_14_7x2_384", {"positions": "none"}, 22_292_009),
        ("cvt_7_4_32", {"positions": "none"}, 3_700_235),
        ("vit_s16_224", {"pool": "mean", "positions": "sincos", "rep_size": 384}, 22_122_472),
    ],
)
def test_counts_of_variants(name, overrides, want):
    assert params(name, **overrides) == want


@pytest.mark.parametrize(
    "name, convention, published, tolerance",
    [
        ("tutorial_mini_vit", "keras_profiler", 0.0184e9, 0.05),
        ("tutorial_mini_vit_8l", "keras_profiler", 0.0359e9, 0.05),
        ("tutorial_mini_vit_tl4", "keras_profiler", 0.0147e9, 0.05),
        ("tutorial_mini_vit_tl8", "keras_profiler", 0.0153e9, 0.05),
        ("cct_7_3x1_32", "cct", 0.947e9, 0.0005),
        ("cct_6_3x1_32", "cct", 0.813e9, 0.001),
        ("cct_14_7x2_224", "cct", 5.11e9, 0.001),
        ("cct_14_7x2_384", "cct", 15.02e9, 0.001),
        ("cvt_7_4_32", "cct", 0.236e9, 0.002),
        ("vit_lite_7_4_32", "cct", 0.239e9, 0.002),
    ],
)
def test_published_figures_under_their_own_convention(name, convention, published, tolerance):
    got = count_macs(create_model(name), input_shape(name))[convention]
    assert abs(got - published) <= tolerance * published


class Odd(nn.Module):
    """Products of every kind, inside calls, loops and branches."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(6, (3, 3), strides=(2, 2), feature_group_count=3, name="conv")(x)  # 2*2*6 outputs, 9 * 1 inputs
        x = x.reshape(1, 4, 6)
        kernel = self.param("kernel", nn.initializers.ones, (6, 6))
        kernel = kernel @ kernel  # not of the input: not counted
        x, _ = jax.lax.scan(lambda x, _: (jnp.tanh(x @ kernel), None), x, length=5)  # 5 * 4*6*6
        x = jax.checkpoint(lambda x: x @ x.swapaxes(1, 2))(x)  # 4*4*6, two activations
        x = nn.DenseGeneral((2, 3), name="heads")(x)  # 4*4*6, a kernel of rank three
        return jax.lax.cond(x.sum() > 0, lambda x: x @ x.swapaxes(2, 3), lambda x: x @ x.swapaxes(2, 3), x)  # 4*2*2*3


def test_what_is_counted_in_a_model_of_ones_own():
    macs = count_macs(Odd(), (4, 4, 3))
    weights = 24 * 9 + 5 * 144
    assert macs == {"all": weights + 96 + 96 + 48, "keras_profiler": weights, "cct": weights + 96}


def test_ways_to_run_do_not_change_the_count():
    shape = input_shape("vit")
    plain = count_macs(create_model("vit"), shape)
    assert count_macs(create_model("vit", scan=True, remat="full"), shape) == plain


def test_multiply_adds_are_those_of_the_plain_way():
    model, size = create_model("tutorial_mini_vit"), (48, 48, 3)
    with implementations.use("plain"):
        plain = count_macs(model, size)
    assert count_macs(model, size) == plain
