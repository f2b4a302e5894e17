"""Devices and where arrays lie on them. Batches are split over the mesh's `data` axis, the state is on every device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(devices: int) -> Mesh:
    """A mesh of the first `devices` devices, with the one axis `data`."""
    return Mesh(np.array(jax.devices()[:devices]), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec("data"))


def place_batch(mesh: Mesh, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Host arrays onto the devices, split along their first axis."""
    return jax.device_put(dict(batch), split_batch(mesh))


def place_call(mesh: Mesh, call: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Host arrays [K, B, …] of a call's K batches onto the devices, split along B.

    With several processes, each gives its own part of B.
    """
    sharding = NamedSharding(mesh, PartitionSpec(None, "data"))
    if jax.process_count() > 1:
        return {name: jax.make_array_from_process_local_data(sharding, values) for name, values in call.items()}
    return jax.device_put(dict(call), sharding)
