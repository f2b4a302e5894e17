"""The devices that a step is compiled for: parses `--topology`, prepares the environment, and makes a mesh of them."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import sys
from dataclasses import dataclass

from jax.sharding import Mesh

from jaxvit.ahead.chips import CHIPS, Chip, gpu_description
from jaxvit.devices.sharding import make_mesh
from jaxvit.errors import UsageError, first_line, nearest

EXAMPLES = "v5e, v5e:4x4, v5p:4x4x4, v6e:4x4, h100x8, h200"

# Without these, libtpu asks the metadata server of a TPU machine, and waits. A user's values are kept.
_TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_MIN_LOG_LEVEL": "3",
    # Compiling needs no chip, so several processes may do it at once.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclass(frozen=True)
class Topology:
    """Chips that are connected, such as 16 of TPU v5e in a 4x4 torus.

    Attributes:
      name: as in `--topology`.
      chip: the kind of chip.
      shape: chips along each axis; (8,) for 8 GPUs.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(self.shape)


def parse_topology(text: str) -> Topology:
    """Parses the value of `--topology`.

    Args:
      text: a chip of `jaxvit.ahead.chips.CHIPS`, such as 'v5e', alone for one chip; with ':' and its axes for several
        TPUs, such as 'v5e:4x4'; with 'x' and their number for several GPUs, such as 'h100x8'.

    Raises:
      UsageError: there is no such chip, or the axes do not fit it.

    Example:
      >>> parse_topology("v5p:4x4x4").chips
      64
    """
    where = f"--topology={text}"
    name, colon, axes = text.partition(":")
    found = re.fullmatch(r"(\w+?)x(\d+)", name)
    if found and found[1] in CHIPS and not colon:
        name, axes = found[1], found[2]
    if name not in CHIPS:
        raise UsageError(f"{where}: no such chip{nearest(name, list(CHIPS))}; write one such as {EXAMPLES}")
    chip = CHIPS[name]
    if not axes and not colon:
        return Topology(text, chip, (1,) * max(chip.dimensions, 1))
    shape = tuple(int(size) for size in axes.split("x")) if re.fullmatch(r"\d+(x\d+)*", axes) else ()
    if len(shape) != max(chip.dimensions, 1) or min(shape) < 1 or bool(colon) != bool(chip.dimensions):
        how = f"{name}:{'x'.join('4' * chip.dimensions)}" if chip.dimensions else f"{name}x8"
        raise UsageError(f"{where}: write the chips of {chip.title} like {how}, or {name} for one")
    return Topology(text, chip, shape)


def prepare_environment() -> None:
    """Sets the environment variables for compiling ahead. Call it before JAX starts its devices.

    This process computes on the CPU alone, whatever devices the machine has.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for name, value in _TPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:  # which has read its environment already
        sys.modules["jax"].config.update("jax_platforms", "cpu")


def refuse_missing_compiler(topology: Topology) -> None:
    """Raises UsageError if the compiler for a topology is not installed."""
    if topology.chip.platform == "tpu":
        there, extra, what = _is_installed("libtpu"), "tpu", "libtpu"
    else:
        there = any(_is_installed(f"jax_plugins.xla_cuda{version}") for version in (12, 13))
        extra, what = "cuda13", "the CUDA wheels of jax"
    if not there:
        raise UsageError(
            f"--topology={topology.name}: compiling for {topology.chip.title} needs {what}, not a device: pip install "
            f"'jaxvit[{extra}]'"
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a package that contains it
        return False


def mesh_of(topology: Topology, fsdp: int = 1) -> Mesh:
    """The mesh that a run on all chips of a topology would have.

    Raises:
      UsageError: the compiler is not installed, or it does not know such a topology.
    """
    from jax.experimental import topologies

    refuse_missing_compiler(topology)
    try:
        if topology.chip.platform == "tpu":
            # One host of a single chip: a host of v5e has at least four otherwise.
            single = {"chips_per_host_bounds": (1, 1, 1)} if topology.chips == 1 else {}
            axes = (*topology.shape, *(1,) * (topology.chip.dimensions - len(topology.shape)))
            description = topologies.get_topology_desc(
                platform="tpu", topology_name=f"{topology.chip.name}:{'x'.join(map(str, axes))}", **single
            )
        else:
            description = topologies.get_topology_desc(
                platform="cuda", target_config=gpu_description(topology.chip), topology=f"1x1x{topology.chips}"
            )
        return make_mesh(topology.chips, fsdp, description.devices)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise UsageError(f"--topology={topology.name}: the compiler refuses it: {first_line(error)[:200]}") from None


# The compiler tries kernels on a device to choose among them, and there is none.
_GPU_OPTIONS: dict[str, bool | str] = {"xla_gpu_autotune_level": "0"}


def compiler_options(topology: Topology) -> dict[str, bool | str]:
    """Options of XLA for compiling without a device."""
    return dict(_GPU_OPTIONS) if topology.chip.platform == "cuda" else {}
