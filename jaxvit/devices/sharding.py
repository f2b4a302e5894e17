"""Devices and where arrays lie on them.

A mesh has two axes. A batch is split over both, `data` and `fsdp`; parameters and optimizer state are split over
`fsdp` and repeated over `data`. XLA inserts the communication. With several processes the mesh spans the devices of all
of them, and each process hands over its own rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


def over_images(mesh: Mesh) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A `jax.vmap` for arrays [B, …] split as a batch is: each device does its own rows, none waits for others.

    All arguments and results have the axis B, which the devices divide.
    """
    rows = split_batch(mesh).spec
    # The check of what varies over the devices refuses loops that begin with a constant, as a user's may.
    return lambda one: jax.shard_map(jax.vmap(one), mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)


def own_rows(mesh: Mesh, batch_size: int) -> slice:
    """Which rows of a batch lie on this process's devices."""
    parts = split_batch(mesh).addressable_devices_indices_map((batch_size,)).values()
    bounds = [rows.indices(batch_size)[:2] for (rows,) in parts]
    return slice(min(start for start, _ in bounds), max(stop for _, stop in bounds))


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Host arrays, the same in every process, onto every device."""
    sharding = replicated(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    # device_put would first compare the arrays of all processes, byte by byte.
    return jax.tree.map(lambda x: jax.make_array_from_callback(np.shape(x), sharding, lambda i: np.asarray(x)[i]), tree)


def place_batch(mesh: Mesh, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """This process's rows of host arrays [B, …] onto its devices."""
    return _place(split_batch(mesh), batch)


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


def shard_together(shardings: Any) -> Any:
    """The shardings of the states of several runs, stacked: the new first axis is not split."""
    return jax.tree.map(lambda s: NamedSharding(s.mesh, PartitionSpec(None, *s.spec)), shardings)


def place_call(mesh: Mesh, call: Mapping[str, Any], axis: int = 1) -> dict[str, jax.Array]:
    """This process's rows of a call's K batches onto its devices, split along B.

    The arrays are [K, B, …] with axis 1; [K, R, B] of R runs that are trained together with axis 2.
    """
    return _place(NamedSharding(mesh, PartitionSpec(*(None,) * axis, ("data", "fsdp"))), call)


def _place(sharding: NamedSharding, arrays: Mapping[str, Any]) -> dict[str, jax.Array]:
    if jax.process_count() == 1:
        return jax.device_put(dict(arrays), sharding)
    return {name: jax.make_array_from_process_local_data(sharding, x) for name, x in arrays.items()}
