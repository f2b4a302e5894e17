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
