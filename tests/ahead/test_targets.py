"""A program is traced for the chips that run it, not for those that compile it; compiling for a TPU without one."""

import importlib.util
import json
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from tiny import family_config

from jaxvit.ahead.chips import CHIPS, gpu_description
from jaxvit.ahead.topology import compiler_options, parse_topology, refuse_missing_compiler
from jaxvit.cli.compile import main
from jaxvit.config.plan import resolve
from jaxvit.errors import UsageError
from jaxvit.ops import implementations
from jaxvit.run.assembly import assemble

PROMISED = {
    *("model", "topology", "chips", "batch", "fsdp", "memory", "flops", "bytes", "collectives", "kernels", "copies"),
    *("compile_s", "estimate_ms"),
}
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


@pytest.mark.parametrize(
    ("text", "chips", "platform"),
    [("v5e", 1, "tpu"), ("v5e:4x4", 16, "tpu"), ("v5p:2x2x1", 4, "tpu"), ("h100x8", 8, "cuda"), ("h200", 1, "cuda")],
)
def test_topologies(text, chips, platform):
    topology = parse_topology(text)
    assert (topology.chips, topology.chip.platform, topology.name) == (chips, platform, text)
    assert bool(compiler_options(topology)) == (platform == "cuda")


@pytest.mark.parametrize(
    "text", ["v9", "v5e:4", "v5p:4x4", "v5ex4", "h100:8", "h100x", "v5e:", "v5e:0x4", "h200x0", ""]
)
def test_topologies_that_there_are_not(text):
    with pytest.raises(UsageError, match=r"^--topology="):
        parse_topology(text)


def test_a_missing_compiler_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for text, extra in (("v5e", "tpu"), ("h100", "cuda13")):
        with pytest.raises(UsageError, match=rf"pip install 'jaxvit\[{extra}\]'"):
            refuse_missing_compiler(parse_topology(text))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--topology=v5e"], "--model=NAME or --config=NAME"),
        (["--model=vit", "--config=digits", "--topology=v5e"], "--model=NAME or --config=NAME"),
        (["--model=vit"], "--topology is missing"),
        (["--model=vit", "--topology=v5e", "--fsdp=0"], "--fsdp=0: must be 1 or more"),
    ],
)
def test_mistakes_of_the_command(words, says):
    with pytest.raises(UsageError, match=says):
        main(words)


def test_numbers_of_the_chips_are_whole():
    for chip in CHIPS.values():
        assert chip.memory > 10**10 and chip.bandwidth > 5e11 and chip.link > 1e11, chip.name
        assert set(chip.flops) == {"bfloat16", "float32"} and chip.flops["bfloat16"] >= chip.flops["float32"] > 1e14
    text = gpu_description(CHIPS["h200"])
    assert "memory_bandwidth: 4800000000000 " in text and text.count("{") == text.count("}") == 3


def lowered(platform):
    """The step of a small CCT with dropout, as it is traced for a platform, lowered for it; nothing of it is here."""
    assembly = assemble(resolve(family_config("cct", {"dropout": 0.1})))
    batch = {
        "image": jax.ShapeDtypeStruct((4, 8, 8, 1), jnp.uint8),
        "label": jax.ShapeDtypeStruct((4,), jnp.int32),
        "mask": jax.ShapeDtypeStruct((4,), jnp.float32),
    }
    with implementations.traced_for(platform), jax.numpy_dtype_promotion("standard"):
        traced = jax.jit(partial(assembly.train_step, key=jax.random.key(0))).trace(assembly.abstract_state, batch)
        return traced.lower(lowering_platforms=("cuda" if platform == "gpu" else platform,)).as_text()


def test_the_step_is_that_of_the_target_and_not_of_the_host():
    texts = {platform: lowered(platform) for platform in ("cpu", "tpu", "gpu")}
    # Pooling on accelerators is a window, whose gradient is a scatter; on this host it is slices.
    for platform, text in texts.items():
        assert ("select_and_scatter" in text) == (platform != "cpu"), platform
        assert ("reduce_window" in text) == (platform != "cpu"), platform
    assert texts["tpu"] == lowered("tpu") != texts["cpu"]
    for accelerator in ("tpu", "cuda"):
        with implementations.traced_for(accelerator):
            assert implementations.implementation("attention") == "fused"
    assert implementations.implementation("attention") == "absorbed"  # tests run on a CPU


def compiled(*words):
    done = subprocess.run(
        [sys.executable, "-m", "jaxvit", "compile", *words, "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "JAXVIT_HUGE_PAGES": "0"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@needs_libtpu
def test_a_step_for_four_tpus_says_what_it_does(tmp_path):
    small = ["--config.model.dim=128", "--config.model.depth=1", "--config.model.heads=2", "--config.model.patch=8"]
    mixing = ["--config.augment.mixup=0.8"]
    found = compiled("--model=vit", "--topology=v5e:2x2", "--batch=32", *small, *mixing, f"--dump={tmp_path}")
    assert set(found) >= PROMISED and set(found["memory"]) >= {"arguments", "temporaries", "limit"}
    assert set(found["collectives"]) == {
        *("all_gather", "all_reduce", "reduce_scatter", "all_to_all", "collective_permute"),
    }
    assert (found["model"], found["topology"], found["chips"], found["batch"], found["fsdp"]) == (
        *("vit", "v5e:2x2", 4, 32, 1),
    )
    assert found["fits"] and found["flops"] == pytest.approx(found["flops_counted"], rel=0.25)
    # Gradients are all that is summed, in few pieces; mixing sends nothing.
    moved = found["collectives"]
    assert 4 * found["params"] <= moved["all_reduce"]["bytes"] < 4.5 * found["params"]
    assert moved["all_reduce"]["count"] <= 4 and moved["all_gather"]["bytes"] < 4096
    assert "select-and-scatter" not in (tmp_path / "compiled.hlo").read_text()

    split = compiled("--model=vit", "--topology=v5e:2x2", "--batch=32", "--fsdp=4", *small)
    moved = split["collectives"]
    assert 0 < moved["all_gather"]["bytes"] <= 2.2 * 4 * split["params"], split["collectives_of"]
    assert moved["reduce_scatter"]["bytes"] > 3 * split["params"] > moved["all_reduce"]["bytes"], moved
    assert split["memory"]["arguments"] < found["memory"]["arguments"]
