"""Schedule, decay and clipping against their formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvit.errors import UsageError
from jaxvit.models import create_model
from jaxvit.models.count import abstract_variables
from jaxvit.training.optimizer import average_weights, decay_mask, layer_factors, make_optimizer, make_schedule
from jaxvit.training.settings import OptimizerSettings

SETTINGS = OptimizerSettings(
    start_lr=1e-5, peak_lr=1e-3, end_lr=1e-6, warmup_steps=10, total_steps=110, weight_decay=0.0
)


def formula(step: int, s: OptimizerSettings) -> float:
    if step < s.warmup_steps:
        return s.start_lr + (s.peak_lr - s.start_lr) * step / s.warmup_steps
    progress = min((step - s.warmup_steps) / (s.total_steps - s.warmup_steps), 1.0)
    shape = {"cosine": (1 + math.cos(math.pi * progress)) / 2, "linear": 1 - progress, "constant": 1.0}[s.schedule]
    floor = s.peak_lr if s.schedule == "constant" else s.end_lr
    return floor + (s.peak_lr - floor) * shape


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_schedule(name):
    settings = OptimizerSettings(**{**SETTINGS.__dict__, "schedule": name})
    schedule = make_schedule(settings)
    for step in (0, 1, 9, 10, 11, 60, 109, 110, 111, 1000):
        assert float(schedule(step)) == pytest.approx(formula(step, settings), rel=1e-4, abs=1e-9), step
    assert float(schedule(0)) == pytest.approx(1e-5, rel=1e-4)
    assert float(schedule(10)) == pytest.approx(1e-3)
    assert float(schedule(110)) == float(schedule(10**6))


def test_without_warm_up_and_with_nothing_but_warm_up():
    assert float(make_schedule(OptimizerSettings(peak_lr=1.0, total_steps=10))(0)) == 1.0
    only = make_schedule(OptimizerSettings(peak_lr=1.0, end_lr=0.5, warmup_steps=10, total_steps=10))
    assert [float(only(step)) for step in (0, 5, 10, 11)] == [0.0, 0.5, 0.5, 0.5]


PARAMS = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "norm": {"scale": jnp.ones(3)}}


def test_masks():
    assert decay_mask(PARAMS, "all") == {"dense": {"kernel": True, "bias": True}, "norm": {"scale": True}}
    assert decay_mask(PARAMS, "kernels") == {"dense": {"kernel": True, "bias": False}, "norm": {"scale": False}}


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("cct", {"positions": "learned"}),
        ("vit_lite_2_4_32", {"num_classes": 3, "dim": 8, "qkv_bias": True}),
        (
            "vit",
            {
                "dim": 8,
                "depth": 1,
                "heads": 2,
                "pool": "attention",
                "registers": 1,
                "layer_scale": 0.1,
                "qk_norm": True,
            },
        ),
    ],
)
def test_not_1d_is_the_rank_of_the_authors_arrays(name, attributes):
    """By part, the shapes that PyTorch's modules have: timm leaves vectors and biases alone."""
    model = create_model(name, **attributes)
    params = abstract_variables(model, (8, 8, 3))["params"]
    mask = decay_mask(params, "not_1d")
    rank = {"kernel": 2, "table": 3, "probe": 3, "bias": 1, "scale": 1, "scale_attention": 1, "scale_mlp": 1}
    for path, decays in jax.tree_util.tree_leaves_with_path(mask):
        assert decays == (rank[path[-1].key] > 1), jax.tree_util.keystr(path)
    names = ["/".join(k.key for k in path) for path, decays in jax.tree_util.tree_leaves_with_path(mask) if decays]
    assert "position_embed/table" in names and ("class_token/table" in names) == (name == "vit_lite_2_4_32")


@pytest.fixture(autouse=True)
def _optax_mixes_dtypes():
    """Optax itself raises numbers to integer powers, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def run(settings, gradients, params, steps):
    optimizer = make_optimizer(settings)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params


@pytest.mark.parametrize("mask", ["kernels", "all", "not_1d"])
def test_decay_at_zero_gradient_shrinks_by_the_learning_rate(mask):
    settings = OptimizerSettings(schedule="constant", peak_lr=0.1, weight_decay=0.05, decay_mask=mask)
    params = run(settings, jax.tree.map(jnp.zeros_like, PARAMS), PARAMS, 20)
    shrunk = (1 - 0.1 * 0.05) ** 20
    np.testing.assert_allclose(params["dense"]["kernel"], shrunk, rtol=1e-5)
    np.testing.assert_allclose(params["norm"]["scale"], shrunk if mask == "all" else 1.0, rtol=1e-5)


def test_adam_against_numpy():
    settings = OptimizerSettings(**{**SETTINGS.__dict__, "b1": 0.8, "b2": 0.9, "eps": 1e-3, "weight_decay": 0.1})
    gradient, value, m, v = np.array([0.3, -2.0, 0.0]), np.array([1.0, 2.0, 3.0]), 0.0, 0.0
    params = run(settings, {"kernel": jnp.float32(gradient)}, {"kernel": jnp.float32(value)}, 30)
    for t in range(1, 31):
        m, v = 0.8 * m + 0.2 * gradient, 0.9 * v + 0.1 * gradient**2
        step = (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-3) + 0.1 * value
        value = value - formula(t - 1, settings) * step
    np.testing.assert_allclose(params["kernel"], value, rtol=1e-4)


def test_clipping_bounds_the_global_norm_before_adam():
    gradients = {"a": jnp.full(4, 3.0), "b": jnp.full(9, 4.0)}  # norm 13.4
    optimizer = make_optimizer(
        OptimizerSettings(clip_norm=1.0, weight_decay=0.0, b1=0.0, peak_lr=1.0, schedule="constant")
    )
    _, state = jax.jit(lambda g: optimizer.update(g, optimizer.init(g), g))(gradients)
    first_moment = next(s.mu for s in state if hasattr(s, "mu"))
    assert float(optax.tree.norm(first_moment)) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion"])
def test_independent_decay_does_not_know_the_learning_rate(name):
    """100 steps at zero gradient shrink by (1 - decay)^100, whatever the schedule: tensorflow-addons' AdamW."""
    settings = OptimizerSettings(**{**SETTINGS.__dict__, "name": name, "weight_decay": 1e-2, "decay": "independent"})
    params = run(settings, jax.tree.map(jnp.zeros_like, PARAMS), PARAMS, 100)
    np.testing.assert_allclose(params["dense"]["kernel"], 0.99**100, rtol=1e-4)
    np.testing.assert_array_equal(params["norm"]["scale"], 1.0)


def test_the_two_decays_agree_at_a_constant_rate():
    constant = {"schedule": "constant", "peak_lr": 1e-3, "decay_mask": "all"}
    gradients = jax.tree.map(lambda x: 0.1 * x, PARAMS)
    ours = run(OptimizerSettings(**constant, weight_decay=0.1), gradients, PARAMS, 20)
    theirs = run(OptimizerSettings(**constant, weight_decay=1e-4, decay="independent"), gradients, PARAMS, 20)
    np.testing.assert_allclose(ours["dense"]["kernel"], theirs["dense"]["kernel"], rtol=1e-6)


def test_sgd_with_momentum_against_numpy():
    settings = OptimizerSettings(name="sgd", schedule="constant", peak_lr=0.1, momentum=0.9, weight_decay=0.0)
    params = run(settings, {"kernel": jnp.float32([1.0, -2.0])}, {"kernel": jnp.float32([3.0, 4.0])}, 5)
    value, velocity = np.array([3.0, 4.0]), 0.0
    for _ in range(5):
        velocity = 0.9 * velocity + np.array([1.0, -2.0])
        value = value - 0.1 * velocity
    np.testing.assert_allclose(params["kernel"], value, rtol=1e-5)


def test_lion_steps_have_the_size_of_the_rate():
    settings = OptimizerSettings(name="lion", schedule="constant", peak_lr=0.1, weight_decay=0.0)
    params = run(settings, {"kernel": jnp.float32([5.0, -0.01])}, {"kernel": jnp.float32([0.0, 0.0])}, 3)
    np.testing.assert_allclose(params["kernel"], [-0.3, 0.3], rtol=1e-5)


def test_adam_is_adamw_without_decay():
    gradients, params = {"kernel": jnp.float32([0.5])}, {"kernel": jnp.float32([1.0])}
    adam, adamw = (
        run(OptimizerSettings(name=n, schedule="constant", weight_decay=0.0), gradients, params, 5)
        for n in ("adam", "adamw")
    )
    np.testing.assert_array_equal(adam["kernel"], adamw["kernel"])


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_cooldown(name):
    settings = OptimizerSettings(**{**SETTINGS.__dict__, "schedule": name, "cooldown_steps": 20})
    schedule = make_schedule(settings)
    assert float(schedule(110)) == pytest.approx(1e-6, rel=1e-3)
    if name == "constant":
        assert float(schedule(89)) == pytest.approx(1e-3)
        assert float(schedule(100)) == pytest.approx((1e-3 + 1e-6) / 2, rel=1e-4)
    else:
        assert float(schedule(90)) == pytest.approx(1e-6, rel=1e-3)
        shorter = make_schedule(OptimizerSettings(**{**settings.__dict__, "total_steps": 90, "cooldown_steps": 0}))
        assert float(schedule(50)) == pytest.approx(float(shorter(50)))


TREE = {
    "embed": {"projection": {"kernel": 0}},
    "position_embed": {"table": 0},
    "encoder": {f"block_{i}": {"mlp": {"dense_0": {"kernel": 0}}} for i in (0, 1, 10)},
    "norm": {"scale": 0},
    "head": {"hidden_0": {"kernel": 0}, "logits": {"kernel": 0}},
}


BLOCKS = [f"encoder/block_{i}" for i in range(12)]  # so that 10 comes after 9
# The way of an image through each family, layer by layer; parts of one layer stand together.
LAYERS = {
    ("vit", (("pool", "cls"), ("registers", 2), ("rep_size", 4), ("depth", 12))): [
        ["embed", "class_token", "position_embed", "register_tokens"],
        *([block] for block in BLOCKS),
        ["norm", "representation", "head"],
    ],
    ("token_learner_vit", (("depth", 4), ("learner_at", (1, 3)), ("fuse", True))): [
        ["embed", "position_embed"],
        ["encoder/block_0"],
        ["encoder/token_learner_1", "encoder/block_1", "encoder/token_fuser_1"],
        ["encoder/block_2"],
        ["encoder/token_learner_3", "encoder/block_3", "encoder/token_fuser_3"],
        ["norm", "head"],
    ],
    ("shiftvit", (("depths", (2, 11, 1)),)): [
        ["embed", "norm_stem"],
        *([f"stages_0/block_{i}"] for i in range(2)),
        ["merges_0"],
        *([f"stages_1/block_{i}"] for i in range(11)),
        ["merges_1"],
        ["stages_2/block_0"],
        ["norm_final", "head"],
    ],
    ("cct", (("depth", 3),)): [
        ["embed", "position_embed"],
        *([block] for block in BLOCKS[:3]),
        ["norm", "pooling", "head"],
    ],
}


@pytest.mark.parametrize("name, attributes", LAYERS)
def test_layer_factors_rise_along_the_way_of_the_image(name, attributes):
    model, layers = create_model(name, **dict(attributes)), LAYERS[name, attributes]
    factors = layer_factors(abstract_variables(model, (32, 32, 3))["params"], 0.5)
    left = {"/".join(key.key for key in path): f for path, f in jax.tree_util.tree_leaves_with_path(factors)}
    for place, parts in enumerate(layers):
        inside = [path for path in left if any(path.startswith(f"{part}/") for part in parts)]
        assert inside and {left.pop(path) for path in inside} == {2.0 ** (place + 1 - len(layers))}, parts
    assert not left


def test_a_model_without_numbered_blocks_has_no_layers_to_tell_apart():
    with pytest.raises(UsageError, match=r"config.optim.layer_decay=0.5: no part of this model has a number"):
        layer_factors({"Dense_0": {"kernel": 0}, "head": {"logits_1": {"kernel": 0}}}, 0.5)


def test_layer_decay_scales_the_updates():
    params = jax.tree.map(lambda _: jnp.zeros(2), TREE)
    settings = OptimizerSettings(
        name="sgd", momentum=0.0, schedule="constant", peak_lr=1.0, layer_decay=0.5, weight_decay=0.0
    )
    after = run(settings, jax.tree.map(jnp.ones_like, params), params, 1)
    jax.tree.map(lambda a, f: np.testing.assert_allclose(a, -f), after, layer_factors(TREE, 0.5))


@pytest.mark.parametrize("ramp", [False, True])
def test_average_of_weights(ramp):
    average, expected = {"w": jnp.float32(1.0)}, 1.0
    for step in range(30):
        new = float(step)
        average = average_weights(average, {"w": jnp.float32(new)}, jnp.int32(step), 0.7, ramp)
        rate = min(0.7, (1 + step) / (10 + step)) if ramp else 0.7
        expected = rate * expected + (1 - rate) * new
    assert float(average["w"]) == pytest.approx(expected, rel=1e-5)
