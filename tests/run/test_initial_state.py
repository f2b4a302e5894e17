"""Initial values by formula in a run: statistics of the training images, and errors."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import StopAt, newest_state, parts
from tiny import family_config

import jaxvit
from jaxvit.config.plan import resolve
from jaxvit.data import stored
from jaxvit.data.parts import StreamedSource
from jaxvit.errors import STOPPED, StoppedError, UsageError
from jaxvit.ops.positions import sincos_positions
from jaxvit.run.assembly import Assembly, assemble


@pytest.fixture(autouse=True)
def _optax_mixes_dtypes():
    with jax.numpy_dtype_promotion("standard"):
        yield


def of_family(name, model=(), **changes):
    return family_config(name, dict(model), augment__mean=(0.3,), augment__std=(0.4,), **changes)


def expected_filters(images, side, stride, eps):
    """By loops: the moments of every window of the normalised images, and their principal components."""
    x = (np.asarray(images, np.float64) / 255 - 0.3) / 0.4
    windows = [
        image[i : i + side, j : j + side].reshape(-1)
        for image in x
        for i in range(0, 8 - side + 1, stride)
        for j in range(0, 8 - side + 1, stride)
    ]
    moments = sum(np.outer(w, w) for w in windows) / len(windows)
    values, vectors = np.linalg.eigh(moments)
    filters = [vectors[:, i] / np.sqrt(values[i] + eps) for i in reversed(range(len(values)))]
    return np.array([f * np.sign(f[np.abs(f).argmax()]) for f in filters])


@pytest.mark.parametrize(
    ("name", "side", "stride", "where"),
    [("cct", 3, 1, ("embed", "conv_0")), ("vit", 4, 4, ("embed", "projection"))],
)
def test_the_first_layer_begins_with_whitening_filters_of_the_training_images(name, side, stride, where):
    config = of_family(name, [("dim", 20)], init__stem="whitening", init__stem_eps=0.01, seed=3)
    assembly, source = parts(config)
    filters = assembly.measure(source)
    expected = expected_filters(source.images[:], side, stride, 0.01)
    np.testing.assert_allclose(filters, expected, atol=2e-4)
    params = jax.jit(assembly.create_state)(assembly.init_key(), filters).params
    drawn = jax.jit(assembly.init)(assembly.init_key())["params"]
    kernel, before = ((p[where[0]][where[1]]["kernel"].reshape(side**2, 20)) for p in (params, drawn))
    both = np.concatenate([filters, -filters])[:20].T
    np.testing.assert_array_equal(kernel[:, : both.shape[1]], both)
    np.testing.assert_array_equal(kernel[:, both.shape[1] :], before[:, both.shape[1] :])
    assert (both.shape[1] < 20) == (name == "cct")


def test_what_is_measured_depends_on_the_images_and_the_config_alone(monkeypatch):
    config = of_family("cct", init__stem="whitening", init__stem_images=7)
    assembly, source = parts(config)
    filters = assembly.measure(source)
    chosen = source.images[np.array([0, 10, 20, 30, 39, 49, 59])]
    np.testing.assert_allclose(filters, expected_filters(chosen, 3, 1, 5e-4), atol=5e-3)
    config.seed = 5
    np.testing.assert_array_equal(parts(config)[0].measure(source), filters)
    monkeypatch.setattr(stored, "CACHE_BYTES", 10)
    streamed = parts(config)[1]
    assert isinstance(streamed, StreamedSource)
    np.testing.assert_array_equal(assembly.measure(streamed), filters)


@pytest.mark.parametrize("way", [{"remat": "full"}, {"scan": True}])
def test_neither_remat_nor_scan_changes_where_a_run_begins(way):
    settings = {"init__attention": "mimetic", "init__positions": "sincos", "init__positions_scale": 0.5}
    states = []
    for options in ({"remat": "none", "scan": False}, way):
        assembly, _ = parts(of_family("token_learner_vit", options.items(), **settings))
        states.append(jax.jit(assembly.create_state)().params)
    jax.tree.map(np.testing.assert_array_equal, *states)
    np.testing.assert_allclose(
        states[1]["position_embed"]["table"], 0.5 * sincos_positions((4, 4), 8), rtol=1e-6, atol=1e-7
    )
    block = states[1]["encoder"]["block_2"]["attention"]
    query, key = (np.asarray(block[name]["kernel"]) for name in ("query", "key"))
    # Of two heads of 4 in 8 channels: the singular values are shared, which no draw of single numbers does.
    for m in range(2):
        np.testing.assert_allclose(query[:, m].T @ query[:, m], key[:, m].T @ key[:, m], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("shiftvit", {"init__attention": "mimetic"}, "init.attention='mimetic': shiftvit has no self-attention"),
        ("shiftvit", {"init__positions": "sincos"}, "init.positions='sincos': shiftvit has no trained position table"),
        ("fuser", {"init__positions": "sincos"}, "token_learner_vit has no trained position table"),
        ("cct", {"init__positions": "sincos", "model": [("dim", 6)]}, "channels=6 must be a multiple of 4, 8 or more"),
        (
            "vit",
            {"init__stem": "whitening", "model": [("patch", 80)], "augment__size": 80, "augment__pad_crop": 0},
            "takes patches of 6400 values, and at most 4096",
        ),
    ],
)
def test_what_the_model_has_no_place_for_is_refused_in_one_line(name, changes, says):
    with pytest.raises(UsageError, match=says) as error:
        assemble(resolve(of_family(name, **changes)))
    assert str(error.value).startswith("config.init.") and "\n" not in str(error.value)


def test_a_resumed_run_measures_nothing(tmp_path, monkeypatch):
    config = of_family("vit", init__stem="whitening", train__duration="1 epochs", checkpoint__every="1 steps")
    monkeypatch.setattr("jaxvit.run.train.StopRequest", lambda: StopAt(2, STOPPED))
    with pytest.raises(StoppedError):
        jaxvit.train(config, tmp_path / "run")
    monkeypatch.undo()
    assert newest_state(tmp_path / "run", config)[0].step < 4
    monkeypatch.setattr(Assembly, "measure", lambda *_: pytest.fail("measured again"))
    assert jaxvit.train(config, tmp_path / "run")["steps"] == 4


_SPLIT = """
import sys; sys.path[:0] = {paths}
import jax, numpy as np
from runs import parts
from tiny import family_config
from jaxvit.devices.sharding import make_mesh, shard_state
settings = dict(init__attention="mimetic", init__positions="sincos", init__stem="whitening")
settings |= dict(augment__mean=(0.3,), augment__std=(0.4,))
config = family_config("token_learner_vit", dict(dim=64, heads=4), **settings)
assembly, source = parts(config)
measured, states = assembly.measure(source), []
for devices, fsdp in ((1, 1), (4, 2), (4, 4)):
    layout = shard_state(make_mesh(devices, fsdp), assembly.abstract_state)
    state = jax.jit(assembly.create_state, out_shardings=layout)(assembly.init_key(), measured)
    kernel = state.params["encoder"]["block_0"]["attention"]["query"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // fsdp
    states.append(jax.device_get(state.params))
for state in states[1:]:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), states[0], state)
print("the same")
"""


@pytest.mark.slow
def test_a_state_that_is_born_split_over_devices_is_the_same():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    code = _SPLIT.format(paths=[str(Path(__file__).parents[1])])
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.stdout.strip().endswith("the same"), done.stderr[-3000:]
