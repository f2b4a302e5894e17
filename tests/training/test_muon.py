"""Muon against its formula in numpy; which parameters it takes; what becomes of the rest."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import FAMILIES

from jaxvit.devices.sharding import make_mesh, shard_state
from jaxvit.errors import UsageError
from jaxvit.models import create_model
from jaxvit.models.count import abstract_variables
from jaxvit.training.checkpoint import Checkpoints
from jaxvit.training.muon import check_patterns, count_on_muon, matrix_axes
from jaxvit.training.optimizer import make_optimizer
from jaxvit.training.settings import OptimizerSettings
from jaxvit.training.state import create_state

SETTINGS = OptimizerSettings(
    name="muon", schedule="constant", peak_lr=0.1, weight_decay=0.0, muon_beta=0.8, b1=0.7, b2=0.9, eps=1e-3
)
SHAPES = {
    "embed/projection/kernel": (2, 2, 3, 6),
    "block_0/attention/query/kernel": (6, 2, 4),
    "block_0/attention/out/kernel": (2, 4, 6),
    "block_0/mlp/dense_0/kernel": (6, 9),
    "block_0/mlp/dense_0/bias": (9,),
    "block_0/score/kernel": (6, 1),
    "merge/kernel": (3, 3, 2, 4),
    "position_embed/table": (5, 6),
    "head/logits/kernel": (6, 3),
}
# How many leading axes are the rows, over all heads: by hand, for the formula.
ROWS = {"query": 1, "out": 2, "dense_0": 1, "merge": 3}


@pytest.fixture(autouse=True)
def _optax_mixes_dtypes():
    with jax.numpy_dtype_promotion("standard"):
        yield


def draw(seed):
    rng = np.random.default_rng(seed)
    return {path: rng.normal(size=shape) for path, shape in SHAPES.items()}


def nested(flat):
    tree = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = jnp.asarray(value, jnp.float32)
    return tree


def get(tree, path):
    for name in path.split("/"):
        tree = tree[name]
    return np.asarray(tree)


def orthogonalized(matrix):
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x


def matrices(path, heads):
    """Indices that cut an array of this path into its matrices, and the number of leading axes that are rows."""
    module, leaf = path.split("/")[-2:]
    if module not in ROWS or leaf != "kernel":
        return None
    if heads == "matrix" or module not in ("query", "out"):
        return [(..., ROWS[module])]
    return [((slice(None), head) if module == "query" else (head,), 1) for head in range(2)]


def formula(values, steps, s):
    """Parameters after some steps, with gradients `draw(step)`."""
    values = {path: value.copy() for path, value in values.items()}
    first, second = ({path: np.zeros(shape) for path, shape in SHAPES.items()} for _ in range(2))
    for step in range(steps):
        gradients = draw(step)
        if s.clip_norm:
            norm = math.sqrt(sum((g**2).sum() for g in gradients.values()))
            gradients = {path: g * min(1.0, s.clip_norm / norm) for path, g in gradients.items()}
        for path, g in gradients.items():
            cuts = matrices(path, s.muon_heads)
            if cuts is None:
                first[path] = s.b1 * first[path] + (1 - s.b1) * g
                second[path] = s.b2 * second[path] + (1 - s.b2) * g**2
                corrected = np.sqrt(second[path] / (1 - s.b2 ** (step + 1)))
                update = first[path] / (1 - s.b1 ** (step + 1)) / (corrected + s.eps)
            else:
                b = s.muon_beta
                first[path] = b * first[path] + (1 - b) * g
                nesterov = b * first[path] / (1 - b ** (step + 2)) + (1 - b) * g / (1 - b ** (step + 1))
                update = np.zeros_like(g)
                for index, rows in cuts:
                    part = nesterov[index]
                    matrix = part.reshape(math.prod(part.shape[:rows]), -1)
                    scale = s.muon_rms * math.sqrt(max(matrix.shape))
                    update[index] = scale * orthogonalized(matrix).reshape(part.shape)
            decay = s.weight_decay if path.endswith("kernel") else 0.0
            scaled = s.peak_lr * decay if s.decay == "lr_scaled" else decay
            values[path] = values[path] * (1 - scaled) - s.peak_lr * update
    return values


def trained(values, steps, s):
    optimizer, params = make_optimizer(s), nested(values)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for step in range(steps):
        updates, state = update(nested(draw(step)), state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize(
    "changes",
    [
        {"weight_decay": 0.3, "clip_norm": 2.0},
        {"muon_heads": "per_head", "weight_decay": 0.02, "decay": "independent", "muon_rms": 0.5},
    ],
)
def test_every_parameter_goes_by_its_formula(changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    got, want = trained(draw(99), 3, settings), formula(draw(99), 3, settings)
    for path in SHAPES:
        np.testing.assert_allclose(get(got, path), want[path], rtol=1e-5, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("shape", [(48, 16), (16, 48), (3, 3, 16, 32), (32, 32)])
def test_an_update_has_the_given_rms_and_equal_singular_values(shape):
    """Whatever the gradient's size: the directions are kept, all singular values come near to the same one."""
    settings = dataclasses.replace(SETTINGS, muon_rms=0.3, peak_lr=1.0)
    gradient = 1e-4 * np.random.default_rng(0).normal(size=shape)
    optimizer, params = make_optimizer(settings), {"conv": {"kernel": jnp.zeros(shape)}}
    updates, _ = optimizer.update({"conv": {"kernel": jnp.float32(gradient)}}, optimizer.init(params), params)
    update = -np.asarray(updates["conv"]["kernel"], np.float64).reshape(-1, shape[-1])
    u, _, v = np.linalg.svd(gradient.reshape(update.shape), full_matrices=False)
    inside = u.T @ update @ v.T / (0.3 * math.sqrt(max(update.shape)))
    np.testing.assert_allclose(inside, np.diag(np.diag(inside)), atol=2e-3)
    low, high = (0.65, 1.25) if shape != (32, 32) else (0.0, 1.25)  # a square one is all but singular
    assert np.all((np.diag(inside) > low) & (np.diag(inside) < high))
    assert 0.75 * 0.3 < np.sqrt((update**2).mean()) < 1.15 * 0.3


@pytest.mark.parametrize(
    ("path", "shape", "heads", "rows", "columns"),
    [
        ("a/query/kernel", (8, 2, 4), "matrix", (0,), (1, 2)),
        ("a/value/kernel", (8, 2, 4), "per_head", (0,), (2,)),
        ("a/out/kernel", (2, 4, 8), "matrix", (0, 1), (2,)),
        ("a/out/kernel", (2, 4, 8), "per_head", (1,), (2,)),
        ("merge/kernel", (2, 2, 8, 16), "per_head", (0, 1, 2), (3,)),
        ("key/kernel", (8, 16), "per_head", (0,), (1,)),
        ("kernel", (8, 16), "matrix", (0,), (1,)),
    ],
)
def test_rows_and_columns(path, shape, heads, rows, columns):
    assert matrix_axes(path, shape, heads) == (rows, columns)


@pytest.mark.parametrize("shape", [(), (8,), (8, 1), (1, 8), (1, 1, 1, 8)])
def test_a_vector_is_no_matrix(shape):
    assert matrix_axes("a/kernel", shape) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_in_each_family_the_kernels_inside_are_on_muon_and_nothing_else_is(family):
    name = {"fuser": "token_learner_vit"}.get(family, family)
    params = abstract_variables(create_model(name, **FAMILIES[family]), (8, 8, 3))["params"]
    paths = {"/".join(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    found = count_on_muon(params, OptimizerSettings(name="muon"))
    kernels = {path for path in paths if path.endswith("kernel") and path.split("/")[0] != "head"}
    left = {path for path in kernels - set(found) if "projection" not in path}
    assert set(found) <= kernels and left <= {"pooling/sequence_pool/score/kernel"}
    assert ("embed/conv_0/kernel" in found) == (family == "cct")


def test_the_patterns_choose():
    params = nested(draw(0))
    some = dataclasses.replace(SETTINGS, muon_on=("block_0/*",), muon_off=("*/out/*",), muon_heads="per_head")
    assert count_on_muon(params, some) == {
        "block_0/attention/query/kernel": (48, 2),
        "block_0/mlp/dense_0/kernel": (54, 1),
    }


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"muon_on": ("*kernel", "blok_0/*")}, "config.optim.muon_on: 'blok_0/*' matches no matrix of this model, "),
        ({"muon_on": ("*bias",)}, "config.optim.muon_on: '*bias' matches no matrix"),
        ({"muon_off": ("head/*", "haed/*")}, "config.optim.muon_off: 'haed/*' matches no parameter of this model"),
        ({"muon_off": ("*",)}, "leave no matrix on Muon; use 'adamw'"),
        ({"muon_on": ()}, "leave no matrix on Muon"),
    ],
)
def test_patterns_that_do_not_fit(changes, says):
    with pytest.raises(UsageError) as raised:
        check_patterns(nested(draw(0)), dataclasses.replace(SETTINGS, **changes))
    assert says in str(raised.value) and "\n" not in str(raised.value)


def test_its_state_is_split_as_the_parameters_are_and_comes_back_from_a_checkpoint(tmp_path):
    optimizer = make_optimizer(SETTINGS)
    state = jax.jit(lambda key: create_state(lambda _: {"params": nested(draw(0))}, optimizer, key))(jax.random.key(0))
    _, moved = jax.jit(optimizer.update)(nested(draw(1)), state.opt_state, state.params)
    state = state.replace(step=jnp.int32(1), opt_state=moved)
    assert jax.tree.structure(shard_state(make_mesh(1), state)) == jax.tree.structure(state)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(state, {}, 1, 1)
        checkpoints.wait()
        restored, _ = checkpoints.restore(1, jax.tree.map(jnp.zeros_like, state))
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    # One moment of what is on Muon and two of the rest, each of a parameter's shape; none twice.
    sizes = sorted(x.size for x in jax.tree.leaves(moved) if x.ndim and x.shape != (3,))
    on_muon = count_on_muon(state.params, SETTINGS)
    once = {path: math.prod(shape) for path, shape in SHAPES.items()}
    assert sizes == sorted([*once.values(), *(size for path, size in once.items() if path not in on_muon)])


def test_two_runs_that_are_trained_together_are_as_each_by_itself():
    optimizer, params = make_optimizer(SETTINGS), nested(draw(0))

    def one(gradients):
        return optimizer.update(gradients, optimizer.init(params), params)[0]

    each = [nested(draw(seed)) for seed in (1, 2)]
    together = jax.jit(jax.vmap(one))(jax.tree.map(lambda *x: jnp.stack(x), *each))
    for i, gradients in enumerate(each):
        expected = jax.jit(one)(gradients)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=1e-5), together, expected)
