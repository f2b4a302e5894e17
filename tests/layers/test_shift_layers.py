"""ShiftBlock, ShiftStage and Downsample, against numpy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import mlp, norm

from jaxvit.layers import Downsample, ShiftBlock, ShiftStage
from jaxvit.ops import mask_borders, shift_channels

X = np.random.default_rng(4).normal(size=(2, 4, 5, 24)).astype(np.float32)


@pytest.mark.parametrize(
    "kwargs, moved",
    [
        ({"divisions": 12}, shift_channels(X, groups=12)),
        ({"divisions": 6, "groups": "width"}, shift_channels(X, groups=4)),
        ({"divisions": 3, "groups": "width", "shift": "border"}, mask_borders(X, groups=8)),
        ({"shift": "none"}, X),
    ],
)
def test_block(draw, kwargs, moved):
    module = ShiftBlock(norm="channels", **kwargs)
    variables = draw(module, X, train=False)
    p, moved = variables["params"], np.asarray(moved)
    assert p["mlp"]["dense_0"]["kernel"].shape == (24, 48)
    want = moved + mlp(p["mlp"], norm(p["norm"], moved, 1e-5), twice=False)
    np.testing.assert_allclose(module.apply(variables, X, train=False), want, atol=5e-5)


def test_groups_by_width_need_four_of_them():
    for channels, divisions in ((24, 12), (26, 5)):
        module = ShiftBlock(groups="width", divisions=divisions)
        with pytest.raises(ValueError, match="groups='width' needs at least"):
            jax.eval_shape(lambda m=module, c=channels: m.init(jax.random.key(0), jnp.zeros((1, 4, 4, c)), train=False))


def test_one_key_for_all_layers_nests_the_drops(draw):
    """Blocks with no shift and a constant MLP: each block that is not dropped adds its bias / (1 - rate)."""
    x = np.zeros((256, 1, 1, 4), np.float32)
    rates = (0.2, 0.4, 0.6)
    stage = ShiftStage(partial(ShiftBlock, shift="none"), rates)
    variables = jax.tree.map(np.zeros_like, draw(stage, x, train=False))
    for i in range(3):
        variables["params"][f"block_{i}"]["mlp"]["dense_1"]["bias"][:] = 10.0**i * (1 - rates[i])
    rngs = {"dropout": jax.random.key(0)}
    shared = stage.apply(variables, x, train=True, path_key=jax.random.key(1), rngs=rngs)
    assert set(np.round(np.unique(shared))) == {0, 1, 11, 111}
    own = stage.apply(variables, x, train=True, rngs=rngs)
    assert len(set(np.round(np.unique(own)))) == 8


def test_downsample(draw):
    x = X[:, :, :, :4]
    for padding, columns in (("VALID", 2), ("SAME", 3)):
        module = Downsample(padding=padding, norm="channels")
        variables = draw(module, x)
        p = variables["params"]
        y = np.pad(norm(p["norm"], x, 1e-5), ((0, 0), (0, 0), (0, 1), (0, 0)))
        want = np.zeros((2, 2, columns, 8))
        for i in range(2):
            for j in range(columns):
                window = y[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
                want[:, i, j] = np.einsum("bhwc,hwco->bo", window, p["merge"]["kernel"])
        np.testing.assert_allclose(module.apply(variables, x), want, atol=2e-5)
    with pytest.raises(ValueError, match="cannot be halved"):
        jax.eval_shape(lambda: Downsample().init(jax.random.key(0), X[:, :1]))
