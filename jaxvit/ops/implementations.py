"""Chooses among the implementations of an operation. All implementations of one operation compute the same function.

| operation | plain | alternative | fastest on |
|---|---|---|---|
| `attention` | `plain`: projects queries, keys and values | `absorbed`: multiplies the key and value kernels into the query and output kernels, where heads are at least as wide as the tokens | CPU |
| | | `fused`: one kernel, which never stores the attention weights, for shapes and dtypes that it takes: cuDNN's on GPUs, `jaxvit.ops.short_attention` on TPUs | GPU, TPU |
| `norm` | `plain`: the backward pass uses stored float32 values | `remat`: it computes them again from a 16-bit input | GPU, TPU |
| `max_pool` | `window`: XLA's reduce-window, whose gradient is select-and-scatter | `slices`: compares strided slices | CPU |
| `gelu` | `erfc`: as `jax.nn.gelu` | `erf`: one polynomial, and keeps only the input for the gradient; `rational`: the same without XLA's erf, for export | all |
| `noise` | `threefry`: jax's default generator | `hash`: hashes each element's index, fused with the operation that uses the noise | all |

Without noise, all implementations agree up to rounding. `hash` draws different, equally distributed noise. So does
`absorbed` with attention dropout, because it lays out the attention weights differently. docs/performance.md has the
measurements.
"""  # noqa: E501

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import jax
from jax.sharding import NamedSharding

T = TypeVar("T")

IMPLEMENTATIONS = {
    "attention": ("plain", "absorbed", "fused"),
    "max_pool": ("window", "slices"),
    "gelu": ("erfc", "erf", "rational"),
    "noise": ("threefry", "hash"),
    "norm": ("plain", "remat"),
}
PLAIN = {operation: names[0] for operation, names in IMPLEMENTATIONS.items()}
_FAST_ELSEWHERE = {**PLAIN, "gelu": "erf", "noise": "hash"}
_ACCELERATOR = {**_FAST_ELSEWHERE, "attention": "fused", "norm": "remat"}
_FAST = {
    "cpu": {**_FAST_ELSEWHERE, "attention": "absorbed", "max_pool": "slices"},
    "gpu": _ACCELERATOR,
    "tpu": _ACCELERATOR,
}

# ((operation, implementation), …). A user context is part of jax's trace cache key, so a changed choice retraces.
_chosen = jax.make_user_context(())
_platform = jax.make_user_context("")
_batch = jax.make_user_context(None)


@contextlib.contextmanager
def traced_for(platform: str, batch: NamedSharding | None = None) -> Iterator[None]:
    """Sets the platform that the program traced inside the `with` block will run on.

    It decides which implementation is the fastest one. A program that is compiled ahead for another machine must not
    depend on the machine that compiles it.

    Args:
      platform: 'cpu', 'gpu', 'tpu', as `jax.Device.platform` has it; 'cuda' and 'rocm' mean 'gpu'. '' = leave it as it
        is, at first jax's default backend. `jaxvit.devices.sharding.platform_of` reads it from a mesh.
      batch: how the first axis of a batch is split over devices. XLA cannot split a Pallas kernel, so
        `on_own_rows` does. None = not known: such kernels are then used on a single device only.

    Example:
      >>> with traced_for("tpu"):
      ...     implementation("max_pool")
      'window'
    """
    if not platform:
        yield
        return
    with _platform("gpu" if platform in ("cuda", "rocm") else platform), _batch(batch):
        yield


def can_call_kernels() -> bool:
    """Whether a Pallas kernel can be called here: with one device, or where the batch's split is known."""
    return _batch.value is not None or jax.device_count() == 1


def on_own_rows(function: Callable[..., T]) -> Callable[..., T]:
    """Returns the function such that each device calls it for its own rows of a batch.

    Arguments and results have a first axis B.
    """
    batch: NamedSharding | None = _batch.value
    if batch is None or batch.mesh.size == 1:
        return function
    return jax.shard_map(function, mesh=batch.mesh, in_specs=batch.spec, out_specs=batch.spec, check_vma=False)


def platform_traced_for() -> str:
    """The platform that the current program is traced for; outside `traced_for`, jax's default backend."""
    return _platform.value or jax.default_backend()


@contextlib.contextmanager
def use(implementations: str | Mapping[str, str]) -> Iterator[None]:
    """Sets the implementations used inside the `with` block; the innermost block wins.

    The choice is read at trace time: jax retraces a jitted function that is called under a different choice.

    Args:
      implementations: 'fast' = the fastest known on the platform of
        `traced_for`, by default jax's default backend (the default); 'plain'; or
        {operation: implementation}, which leaves the other operations as they are.

    Raises:
      ValueError: unknown operation or implementation.

    Example:
      >>> with use({"gelu": "erfc"}):
      ...     implementation("gelu")
      'erfc'
    """
    if isinstance(implementations, str):
        if implementations not in ("fast", "plain"):
            raise ValueError(f"implementations={implementations!r} is neither 'fast' nor 'plain'")
        chosen = PLAIN if implementations == "plain" else {}  # an operation without a choice uses the fastest
    else:
        for operation, name in implementations.items():
            if name not in IMPLEMENTATIONS.get(operation, ()):
                raise ValueError(f"{operation!r} has no implementation {name!r}; there are {IMPLEMENTATIONS}")
        chosen = {**dict(_chosen.value), **implementations}
    with _chosen(tuple(sorted(chosen.items()))):
        yield


def implementation(operation: str) -> str:
    """The name of the implementation that `operation` uses here."""
    chosen = dict(_chosen.value).get(operation)
    return chosen or _FAST.get(platform_traced_for(), _FAST_ELSEWHERE)[operation]
