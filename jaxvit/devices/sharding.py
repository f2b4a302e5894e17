"""Meshes of devices, and shardings of arrays.

A mesh has two axes, `data` and `fsdp`. A batch is split over both. Parameters and optimizer state are split over `fsdp`
and replicated over `data`. XLA inserts the communication. With several processes, the mesh spans the devices of all of
them, and each process provides its own rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey
from jax.typing import ArrayLike, DTypeLike

PyTree = Any  # a tree of arrays or shardings, which Python's types cannot describe


def make_mesh(devices: int, fsdp: int = 1, of: Sequence[jax.Device] = ()) -> Mesh:
    """Makes a mesh of the first `devices` devices, with shape (devices // fsdp, fsdp).

    `of` are the devices to choose from, which need not be here if nothing runs on them; () = all of this run.
    """
    grid = np.array((of or jax.devices())[:devices]).reshape(devices // fsdp, fsdp)
    return Mesh(grid, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def platform_of(mesh: Mesh) -> str:
    """The platform of a mesh's devices: 'cpu', 'gpu' or 'tpu'.

    The devices may be those of another machine, which a program is compiled for: then it is not the platform of
    `jax.default_backend()`.
    """
    platform = mesh.devices.flat[0].platform
    return "gpu" if platform in ("cuda", "rocm") else platform


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds in full."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose first axis is split over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def over_images(mesh: Mesh) -> Callable[[Callable[..., PyTree]], Callable[..., PyTree]]:
    """Returns a `jax.vmap` for batches that are split over devices: each device maps its own rows, without
    communication.

    All arguments and results have a first axis B, which the number of devices divides.
    """
    rows = split_batch(mesh).spec
    # check_vma would refuse loops whose initial value is a constant, which the user's function may have.
    return lambda one: jax.shard_map(jax.vmap(one), mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)


def on_own_rows(mesh: Mesh) -> Callable[[Callable[..., PyTree]], Callable[..., PyTree]]:
    """Returns a function that makes a function of a batch run on each device's own rows, without communication.

    All arguments and results have a first axis B, which the number of devices divides. On one device, the function sees
    the whole batch.
    """
    rows = split_batch(mesh).spec
    return lambda some: jax.shard_map(some, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)


def own_rows(mesh: Mesh, batch_size: int) -> slice:
    """The rows of a batch that belong to this process's devices."""
    parts = split_batch(mesh).addressable_devices_indices_map((batch_size,)).values()
    bounds = [rows.indices(batch_size)[:2] for (rows,) in parts]
    return slice(min(start for start, _ in bounds), max(stop for _, stop in bounds))


def replicate(mesh: Mesh, tree: PyTree) -> PyTree:
    """Copies host arrays to every device. They must be equal in all processes."""
    sharding = replicated(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    # device_put would first compare the arrays of all processes.
    return jax.tree.map(lambda x: jax.make_array_from_callback(np.shape(x), sharding, lambda i: np.asarray(x)[i]), tree)


def place_batch(mesh: Mesh, batch: Mapping[str, ArrayLike]) -> dict[str, jax.Array]:
    """Copies this process's rows of a batch, host arrays (B, …), to its devices."""
    return _place(split_batch(mesh), batch)


def shard_state(mesh: Mesh | AbstractMesh, shapes: PyTree) -> PyTree:
    """Returns a sharding for every array of a state.

    It depends on the shape alone, so the optimizer's moments get the sharding of their parameters. The largest axis
    that the size of `fsdp` divides is split, the first of several. An array without such an axis is replicated.
    """
    parts = mesh.shape["fsdp"]

    def place(leaf: jax.Array | jax.ShapeDtypeStruct) -> NamedSharding:
        fitting = [axis for axis, size in enumerate(leaf.shape) if size % parts == 0]
        if parts == 1 or not fitting:
            return NamedSharding(mesh, PartitionSpec())
        largest = max(fitting, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*(None,) * largest, "fsdp"))

    return jax.tree.map(place, shapes)


def gather_where_used(mesh: Mesh, dtype_of: Callable[[tuple[str, ...]], DTypeLike]) -> Callable[[PyTree], PyTree]:
    """Returns a function that gathers parameters, which `shard_state` has split, for the computation with them.

    Without it, XLA decides where to communicate. Gradients go the other way: summed over devices, each keeps its part
    of the sum. A device holds the gathered parameters, in the dtype of the computation, until the end of the backward
    pass.

    Args:
      mesh: mesh of the run.
      dtype_of: the dtype that the computation converts a parameter to, by its path in the tree; it is gathered in that
        dtype.
    """

    def gather(path: tuple[DictKey, ...], leaf: jax.Array) -> jax.Array:
        own: NamedSharding = shard_state(mesh, leaf)
        if not any(own.spec):
            return leaf
        dtype = dtype_of(tuple(str(part.key) for part in path))

        @jax.custom_vjp
        def whole(x: jax.Array) -> jax.Array:
            narrow = jax.lax.with_sharding_constraint(x.astype(dtype), own)
            return jax.lax.with_sharding_constraint(narrow, replicated(mesh))

        def forward(x: jax.Array) -> tuple[jax.Array, None]:
            return whole(x), None

        def backward(_: None, gradient: jax.Array) -> tuple[jax.Array]:
            return (jax.lax.with_sharding_constraint(gradient, own).astype(leaf.dtype),)

        whole.defvjp(forward, backward)
        return whole(leaf)

    return lambda params: jax.tree_util.tree_map_with_path(gather, params)


def shard_together(shardings: PyTree) -> PyTree:
    """Returns the shardings of stacked states of several runs. The new first axis is not split."""
    return jax.tree.map(lambda s: NamedSharding(s.mesh, PartitionSpec(None, *s.spec)), shardings)


def split_call(mesh: Mesh, axis: int = 1) -> NamedSharding:
    """The sharding of the arrays of a call, (K, B, …), or (K, R, B) for R runs: the axis B, `axis`, is split."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, ("data", "fsdp")))


def place_call(mesh: Mesh, call: Mapping[str, ArrayLike], axis: int = 1) -> dict[str, jax.Array]:
    """Copies this process's rows of the K batches of a call to its devices.

    Args:
      mesh: mesh of devices.
      call: host arrays (K, B, …), or (K, R, B) for R runs that train together.
      axis: index of the axis B, which is split.
    """
    return _place(split_call(mesh, axis), call)


def abstract(sharding: NamedSharding, tree: PyTree) -> PyTree:
    """Returns the shapes of arrays with a sharding, and copies nothing to the devices.

    A program can be compiled for devices that are not here from shapes alone.
    """
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype, sharding=sharding), tree)


def _place(sharding: NamedSharding, arrays: Mapping[str, ArrayLike]) -> dict[str, jax.Array]:
    if jax.process_count() == 1:
        return jax.device_put(dict(arrays), sharding)
    return {name: jax.make_array_from_process_local_data(sharding, x) for name, x in arrays.items()}
