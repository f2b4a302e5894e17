"""Models assembled from configs."""

from functools import partial

import jax
import numpy as np
from tiny import tiny_config

from jaxvit.config.plan import resolve
from jaxvit.run.assembly import assemble


def test_a_run_goes_by_its_config():
    """Without noise the same up to rounding; with noise, other noise."""
    made = {}
    for way in ("fast", "plain"):
        config = tiny_config(model__head_dim=8, model__dropout=0.2, train__implementations=way)
        made[way] = assemble(resolve(config))
    numbers = np.random.default_rng(0)
    shapes = made["fast"].abstract_state.variables
    variables = jax.tree.map(lambda p: numbers.normal(0, 0.3, p.shape).astype(p.dtype), shapes)
    images = numbers.normal(size=(4, *made["fast"].plan.input_shape)).astype(np.float32)
    key = jax.random.key(0)
    calm, noisy = (
        [np.asarray(jax.jit(partial(made[way].apply, train=train))(variables, images, key=key)) for way in made]
        for train in (False, True)
    )
    np.testing.assert_allclose(*calm, rtol=1e-4, atol=1e-5)
    assert np.abs(noisy[0] - noisy[1]).max() > 1e-3
