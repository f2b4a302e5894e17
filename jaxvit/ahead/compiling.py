"""Compiles the training step of a run for chips that are not here, and describes the compiled program."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.stages import Compiled
from ml_collections import ConfigDict

from jaxvit.ahead.analysis import COLLECTIVES, Kernel, count, kernels_of
from jaxvit.ahead.chips import Chip
from jaxvit.ahead.hlo import parse
from jaxvit.ahead.topology import Topology, compiler_options, mesh_of
from jaxvit.devices import hardware
from jaxvit.devices.sharding import shard_state
from jaxvit.errors import RunFailedError, first_line
from jaxvit.files import write_text
from jaxvit.layers.stack import plainly
from jaxvit.models.count import count_macs, count_params
from jaxvit.run.program import jit_train_step, make_feed
from jaxvit.speed.models import PACKAGES, circumstances
from jaxvit.speed.subject import Subject, make_subject


def compile_ahead(
    config: ConfigDict,
    topology: Topology,
    *,
    overrides: Iterable[str] = (),
    synthetic: bool = False,
    origin: str = "config",
    dump: Path | None = None,
) -> dict[str, Any]:
    """Compiles the step that `jaxvit train` would run on all chips of a topology.

    Nothing runs there: the state, the data and the batch are shapes.

    Args:
      config: config of a run, modified in place.
      topology: the chips.
      overrides: config keys set on the command line.
      synthetic, origin: see `jaxvit.speed.subject.make_subject`.
      dump: folder that gets the program before and after optimization, as text; None = keep nothing.

    Returns:
      See `describe`.

    Raises:
      UsageError: `jaxvit train` would refuse the config; the compiler for the topology is not installed or refuses it.
      RunFailedError: the compiler fails for another reason than memory.
    """
    subject = make_subject(
        config,
        overrides=overrides,
        synthetic=synthetic,
        origin=origin,
        devices_elsewhere=topology.chips,
        platform="tpu" if topology.chip.platform == "tpu" else "gpu",
    )
    plan, assembly = subject.plan, subject.assembly
    mesh = mesh_of(topology, plan.train.fsdp)
    layout = shard_state(mesh, assembly.abstract_state)
    state = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), assembly.abstract_state, layout
    )
    steps = plan.train.steps_per_call
    feed = make_feed(plan, assembly, subject.dataset.read(plan.data.train), mesh, steps, ahead=True)
    began, cpu = time.perf_counter(), time.process_time()
    lowered = jit_train_step(assembly, feed, state, mesh, steps).lower(state, feed, feed(0, steps))
    traced = time.perf_counter()
    compiled, refusal = None, ""
    # A program that was compiled before would take no time; the caller's cache stays as it is.
    cache: bool = getattr(jax.config, "jax_enable_compilation_cache")  # noqa: B009
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        compiled = lowered.compile(compiler_options=compiler_options(topology))
    except jax.errors.JaxRuntimeError as error:
        if not hardware.is_out_of_memory(error):
            raise RunFailedError(f"the compiler fails: {first_line(error)[:300]}") from error
        refusal = first_line(error)
    finally:
        jax.config.update("jax_enable_compilation_cache", cache)
    seconds = {
        "compile_s": round(time.perf_counter() - began, 2),
        "trace_s": round(traced - began, 2),
        "compile_cpu_s": round(time.process_time() - cpu, 2),
    }
    if dump:
        write_text(dump / "lowered.mlir", lowered.as_text())
        if compiled:
            write_text(dump / "compiled.hlo", compiled.as_text() or "")
    return describe(subject, topology, compiled, refusal) | seconds | circumstances(*PACKAGES)


def describe(subject: Subject, topology: Topology, compiled: Compiled | None, refusal: str = "") -> dict[str, Any]:
    """Describes a compiled step. All numbers are of one chip and one step.

    Args:
      subject: the run.
      topology: the chips that the step is compiled for.
      compiled: the program; None = the compiler found no way to fit it into memory.
      refusal: what the compiler then said.

    Returns:
      model, topology, chips, batch, fsdp, dtype: what was compiled; batch is that of all chips.
      fits: whether arguments, temporaries and results fit into a chip's memory.
      memory: bytes of arguments (state, data), temporaries, results that reuse no argument, peak, and the limit.
      flops: operations of the products in the compiled program; a multiply-add is two. flops_counted: those of the
        model's multiply-adds, three times for training. flops_of_compiler: XLA's own count, which includes other
        arithmetic and counts loops once; 0 where XLA gives none.
      bytes: read from and written to the chip's memory. bytes_of_compiler: XLA's own count.
      collectives: {kind: {'count', 'bytes'}} of the whole arrays; collectives_of: [{kind, origin, scope, count,
        bytes}], the largest first.
      kernels, copies: operations of the device, and those of them that only move an array.
      parts: {origin: {'kernels', 'copies', 'flops', 'bytes'}}.
      estimate_ms: an estimate, not a measurement: the sum over kernels of the longer of arithmetic and memory access
        at the chip's published rates, or the interconnect's time if that is longer. estimate: its three parts alone.
    """
    plan, chip = subject.plan, topology.chip
    t = plan.train
    macs = count_macs(plainly(subject.assembly.model), plan.input_shape)["all"]
    found: dict[str, Any] = {
        "model": plan.model.name,
        "topology": topology.name,
        "chips": topology.chips,
        "batch": t.batch_size,
        "fsdp": t.fsdp,
        "dtype": subject.dtype,
        "params": count_params(subject.assembly.abstract_state.variables),
        "steps_per_call": t.steps_per_call,
        "feed": t.feed,
        "attributes": {k: v for k, v in plan.model.attributes if k in ("scan", "remat")},
        "data": plan.data.name,
        "flops_counted": 6 * macs * t.batch_size // topology.chips,
    }
    if compiled is None:
        needed = re.search(r"(?:\(|Used )([\d.]+)([KMGT])", refusal)
        peak = int(float(needed[1]) * 2 ** {"K": 10, "M": 20, "G": 30, "T": 40}[needed[2]]) if needed else 0
        memory = {"arguments": None, "temporaries": peak or None, "peak": peak or None, "limit": chip.memory}
        unknown = dict.fromkeys(("flops", "bytes", "collectives", "kernels", "copies", "estimate_ms"))
        return found | {"fits": False, "memory": memory, **unknown, "refusal": refusal}
    kernels = kernels_of(parse(compiled.as_text() or ""), fast_memory=chip.platform == "tpu")
    counts, memory = count(kernels), _memory(compiled, chip)
    costs = compiled.cost_analysis() or {}
    origins = sorted({kernel.origin for kernel in kernels})
    parts = {origin: count([k for k in kernels if k.origin == origin]) for origin in origins}
    times = estimate(kernels, chip)
    return found | {
        "fits": memory["peak"] <= chip.memory,
        "memory": memory,
        "flops": counts.flops,
        "flops_of_compiler": int(costs.get("flops", 0)),
        "bytes": counts.bytes,
        "bytes_of_compiler": int(costs.get("bytes accessed", 0)),
        "collectives": counts.collectives,
        "collectives_of": _by_scope(kernels),
        "kernels": counts.kernels,
        "copies": counts.copies,
        "parts": {
            origin: {"kernels": part.kernels, "copies": part.copies, "flops": part.flops, "bytes": part.bytes}
            for origin, part in parts.items()
        },
        "estimate_ms": times["together_ms"],
        "estimate": times,
    }


def _memory(compiled: Compiled, chip: Chip) -> dict[str, int]:
    sizes: Any = compiled.memory_analysis()
    results = sizes.output_size_in_bytes - sizes.alias_size_in_bytes  # a donated state counts once
    code = sizes.generated_code_size_in_bytes
    return {
        "arguments": sizes.argument_size_in_bytes,
        "temporaries": sizes.temp_size_in_bytes,
        "results": results,
        "peak": sizes.argument_size_in_bytes + sizes.temp_size_in_bytes + results + code,
        "limit": chip.memory,
    }


def estimate(kernels: Sequence[Kernel], chip: Chip) -> dict[str, float]:
    """Estimates the time of a step by the roofline model (Williams et al. 2009), in milliseconds.

    Args:
      kernels: operations of one step on one chip.
      chip: the chip, with its published rates.

    Returns:
      compute_ms, memory_ms, interconnect_ms: the time of each if nothing else took any; a collective of n chips in a
      ring sends (n - 1) / n of the array, an all-reduce twice that. together_ms: each kernel takes the longer of its
      arithmetic and its memory access, and collectives overlap with all others. A real step takes longer: no kernel
      reaches these rates, and starting a kernel takes time too.
    """
    compute = memory = both = link = 0.0
    for kernel in kernels:
        arithmetic = sum(
            n / chip.flops["bfloat16" if d in ("bf16", "f16") else "float32"] for d, n in kernel.flops.items()
        )
        access = kernel.bytes / chip.bandwidth
        compute, memory = compute + kernel.times * arithmetic, memory + kernel.times * access
        both += kernel.times * max(arithmetic, access)
        if kernel.collective and kernel.group > 1:
            share = 1.0 if kernel.collective == "collective-permute" else (kernel.group - 1) / kernel.group
            twice = 2 if kernel.collective == "all-reduce" else 1
            link += kernel.times * twice * share * kernel.moved / chip.link
    seconds = {"compute": compute, "memory": memory, "interconnect": link, "together": max(both, link)}
    return {f"{name}_ms": round(1e3 * value, 4) for name, value in seconds.items()}


def _by_scope(kernels: Sequence[Kernel], most: int = 40) -> list[dict[str, Any]]:
    """Collectives by kind and scope, the largest first, at most `most` lines."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for k in kernels:
        if k.collective in COLLECTIVES:
            line = found.setdefault(
                (k.collective, k.origin, short_scope(k.scope)),
                {"kind": k.collective, "origin": k.origin, "scope": short_scope(k.scope), "count": 0, "bytes": 0},
            )
            line["count"] += k.times
            line["bytes"] += k.times * k.moved
    return sorted(found.values(), key=lambda line: -line["bytes"])[:most]


def short_scope(scope: str) -> str:
    """A scope without the wrappers that JAX adds, and with blocks of one kind as one.

    Example:
      >>> short_scope("jit(train_program)/model/transpose(jvp(ViT))/encoder/block_3/mlp/dense_0/dot_general")
      'model/ViT/encoder/block_*/mlp/dense_0/dot_general'
    """
    while True:
        plain = re.sub(r"\b(jvp|transpose|vmap|checkpoint|rematted_computation)\(([^()]*)\)", r"\2", scope)
        if plain == scope:
            break
        scope = plain
    parts = [part for part in re.sub(r"jit\([^()]*\)", "", scope).split("/") if part]
    return re.sub(r"\b(block|layers|stages|merges)_\d+", r"\1_*", "/".join(parts))
