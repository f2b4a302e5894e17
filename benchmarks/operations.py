"""Measures the implementations of each operation: the basis of the choices in `jaxvit.ops.implementations`.

    python benchmarks/operations.py [NAME …]

Names: dropout, gelu, max_pool, attention, convolution; none = all. Shapes are those of the documents' models at their
batch sizes. All implementations are compiled first, then timed in turns; results are medians of nine. Do not use the
machine meanwhile. XLA and allocator settings are jaxvit's (`JAXVIT_HUGE_PAGES=0` and `XLA_FLAGS` change them).
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from jaxvit.devices.runtime import choose_cpu_libraries, take_huge_pages

if __name__ == "__main__":
    take_huge_pages(sys.orig_argv[1:])
    choose_cpu_libraries()

import jax
import jax.numpy as jnp

from jaxvit.layers import Attention
from jaxvit.ops import dropout, implementations, max_pool
from jaxvit.ops.activations import gelu

TURNS = 9
KEY = jax.random.key(0)

Cases = dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]  # implementation -> function and its arguments


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def both(function: Callable[..., Any]) -> Callable[..., Any]:
    """Forward and backward pass: (gradient, *arguments) -> (value, gradients of the arguments)."""

    def run(gradient: Any, *arguments: Any) -> Any:
        value, pull = jax.vjp(function, *arguments)
        return value, pull(gradient)

    return run


def by(chosen: dict[str, str], function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        with implementations.use(chosen):
            return function(*arguments)

    return run


def measure(title: str, cases: Cases) -> None:
    """Prints a line for each case: forward, forward and backward, in milliseconds."""
    programs = {}
    for name, (function, arguments) in cases.items():
        gradient = jnp.ones_like(function(*arguments))
        programs[name, 0] = (jax.jit(function), arguments)
        programs[name, 1] = (jax.jit(both(function)), (gradient, *arguments))
    times: dict[Any, list[float]] = {name: [] for name in programs}
    for turn in range(TURNS + 1):
        for name, (program, arguments) in programs.items():
            began = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            if turn:  # the first one compiles
                times[name].append(1e3 * (time.perf_counter() - began))
    print(f"\n{title}\n{'':<34}{'forward':>10}{'+ backward':>12}  ms")
    for name in cases:
        forward, whole = (statistics.median(times[name, i]) for i in (0, 1))
        print(f"  {name:<32}{forward:>10.2f}{whole:>12.2f}", flush=True)


def dropouts() -> None:
    x = normal(1, 256, 64, 512)
    cases: Cases = {"multiplication only": (lambda x: x * 1.1, (x,))}
    for name in implementations.IMPLEMENTATIONS["noise"]:
        cases[name] = (by({"noise": name}, lambda x: dropout(x, 0.1, KEY)), (x,))
    measure(f"dropout of {x.size / 1e6:.1f} M elements", cases)


def gelus() -> None:
    x = normal(2, 256, 64, 512)
    measure(
        f"GELU of {x.size / 1e6:.1f} M elements",
        {
            "erfc (jax.nn.gelu)": (lambda x: jax.nn.gelu(x, approximate=False), (x,)),
            "erf (jaxvit)": (gelu, (x,)),
            "tanh": (lambda x: jax.nn.gelu(x, approximate=True), (x,)),
        },
    )


def max_pools() -> None:
    for shape in ((128, 32, 32, 64), (128, 16, 16, 128)):
        x = jax.nn.relu(normal(3, *shape))
        cases = {
            name: (by({"max_pool": name}, lambda x: max_pool(x, padding="SAME")), (x,))
            for name in implementations.IMPLEMENTATIONS["max_pool"]
        }
        measure(f"3x3 max-pooling of {shape}", cases)


def attentions() -> None:
    for batch, tokens, channels, heads, head_dim in (
        (256, 64, 128, 4, 128),
        (128, 64, 128, 2, 128),
        (256, 144, 64, 4, 64),
    ):
        x = normal(4, batch, tokens, channels)
        layer = Attention(heads=heads, head_dim=head_dim, dropout=0.1)
        variables = layer.init(KEY, x, train=False)
        cases = {}
        for name in implementations.IMPLEMENTATIONS["attention"]:

            def run(variables: Any, x: jax.Array, layer: Attention = layer) -> jax.Array:
                return layer.apply(variables, x, train=True, rngs={"dropout": KEY})

            cases[name] = (by({"attention": name}, run), (variables, x))
        measure(f"attention, {heads} heads of {head_dim} on ({batch}, {tokens}, {channels})", cases)


def convolutions() -> None:
    """XLA's convolution against im2col, a matrix product of extracted windows."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    for shape, channels in (((128, 32, 32, 3), 64), ((128, 16, 16, 64), 128)):
        x, kernel = normal(5, *shape), normal(6, 3, 3, shape[-1], channels)
        side = shape[1] - 2

        def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=dimensions)

        def windows(x: jax.Array, kernel: jax.Array, side: int = side) -> jax.Array:
            cut = [x[:, i : i + side, j : j + side] for i in range(3) for j in range(3)]
            return jnp.concatenate(cut, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])

        measure(
            f"3x3 convolution of {shape} to {channels} channels",
            {"XLA's": (plain, (x, kernel)), "windows as a matrix": (windows, (x, kernel))},
        )


ALL = {
    "dropout": dropouts,
    "gelu": gelus,
    "max_pool": max_pools,
    "attention": attentions,
    "convolution": convolutions,
}


def main() -> None:
    names = sys.argv[1:] or list(ALL)
    unknown = [name for name in names if name not in ALL]
    if unknown:
        sys.exit(f"there is no {unknown[0]!r}; names: {', '.join(ALL)}")
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {len(os.sched_getaffinity(0))} cores")
    for name in names:
        ALL[name]()


if __name__ == "__main__":
    main()
