"""The formulas for exchanged bytes, against a simulated ring, and against a compiled program on eight CPU devices."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from jaxvit.devices.collectives import Exchange, exchanges

SHAPES = [(16, 48), (48,), (5, 7), (8, 16, 3)]  # with fsdp 8, all but (5, 7) are split


def ring_bytes(size, chips, steps):
    """Bytes that a chip sends in a ring, counted message by message: in each step one of `chips` pieces."""
    pieces = [len(piece) for piece in np.array_split(np.zeros(size, np.uint8), chips)]
    return sum(pieces[(0 - step) % chips] for step in range(steps))


@pytest.mark.parametrize("chips", [1, 2, 8, 1024])
def test_data_parallel_is_one_all_reduce(chips):
    found = exchanges(SHAPES, chips)
    size = 4 * sum(np.prod(shape) for shape in SHAPES)
    assert found["all_gather"] == found["reduce_scatter"] == Exchange(0, 0)
    assert found["all_reduce"].bytes == (size if chips > 1 else 0)
    # An all-reduce is a reduce-scatter and an all-gather, of chips - 1 steps each.
    assert found["all_reduce"].sent == pytest.approx(2 * ring_bytes(size, chips, chips - 1), abs=2 * chips)


def test_fsdp_gathers_twice_and_scatters_once():
    found = exchanges(SHAPES, 32, 8, compute_bytes=2, gradient_bytes=4)
    split, whole = 16 * 48 + 48 + 8 * 16 * 3, 35
    assert found["all_gather"].bytes == 2 * 2 * split and found["reduce_scatter"].bytes == 4 * split
    assert found["all_reduce"].bytes == 4 * whole + 4 * split // 8
    assert found["all_gather"].sent == pytest.approx(2 * ring_bytes(2 * split, 8, 7), abs=16)
    assert found["reduce_scatter"].sent == pytest.approx(ring_bytes(4 * split, 8, 7), abs=8)
    over_data = 2 * ring_bytes(4 * split // 8, 4, 3)
    assert found["all_reduce"].sent == pytest.approx(over_data + 2 * ring_bytes(4 * whole, 32, 31), abs=80)


def test_more_chips_send_hardly_more():
    sent = [exchanges(SHAPES, chips)["all_reduce"].sent for chips in (8, 16, 1024)]
    assert sent == sorted(sent) and sent[-1] < 1.15 * sent[0]


@pytest.mark.parametrize("numbers", [(0, 1), (8, 3), (4, 8)])
def test_wrong_numbers(numbers):
    with pytest.raises(ValueError, match="fsdp must divide chips"):
        exchanges(SHAPES, *numbers)


def test_a_compiled_program_reduces_what_the_formula_says():
    """XLA's program of a small model on eight CPU devices all-reduces exactly the gradients and the loss."""
    script = """
    import json, re
    import jax, jax.numpy as jnp
    from jaxvit.devices.sharding import make_mesh, replicated, split_batch
    mesh = make_mesh(8)
    def step(w, x):
        loss, gradient = jax.value_and_grad(lambda w: jnp.mean(jnp.tanh(x @ w["a"]) @ w["b"]))(w)
        return jax.tree.map(lambda w, g: w - g, w, gradient), loss
    shape = lambda s, where: jax.ShapeDtypeStruct(s, "float32", sharding=where)
    w = {"a": shape((24, 40), replicated(mesh)), "b": shape((40, 3), replicated(mesh))}
    same = jax.tree.map(lambda leaf: leaf.sharding, w)
    text = jax.jit(step, out_shardings=(same, replicated(mesh))).lower(w, shape((16, 24), split_batch(mesh)))
    text = text.compile().as_text()
    sizes = []
    for line in text.splitlines():
        if found := re.search(r"= (.*?) all-reduce(-start)?\\(", line):
            for dims in re.findall(r"f32\\[([0-9,]*)\\]", found[1]):
                sizes.append([int(n) for n in dims.split(",") if n])
    others = len(re.findall(r" (all-gather|reduce-scatter|all-to-all|collective-permute)\\(", text))
    print(json.dumps([sizes, others]))
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    sizes, others = json.loads(done.stdout)
    moved = sum(4 * int(np.prod(size)) for size in sizes)
    assert others == 0 and moved - 4 == exchanges([(24, 40), (40, 3)], 8)["all_reduce"].bytes  # 4: the loss
