"""Schedule, decay and clipping against their formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvit.training.optimizer import OptimizerSettings, decay_mask, make_optimizer, make_schedule

SETTINGS = OptimizerSettings(start_lr=1e-5, peak_lr=1e-3, end_lr=1e-6, warmup_steps=10, total_steps=110)


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
    assert not decay_mask(PARAMS, "kernels", ("dense/kernel",))["dense"]["kernel"]


@pytest.fixture(autouse=True)
def _optax_mixes_dtypes():
    """Optax itself raises numbers to integer powers, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def run(settings, gradients, params, steps):
    optimizer = make_optimizer(settings)
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("mask", ["kernels", "all"])
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
    optimizer = make_optimizer(OptimizerSettings(clip_norm=1.0, b1=0.0, peak_lr=1.0, schedule="constant"))
    state = optimizer.init(gradients)
    _, state = optimizer.update(gradients, state, gradients)
    first_moment = next(s.mu for s in state if hasattr(s, "mu"))
    assert float(optax.tree.norm(first_moment)) == pytest.approx(1.0, rel=1e-5)
