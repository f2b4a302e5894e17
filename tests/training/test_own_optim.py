"""Users' schedules and optimizers: they are used in training, and mistakes give one line."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import tiny_config

from jaxvit.config.plan import resolve
from jaxvit.errors import UsageError
from jaxvit.run.assembly import assemble
from jaxvit.training.optimizer import make_optimizer, make_schedule
from jaxvit.training.own_optim import check_own
from jaxvit.training.settings import OptimizerSettings

HERE = __name__


@pytest.fixture(autouse=True)
def _optax_mixes_dtypes():
    with jax.numpy_dtype_promotion("standard"):
        yield


def triangle(settings):
    middle, peak = settings.total_steps / 2, settings.peak_lr
    return lambda step: peak * (1 - jnp.abs(step / middle - 1))


def signs(learning_rate, settings):
    """The gradient's sign and a decay, by the schedule."""

    def update(gradients, count, params):
        rate = learning_rate(count)
        return jax.tree.map(lambda g, p: -rate * (jnp.sign(g) + decay * p), gradients, params), count + 1

    decay = settings.weight_decay
    return optax.GradientTransformation(lambda params: jnp.int32(0), update)


SETTINGS = OptimizerSettings(
    name=f"{HERE}:signs", schedule=f"{HERE}:triangle", peak_lr=0.5, total_steps=8, weight_decay=0.1, layer_decay=0.5
)


def test_the_rate_is_the_functions():
    rates = jax.jit(jax.vmap(make_schedule(SETTINGS)))(jnp.arange(9))
    np.testing.assert_allclose(rates, 0.5 * (1 - np.abs(np.arange(9) / 4 - 1)), rtol=1e-6)
    assert rates.dtype == jnp.float32
    built_in = make_optimizer(
        dataclasses.replace(SETTINGS, name="sgd", momentum=0.0, layer_decay=1.0, weight_decay=0.0)
    )
    one = {"kernel": jnp.float32(1.0)}
    _, state = built_in.update(one, built_in.init(one))
    updates, _ = built_in.update(one, state)
    assert float(updates["kernel"]) == -0.125  # step 1


def test_its_updates_are_added_after_clipping_and_the_factors_of_the_layers():
    params = {"block_0": {"kernel": jnp.float32([1.0, -2.0])}, "head": {"kernel": jnp.float32([3.0])}}
    gradients = {"block_0": {"kernel": jnp.float32([5.0, -0.1])}, "head": {"kernel": jnp.float32([-9.0])}}
    optimizer = make_optimizer(SETTINGS)
    state = optimizer.init(params)
    expected = {"block_0": np.array([1.0, -2.0]), "head": np.array([3.0])}
    for step in range(3):
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        for name, factor in (("block_0", 0.5), ("head", 1.0)):
            sign = np.sign(np.asarray(gradients[name]["kernel"]))
            rate = 0.5 * (1 - abs(step / 4 - 1))
            expected[name] = expected[name] - factor * rate * (sign + 0.1 * expected[name])
    for name, value in expected.items():
        np.testing.assert_allclose(params[name]["kernel"], value, rtol=1e-5)

    seen = make_optimizer(dataclasses.replace(SETTINGS, name=f"{HERE}:as_given", clip_norm=1.0, layer_decay=1.0))
    updates, _ = seen.update(gradients, seen.init(params), params)
    assert float(optax.tree.norm(updates)) == pytest.approx(1.0)


def as_given(learning_rate, settings):
    return optax.identity()


def test_a_run_is_trained_with_them():
    config = tiny_config(optim__name=f"{HERE}:signs", optim__schedule=f"{HERE}:triangle", optim__weight_decay=0.0)
    plan = resolve(config, overrides=["optim.weight_decay", "optim.length"])
    assembly = assemble(plan)
    assert float(assembly.schedule(6)) == pytest.approx(1e-3)
    state = jax.jit(assembly.create_state)()
    steps = jax.jit(lambda s: assembly.optimizer.update(s.params, s.opt_state, s.params))(state)
    assert float(optax.tree.norm(steps[0])) == 0.0  # the rate of step 0


@pytest.mark.parametrize(
    ("changes", "key", "says"),
    [
        ({"optim__name": f"{HERE}:signs"}, "optim.b1", f"optim.name='{HERE}:signs' does not read settings.b1"),
        ({"optim__name": f"{HERE}:signs"}, "optim.muon_on", "does not read settings.muon_on"),
        ({"optim__schedule": f"{HERE}:triangle"}, "optim.warmup", "does not read settings.warmup_steps"),
        ({"optim__schedule": f"{HERE}:triangle"}, "optim.end_lr", "does not read settings.end_lr"),
    ],
)
def test_a_key_that_the_function_does_not_look_at_has_no_effect(changes, key, says):
    with pytest.raises(UsageError, match=says):
        resolve(tiny_config(**changes), overrides=[key])


def test_it_is_known_which_settings_are_looked_at():
    read = check_own(SETTINGS, 8)
    fields = {field.name for field in dataclasses.fields(OptimizerSettings)}
    assert read & fields - {"name", "schedule"} == {"weight_decay", "total_steps", "peak_lr"}


def alone(settings):
    return settings.peak_lr


def pair(settings):
    return lambda step: (step, step)


def row(settings):
    return lambda step: jnp.zeros(3) * step


def below(settings):
    return lambda step: jnp.where(step < 5, 1e-3, -1e-3)


def numpy_one(settings):
    return lambda step: np.float32(np.cos(step))


def misspelt(settings):
    return optax.constant_schedule(settings.peek_lr)


def two(learning_rate, settings):
    return None


def statefully(learning_rate, settings):
    return optax.GradientTransformation(lambda params: (), lambda g, s, p: (g, (jnp.zeros(2),)))


def halves(learning_rate, settings):
    half = lambda g, s, p: (jax.tree.map(lambda x: x.astype(jnp.bfloat16), g), s)  # noqa: E731
    return optax.GradientTransformation(lambda params: (), half)


def needs_loss(learning_rate, settings):
    return optax.contrib.reduce_on_plateau()


def by_name(learning_rate, settings):
    return optax.GradientTransformation(lambda params: {"w": params["haed"]}, lambda g, s, p: (g, s))


@pytest.mark.parametrize(
    ("key", "name", "says"),
    [
        ("schedule", "alone", "returns a float; it must return a function of the step, such as optax."),
        ("schedule", "pair", "gives a tuple for a step; it must give one number"),
        ("schedule", "row", "gives an array of shape (3,) for a step; it must give one number"),
        ("schedule", "below", "gives -0.001 at step 5 of 12; a learning rate is a number from 0 up"),
        ("schedule", "numpy_one", "the schedule that it returns fails at a step: TracerArrayConversionError"),
        ("schedule", "misspelt", "has no attribute 'peek_lr'"),
        ("schedule", "signs", "must take (settings); it takes (learning_rate, settings)"),
        ("schedule", "HERE", "is not a function"),
        ("name", "triangle", "must take (learning_rate, settings); it takes (settings)"),
        ("name", "two", "returns nothing; it must return an optax.GradientTransformation"),
        ("name", "statefully", "a state that differs from the one before: 0 is float32 (2,) and should be absent"),
        ("name", "halves", "its update gives updates that differ from the gradients: "),
        ("name", "needs_loss", "its update fails as update(gradients, state, params): TypeError: "),
        ("name", "by_name", "its init fails on this model's parameters: KeyError: 'haed' (test_own_optim.py, line "),
        ("name", "nowhere", "cannot be imported: module 'test_own_optim' has no 'nowhere'"),
    ],
)
def test_what_is_none(key, name, says):
    config = tiny_config(**{f"optim__{key}": f"{HERE}:{name}"})
    with pytest.raises(UsageError) as raised:
        assemble(resolve(config))
    text = str(raised.value)
    assert text.startswith(f"config.optim.{key}='{HERE}:{name}': ") and says in text and "\n" not in text


def test_a_name_that_is_none_shows_the_built_in_ones():
    with pytest.raises(UsageError, match=r"one of adamw, adam, sgd, lion, muon, or 'package.module:function'.*'muon'"):
        resolve(tiny_config(optim__name="moun"))
    with pytest.raises(UsageError, match=r"config.optim.schedule='test_own_optim.triangle': cannot be .* a colon"):
        resolve(tiny_config(optim__schedule=f"{HERE}.triangle"))
