"""Counts of a compiled program: products, bytes, kernels and collectives that follow from its text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvit.ahead.analysis import count, kernels_of, origin_of
from jaxvit.ahead.chips import CHIPS
from jaxvit.ahead.compiling import estimate, short_scope
from jaxvit.ahead.hlo import parse, parse_arrays

# Written by hand in the form of a TPU's program: a loop of three rounds whose body multiplies by one of three matrices,
# sums over four chips, and copies; then an update in place, and a prefetch.
TEXT = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%one_matrix (p.0: bf16[3,16,128], p.1: s32[], p.2: bf16[16,16]) -> bf16[16,128] {
  %p.0 = bf16[3,16,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = s32[]{:T(128)} parameter(1)
  %p.2 = bf16[16,16]{1,0:T(8,128)(2,1)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  %slice = bf16[1,16,128]{2,1,0:T(8,128)(2,1)} dynamic-slice(%p.0, %p.1, %zero, %zero), dynamic_slice_sizes={1,16,128}
  %matrix = bf16[16,128]{1,0:T(8,128)(2,1)} bitcast(%slice)
  ROOT %product = bf16[16,128]{1,0:T(8,128)(2,1)} convolution(%p.2, %matrix), dim_labels=bf_io->bf
}

%body (carry: (s32[], bf16[16,128], bf16[3,16,128], bf16[16,16])) -> (s32[], bf16[16,128], bf16[3,16,128], bf16[16,16]) {
  %carry = (s32[]{:T(128)}, bf16[16,128]{1,0:T(8,128)(2,1)}, /*index=2*/bf16[3,16,128]{2,1,0}, bf16[16,16]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%carry), index=0
  %all = bf16[3,16,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%carry), index=2
  %x = bf16[16,16]{1,0:T(8,128)(2,1)} get-tuple-element(%carry), index=3
  %fusion.1 = bf16[16,128]{1,0:T(8,128)(2,1)} fusion(%all, %i, %x), kind=kOutput, calls=%one_matrix, metadata={op_name="jit(f)/model/jvp(ViT)/block_1/dot_general" stack_frame_id=1}
  %all-reduce.1 = bf16[16,128]{1,0:T(8,128)(2,1)} all-reduce(%fusion.1), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add, metadata={op_name="jit(f)/model/transpose(jvp(ViT))/block_1/add_any"}
  %copy.1 = bf16[16,128]{0,1:T(8,128)(2,1)} copy(%all-reduce.1)
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  ROOT %out = (s32[], bf16[16,128], bf16[3,16,128], bf16[16,16]) tuple(%next, %copy.1, %all, %x)
}

%condition (carry.1: (s32[], bf16[16,128], bf16[3,16,128], bf16[16,16])) -> pred[] {
  %carry.1 = (s32[]{:T(128)}, bf16[16,128], bf16[3,16,128], bf16[16,16]) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%carry.1), index=0
  %three = s32[]{:T(128)} constant(3)
  ROOT %less = pred[]{:T(512)} compare(%j, %three), direction=LT
}

%put (q.0: f32[64,128], q.1: f32[1,128], q.2: s32[]) -> f32[64,128] {
  %q.0 = f32[64,128]{1,0:T(8,128)} parameter(0)
  %q.1 = f32[1,128]{1,0:T(1,128)} parameter(1)
  %q.2 = s32[]{:T(128)} parameter(2)
  %nil = s32[]{:T(128)} constant(0)
  ROOT %update = f32[64,128]{1,0:T(8,128)} dynamic-update-slice(%q.0, %q.1, %q.2, %nil)
}

ENTRY %main (start: (s32[], bf16[16,128], bf16[3,16,128], bf16[16,16]), table: f32[64,128], row: f32[1,128]) -> f32[64,128] {
  %start = (s32[]{:T(128)}, bf16[16,128]{1,0}, bf16[3,16,128]{2,1,0}, bf16[16,16]{1,0}) parameter(0)
  %table = f32[64,128]{1,0:T(8,128)} parameter(1)
  %row = f32[1,128]{1,0:T(1,128)} parameter(2)
  %while.1 = (s32[], bf16[16,128], bf16[3,16,128], bf16[16,16]) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"},"x":1}
  %k = s32[]{:T(128)} get-tuple-element(%while.1), index=0
  %copy-start.1 = (f32[1,128]{1,0:T(1,128)S(1)}, f32[1,128]{1,0:T(1,128)}, u32[]{:S(2)}) copy-start(%row)
  %copy-done.1 = f32[1,128]{1,0:T(1,128)S(1)} copy-done(%copy-start.1)
  ROOT %fusion.2 = f32[64,128]{1,0:T(8,128)} fusion(%table, %copy-done.1, %k), kind=kLoop, calls=%put, metadata={op_name="jit(f)/optimizer/scatter"}
}
"""  # noqa: E501


def test_counts_of_a_program_by_hand():
    kernels = kernels_of(parse(TEXT), fast_memory=True)
    found = count(kernels)
    matrix = 16 * 128 * 2  # bytes
    # A product reads a slice of the matrices, 16x16 numbers in tiles of 8x128, and the index, and writes a matrix.
    product = 2 * matrix + 16 * 128 * 2 + 4
    assert found.flops == 3 * 2 * 16 * 16 * 128
    assert (found.kernels, found.copies) == (3 * 3 + 1, 3)
    assert found.collectives["all_reduce"] == {"count": 3, "bytes": 3 * matrix}
    assert sum(kind["count"] for kind in found.collectives.values()) == 3
    by_name = {kernel.name: kernel for kernel in kernels}
    assert by_name["fusion.1"].bytes == product and by_name["fusion.1"].times == 3
    assert by_name["all-reduce.1"].bytes == 2 * matrix and by_name["all-reduce.1"].group == 4
    assert by_name["copy.1"].bytes == matrix + 128 * 128 * 2  # transposed, its tiles pad 16 to 128
    assert by_name["copy-start.1"].bytes == 512 and not by_name["copy-start.1"].is_kernel
    assert by_name["fusion.2"].bytes == 512 + 4  # the row it writes, and the index; the rest of the table stays
    assert [by_name[name].origin for name in ("fusion.1", "all-reduce.1", "fusion.2")] == [
        "model",
        "backward",
        "optimizer",
    ]


def test_arrays_with_tiles_and_memories():
    plain, tiled, fast, transposed = parse_arrays(
        "(f32[3,5]{1,0}, bf16[3,5]{1,0:T(8,128)(2,1)}, f32[8,128]{1,0:T(8,128)S(1)}, f32[130,4]{0,1:T(4,128)})"
    )
    assert (plain.size, plain.memory, plain.elements) == (60, 0, 15)
    assert (tiled.size, fast.size, fast.memory) == (8 * 128 * 2, 8 * 128 * 4, 1)
    assert transposed.size == 4 * 256 * 4  # its fastest axis is the first
    assert parse_arrays("token[]") == () and parse_arrays("pred[]")[0].size == 1


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1,2,3},{4,5,6,7}}, use_global_device_ids=true", 4),
        ("[2,8]<=[16], use_global_device_ids=true", 8),
        ("mesh['axis_0'=2,'axis_1'=3,'axis_2'=5], device_ids=([2,2]T(1,0)) {'axis_0','axis_2'}, to_apply=%add", 10),
        ("mesh['a'=4] {'a'}", 4),
    ],
)
def test_the_chips_of_a_collective(groups, size):
    text = f"""ENTRY %main (x: f32[8,128]) -> f32[8,128] {{
  %x = f32[8,128]{{1,0}} parameter(0)
  ROOT %sum = f32[8,128]{{1,0}} all-reduce(%x), channel_id=1, replica_groups={groups}
}}
"""
    (kernel,) = kernels_of(parse(text), fast_memory=True)
    assert (kernel.collective, kernel.group, kernel.moved) == ("all-reduce", size, 4096)


def test_a_fused_reduce_scatter_is_one():
    text = """%all-reduce-scatter (input: bf16[1024,512]) -> bf16[512,512] {
  %input = bf16[1024,512]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %sum = bf16[1024,512]{1,0} all-reduce(%input), channel_id=2, replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %part = bf16[512,512]{1,0} dynamic-slice(%sum, %zero, %zero), dynamic_slice_sizes={512,512}
}

ENTRY %main (x: bf16[1024,512]) -> bf16[512,512] {
  %x = bf16[1024,512]{1,0} parameter(0)
  ROOT %fusion = bf16[512,512]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter
}
"""
    found = count(kernels_of(parse(text), fast_memory=True)).collectives
    assert found["reduce_scatter"] == {"count": 1, "bytes": 1024 * 512 * 2} and found["all_reduce"]["count"] == 0


def test_a_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="no entry"):
        parse("HloModule nothing\n")


CONVOLUTIONS = {
    "patches": dict(lhs=(2, 8, 8, 3), rhs=(4, 4, 3, 6), window_strides=(4, 4), padding="VALID"),
    "padded": dict(lhs=(2, 7, 5, 3), rhs=(3, 3, 3, 6), window_strides=(2, 1), padding=((1, 1), (2, 0))),
    "stretched": dict(
        lhs=(2, 4, 4, 3), rhs=(3, 3, 3, 6), window_strides=(1, 1), padding=((1, 2), (1, 2)), lhs_dilation=(2, 2)
    ),
    "spread": dict(lhs=(2, 9, 9, 3), rhs=(3, 3, 3, 6), window_strides=(1, 1), padding="SAME", rhs_dilation=(2, 2)),
    "grouped": dict(lhs=(2, 6, 6, 4), rhs=(3, 3, 1, 8), window_strides=(1, 1), padding="SAME", feature_group_count=4),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_count_as_xla_counts_them(name):
    """XLA's own count of the same program is the reference; it leaves products with padding out too."""
    settings = dict(CONVOLUTIONS[name])
    lhs, rhs = (jnp.ones(settings.pop(side)) for side in ("lhs", "rhs"))
    settings["dimension_numbers"] = ("NHWC", "HWIO", "NHWC")
    lowered = jax.jit(lambda x, w: jax.lax.conv_general_dilated(x, w, **settings)).lower(lhs, rhs)
    found = count(kernels_of(parse(lowered.as_text("hlo")), fast_memory=False))
    assert found.flops == lowered.cost_analysis()["flops"] > 0


def test_products_count_as_xla_counts_them():
    x, w = jnp.ones((4, 5, 6)), jnp.ones((4, 6, 7))
    lowered = jax.jit(lambda x, w: jnp.einsum("bij,bjk->bik", x, w)).lower(x, w)
    found = count(kernels_of(parse(lowered.as_text("hlo")), fast_memory=False))
    assert found.flops == lowered.cost_analysis()["flops"] == 2 * 4 * 5 * 6 * 7


def test_a_loop_counts_as_often_as_it_runs():
    """A scan of a compiled program on this machine, against the products of its rounds."""
    w = jnp.ones((16, 16))
    run = jax.jit(lambda x: jax.lax.scan(lambda x, _: (jnp.sin(x @ w), None), x, None, length=7)[0])
    text = run.lower(jnp.ones((16, 16))).compile().as_text()
    assert count(kernels_of(parse(text), fast_memory=False)).flops == 7 * 2 * 16**3


def test_scopes():
    assert origin_of("jit(train_program)/augment/sub") == "augment"
    assert origin_of("jit(train_program)/model/jvp(CCT)/embed/dot_general") == "model"
    assert origin_of("jit(train_program)/jit(_take)/gather") == "other"
    scope = "jit(train_program)/model/transpose(jvp(ViT))/encoder/block_3/mlp/jit(gelu)/mul"
    assert short_scope(scope) == "model/ViT/encoder/block_*/mlp/mul"


def test_an_estimate_is_the_roofline():
    kernels, chip = kernels_of(parse(TEXT), fast_memory=True), CHIPS["v5e"]
    found = estimate(kernels, chip)
    counts = count(kernels)
    assert found["compute_ms"] == pytest.approx(1e3 * counts.flops / 197e12, abs=1e-4)
    assert found["memory_ms"] == pytest.approx(1e3 * counts.bytes / 819e9, abs=1e-4)
    moved = counts.collectives["all_reduce"]["bytes"]
    assert found["interconnect_ms"] == pytest.approx(1e3 * 2 * (3 / 4) * moved / 200e9, abs=1e-4)
    assert found["together_ms"] >= max(found["memory_ms"], found["compute_ms"]) and np.isfinite(found["together_ms"])
