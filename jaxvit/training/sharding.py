"""Devices and where arrays lie on them.

A mesh has two axes. A batch is split over both, `data` and `fsdp`; parameters and optimizer state are split over
`fsdp` and repeated over `data`. XLA inserts the communication.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(devices: int, fsdp: int = 1) -> Mesh:
    """A mesh of the first `devices` devices, ``devices // fsdp`` by `fsdp`."""
    grid = np.array(jax.devices()[:devices]).reshape(devices // fsdp, fsdp)
    return Mesh(grid, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """Along the first axis, over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def place_batch(mesh: Mesh, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Host arrays onto the devices, split along their first axis."""
    return jax.device_put(dict(batch), split_batch(mesh))


def shard_state(mesh: Mesh, shapes: Any) -> Any:
    """A sharding for every array of a state, by its shape alone, so that moments lie where their parameters do.

    The largest axis that `fsdp` divides is split (the first of equals); what has none is repeated everywhere.
    """
    parts = mesh.shape["fsdp"]

    def place(leaf: Any) -> NamedSharding:
        fitting = [axis for axis, size in enumerate(leaf.shape) if size % parts == 0]
        if parts == 1 or not fitting:
            return NamedSharding(mesh, PartitionSpec())
        largest = max(fitting, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*(None,) * largest, "fsdp"))

    return jax.tree.map(place, shapes)


def place_call(mesh: Mesh, call: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Host arrays [K, B, …] of a call's K batches onto the devices, split along B.

    With several processes, each gives its own part of B.
    """
    sharding = NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp")))
    if jax.process_count() > 1:
        return {name: jax.make_array_from_process_local_data(sharding, values) for name, values in call.items()}
    return jax.device_put(dict(call), sharding)
