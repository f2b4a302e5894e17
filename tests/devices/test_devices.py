"""The step on any hardware: eight simulated devices, in every arrangement, take the same ten steps as one device."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import dataclasses, jax, jax.numpy as jnp, numpy as np, optax, re, sys
from functools import partial
sys.path.insert(0, TESTS)
from tiny import tiny_config
from jaxvit.run.assembly import assemble
from jaxvit.data import mixing
from jaxvit.data.batches import TrainBatches, evaluation_batches
from jaxvit.data.sources import open_dataset
from jaxvit.data.prepared import data_dir
from jaxvit.config.plan import resolve
from jaxvit.devices.sharding import make_mesh, on_own_rows, over_images, place_batch, shard_state
assert jax.device_count() == 8

# No dropout and no augmentation here: pmap's devices draw their own.
changes = dict(model__dropout=0.0, model__dim=16, augment__pad_crop=0, optim__name=OPTIMIZER, optim__peak_lr=0.05,
               optim__schedule="constant", optim__warmup="0 steps", optim__clip_norm=1.0, train__batch_size=32,
               optim__ema_decay=0.9)
source = open_dataset("digits", data_dir("")).read("train[:60]")
# The second batch of an epoch of 60 is short: its padding must count nowhere, on any device.
batches = TrainBatches(source, 32, seed=0)

# In place of the optimizer: keeps the gradients that it is given, and changes nothing.
keep = optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params),
                                    lambda gradients, state, params: (jax.tree.map(jnp.zeros_like, params), gradients))

def run(devices, fsdp=1, accumulate=1):
    config = tiny_config(train__fsdp=fsdp, train__accumulate=accumulate, **changes)
    assembly = assemble(resolve(config, devices=devices))
    mesh = make_mesh(devices, fsdp)
    layout = shard_state(mesh, assembly.abstract_state)
    state = jax.jit(assembly.create_state, out_shardings=layout)()
    if fsdp > 1:  # born split: no device holds all of the large arrays
        kernel = state.params["encoder"]["block_0"]["mlp"]["dense_0"]["kernel"]
        assert kernel.addressable_shards[0].data.size == kernel.size // fsdp
        moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape == kernel.shape]
        assert all(m.sharding == kernel.sharding for m in moments)
    spy = dataclasses.replace(assembly, optimizer=keep)
    first = jax.jit(spy.train_step)(state.replace(opt_state=keep.init(state.params)), place_batch(mesh, batches[1]))
    gradients = jax.device_get(first[0].opt_state)
    step = jax.jit(assembly.train_step, donate_argnums=0, out_shardings=(layout, None))
    losses = []
    for i in range(10):
        state, sums = step(state, place_batch(mesh, batches[i]))
        losses.append({k: float(v) for k, v in sums.items()})
    evaluate = jax.jit(assembly.eval_step)
    tested = [jax.device_get(evaluate(state.variables, place_batch(mesh, b))) for b in evaluation_batches(source, 16)]
    return losses, jax.device_get(state), tested, gradients

def run_pmap():
    assembly = assemble(resolve(tiny_config(**changes), devices=8))
    state = jax.tree.map(lambda x: jnp.stack([x] * 8), assembly.create_state())
    cut = lambda b: jax.tree.map(lambda x: x.reshape(8, -1, *x.shape[1:]), b)
    spy = dataclasses.replace(assembly, optimizer=keep)
    first = jax.pmap(partial(spy.train_step, axis_name="batch"), axis_name="batch")(
        state.replace(opt_state=keep.init(state.params)), cut(batches[1]))
    gradients = jax.tree.map(lambda x: x[0], jax.device_get(first[0].opt_state))
    step = jax.pmap(partial(assembly.train_step, axis_name="batch"), axis_name="batch")
    losses = []
    for i in range(10):
        state, sums = step(state, cut(batches[i]))
        losses.append({k: float(v[0]) for k, v in sums.items()})
    evaluate = jax.pmap(partial(assembly.eval_step, axis_name="batch"), axis_name="batch")
    one = jax.tree.map(lambda x: x[0], state)
    tested = [jax.tree.map(lambda x: x[0], jax.device_get(evaluate(state.variables, cut(b))))
              for b in evaluation_batches(source, 16)]
    return losses, jax.device_get(one), tested, gradients

# Mathematically zero gradients, which Adam turns into steps of rounding noise (see docs/models.md).
ZERO = ("attention/key/bias",) if OPTIMIZER != "sgd" else ()

def compare(name, got):
    for want, have in zip(base[0], got[0], strict=True):
        for key in want:
            # Adam's updates hold the steps of noise that ZERO names.
            allowed = TOLERANCE if key == "update_norm" and ZERO else 1e-5
            assert abs(want[key] - have[key]) <= allowed * max(1.0, abs(want[key])), (name, key, want[key], have[key])
    for want, have in zip(base[2], got[2], strict=True):
        for key in want:
            assert abs(want[key] - have[key]) <= 2e-5 * max(1.0, abs(want[key])), (name, "evaluation", key)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(base[3]), jax.tree.leaves(got[3]), strict=True):
        where = "/".join(p.key for p in path)
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-5, err_msg=f"{name}: gradient of {where}")
    for tree in ("params", "ema"):
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(getattr(base[1], tree)),
                                jax.tree.leaves(getattr(got[1], tree)), strict=True):
            where = "/".join(p.key for p in path)
            if not where.endswith(ZERO or ("\\0",)):
                np.testing.assert_allclose(a, b, atol=TOLERANCE, rtol=0, err_msg=f"{name}: {where}")
    print("agrees:", name)

base = run(1)
assert max(abs(x).max() for x in jax.tree.leaves(base[3])) > 0.01
assert [round(s["count"]) for s in base[0][:4]] == [32, 28, 32, 28]
compare("8x1 data", run(8))
compare("2x4 fsdp", run(8, fsdp=4))
compare("accumulated 4 times", run(1, accumulate=4))
compare("2x4 fsdp accumulated 4 times", run(8, fsdp=4, accumulate=4))
compare("pmap", run_pmap())

# Mixing on eight devices needs no other device, and draws for each image what one device draws.
mesh, rows = make_mesh(8), 32
images = np.broadcast_to(np.arange(rows, dtype=np.float32)[:, None, None, None], (rows, 4, 4, 1))
batch = place_batch(mesh, {"x": images, "t": np.eye(rows, dtype=np.float32), "m": np.ones(rows, np.float32)})
mixed = jax.jit(lambda b: mixing.mix(jax.random.key(3), b["x"], b["t"], b["m"], mixup=0.8, cutmix=1.0,
                                     each=over_images(mesh), within=on_own_rows(mesh))).lower(batch).compile()
assert not re.search(r"all-gather|all-reduce|all-to-all|collective-permute", mixed.as_text())
targets = np.asarray(mixed(batch)[1])
whole = np.asarray(mixing.mix(jax.random.key(3), images, np.eye(rows, dtype=np.float32), jnp.ones(rows), mixup=0.8,
                              cutmix=1.0)[1])
np.testing.assert_allclose(np.diag(targets), np.diag(whole), atol=1e-6)
for i, row in enumerate(targets):
    assert set(np.nonzero(row)[0]) <= {i, i // 4 * 8 + 3 - i}, (i, row)  # four images on each device
print("agrees: mixing")
"""


@pytest.mark.parametrize(
    ("optimizer", "tolerance"),
    [("sgd", 1e-5), *(pytest.param(name, 5e-3, marks=pytest.mark.slow) for name in ("adamw", "muon"))],
)
def test_every_arrangement_of_devices_agrees(optimizer, tolerance):
    """Parameters agree within 1e-5 under SGD. Adam divides by small second moments, which amplifies rounding."""
    head = (
        f"TESTS = {os.path.dirname(os.path.dirname(__file__))!r}\nOPTIMIZER = {optimizer!r}\nTOLERANCE = {tolerance}\n"
    )
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", head + SCRIPT], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("agrees:") == 6


DRAWS = """
import re, sys, jax, numpy as np
sys.path.insert(0, TESTS)
from tiny import tiny_config
from jaxvit.run.assembly import assemble
from jaxvit.data.prepared import data_dir
from jaxvit.data.sources import open_dataset
from jaxvit.run.program import make_feed, jit_train_step
from jaxvit.config.plan import resolve
from jaxvit.devices.sharding import make_mesh, shard_state, shard_together, split_batch

def own(key, image):
    "A draw that is repeated until it is accepted, and a loop that begins with a constant."
    draw = lambda carry: (carry[0] + 1, jax.random.uniform(jax.random.fold_in(key, carry[0])))
    return image * jax.lax.while_loop(lambda carry: carry[1] < 0.5, draw, (0, 0.0))[1]

WAITS = re.compile(r"\\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(-start)?\\(")
source = open_dataset("digits", data_dir("")).read("train[:60]")
changes = dict(augment__pad_crop=2, augment__policy="rand-m9-n2", augment__erase=0.5, augment__mixup=0.8,
               augment__cutmix=1.0, augment__own="__main__:own", model__dropout=0.5, train__batch_size=16)

def waits_in_loops(text):
    "Lines of a compiled program that wait for other devices in a loop's condition or body, or in what these call."
    found, name = {}, None
    for line in text.splitlines():
        if line and not line[0].isspace() and line.rstrip().endswith("{"):
            name = line.split()[1 if line.startswith("ENTRY") else 0].lstrip("%")
            found[name] = []
        elif name:
            found[name].append(line)
    seen, todo = set(), set()
    for line in (line for lines in found.values() for line in lines if " while(" in line):
        todo |= set(re.findall(r"(?:condition|body)=%([\\w.\\-]+)", line))
    while todo - seen:
        name = (todo - seen).pop()
        seen.add(name)
        todo |= {n for line in found[name] for n in re.findall(r"%([\\w.\\-]+)", line) if n in found}
    return [line for name in seen for line in found[name] if WAITS.search(line)]

def program(devices, fsdp=1, seeds=(0, 1), mixing=True):
    mix = {} if mixing else {"augment__mixup": 0.0, "augment__cutmix": 0.0}
    plan = resolve(tiny_config(train__fsdp=fsdp, **{**changes, **mix}), devices=devices)
    assembly, mesh = assemble(plan), make_mesh(devices, fsdp)
    layout, key, make = shard_state(mesh, assembly.abstract_state), assembly.init_key(), assembly.create_state
    if seeds:
        layout, key, make = shard_together(layout), jax.numpy.stack([key] * len(seeds)), jax.vmap(make)
    state = jax.jit(make, out_shardings=layout)(key)
    feed = make_feed(plan, assembly, source, mesh, 1, seeds)
    made = jit_train_step(assembly, feed, state, mesh, 1, seeds, donate=False)
    call = feed(0, 1)
    run = made.lower(state, feed, call).compile()
    sums = jax.device_get(run(state, feed.data, call, made.numbers[0], made.root)[1])
    return run.as_text(), np.atleast_1d(sums["gradient_norm"])  # the loss of a new head is that of a guess

# What the test looks for, where it is known to be.
keys = jax.device_put(jax.random.split(jax.random.key(0), 16), split_batch(make_mesh(4)))
assert waits_in_loops(jax.jit(jax.vmap(lambda key: jax.random.beta(key, 0.8, 0.8))).lower(keys).compile().as_text())

_, base = program(1, mixing=False)  # devices mix their own images only, so their number changes the partners
assert abs(base[0] / base[1] - 1) > 0.01
for name, arrangement in {"2x2": dict(fsdp=2, seeds=()), "two runs": {}}.items():
    text, _ = program(4, **arrangement)
    assert WAITS.search(text)  # for images and gradients
    assert not (found := waits_in_loops(text)), (name, found)
    _, norms = program(4, **arrangement, mixing=False)
    np.testing.assert_allclose(norms, base[: len(norms)], rtol=1e-4, err_msg=name)
    print("no draw waits:", name)
"""


@pytest.mark.slow
def test_no_draw_waits_for_other_devices():
    """Rejection sampling must not synchronize devices in every iteration."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    head = f"TESTS = {os.path.dirname(os.path.dirname(__file__))!r}\n"
    done = subprocess.run([sys.executable, "-c", head + DRAWS], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("no draw waits:") == 2
