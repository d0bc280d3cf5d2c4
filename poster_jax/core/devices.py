"""Several devices and hosts: one mesh axis, "data", along which examples or networks lie.

The same functions run on one device and on many: hand `mesh=` to a function that takes it, or place
the arrays with `shard_batch` / `shard_population` and let `jit` follow their sharding.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from poster_jax.core.checks import check_count, num_examples
from poster_jax.core.typing import Batch

__all__ = [
    "DATA_AXIS",
    "check_mesh",
    "data_mesh",
    "initialize_distributed",
    "on_mesh",
    "replicate",
    "shard_batch",
    "shard_population",
]

DATA_AXIS = "data"
"""The one mesh axis of this library."""


def data_mesh(num_devices: int | None = None) -> Mesh:
    """A mesh of one axis, "data", over the devices of all processes.

    Args:
      num_devices: how many of `jax.devices()` to take; None takes all.

    Returns:
      A mesh of shape (num_devices,) whose axis has the automatic type, so that `jit` propagates
      shardings by itself.

    Raises:
      ValueError: num_devices is below 1 or above what there is.

    Source: this library.

    Example:
      >>> data_mesh(1).axis_names
      ('data',)
    """
    devices = jax.devices()
    if num_devices is not None:
        check_count("num_devices", num_devices)
        if num_devices > len(devices):
            raise ValueError(f"num_devices must be at most {len(devices)}, got {num_devices}.")
        devices = devices[:num_devices]
    return Mesh(np.array(devices), (DATA_AXIS,))


def shard_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Places the examples of a batch along the mesh axis "data".

    Args:
      batch: pytree whose leaves share a leading axis of N examples. With several processes each
        holds the whole batch, and places the part that its devices own.
      mesh: as `data_mesh` makes it.

    Returns:
      The same pytree, arrays sharded along their leading axis.

    Raises:
      ValueError: N is no multiple of the number of devices (`core.batching` takes care of a
        remainder; an array cannot be placed with one), or the mesh lacks the axis.

    Source: this library.

    Example:
      >>> import jax.numpy as jnp
      >>> shard_batch(jnp.ones((4, 3)), data_mesh(1)).sharding.spec[0]
      'data'
    """
    return _place_along_data(batch, mesh, "batch", "examples")


def shard_population(population: Any, mesh: Mesh) -> Any:
    """Places the networks of a population (leading axis of every leaf) along the mesh axis "data".

    Args:
      population: pytree of parameters, states or keys, one network an index of the leading axis.
      mesh: as `data_mesh` makes it.

    Returns:
      The same pytree, arrays sharded along their leading axis: `jit(vmap(f))` of it runs every
      network on the device that holds it.

    Raises:
      ValueError: the number of networks is no multiple of the number of devices.

    Source: this library.

    Example:
      >>> shard_population({"w": np.ones((2, 3), np.float32)}, data_mesh(1))["w"].shape
      (2, 3)
    """
    return _place_along_data(population, mesh, "population", "networks")


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Places a copy of every leaf on every device of the mesh.

    Args:
      tree: any pytree of arrays; with several processes the same on each.
      mesh: as `data_mesh` makes it.

    Returns:
      The same pytree, fully replicated.

    Raises:
      ValueError: the mesh lacks the axis "data".

    Source: this library.

    Example:
      >>> replicate(np.ones(3, np.float32), data_mesh(1)).sharding.is_fully_replicated
      True
    """
    check_mesh(mesh)
    return _place(tree, NamedSharding(mesh, PartitionSpec()))


def on_mesh(tree: Any, mesh: Mesh) -> Any:
    """The tree with every array on the devices of the mesh: those that are elsewhere are copied.

    An array that was read from a checkpoint, or put on one device by hand, cannot enter a program
    of several devices as it is.

    Args:
      tree: any pytree; traced values and arrays that are there already stay as they are.
      mesh: as `data_mesh` makes it.

    Returns:
      The same pytree; what was copied is replicated.

    Raises:
      ValueError: the mesh lacks the axis "data".

    Source: this library.

    Example:
      >>> moved = on_mesh(jax.device_put(np.ones(3, np.float32), jax.devices()[0]), data_mesh(1))
      >>> moved.shape
      (3,)
    """
    check_mesh(mesh)
    here = set(mesh.devices.flat)

    def move(leaf: Any) -> Any:
        placed = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
        return replicate(leaf, mesh) if placed and set(leaf.devices()) != here else leaf

    return jax.tree.map(move, tree)


def initialize_distributed(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins this process to the others of a run on several hosts; call it before any array is made.

    On a Cloud TPU pod or under Slurm leave all three out: jax finds them. Afterwards `data_mesh()`
    spans the devices of every host, and every process runs the same program.

    Args:
      coordinator_address: "host:port" of process 0.
      num_processes: how many processes take part.
      process_id: which one this is, from 0.

    Raises:
      ValueError: only some of the three are given, or process_id is out of range.

    Source: `jax.distributed`.

    Example:
      `initialize_distributed("10.0.0.1:8476", num_processes=2, process_id=0)`
    """
    given = {
        "coordinator_address": coordinator_address,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise ValueError(
            f"coordinator_address, num_processes and process_id go together; missing: {missing}."
        )
    if num_processes is not None and process_id is not None:
        check_count("num_processes", num_processes)
        check_count("process_id", process_id, minimum=0)
        if process_id >= num_processes:
            raise ValueError(
                f"process_id must be below num_processes={num_processes}, got {process_id}."
            )
    jax.distributed.initialize(coordinator_address, num_processes, process_id)


def check_mesh(mesh: Any) -> None:
    """TypeError when `mesh` is no mesh, ValueError when it lacks the axis "data"."""
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh must be a jax.sharding.Mesh, got {type(mesh).__name__}.")
    if DATA_AXIS not in mesh.axis_names:
        raise ValueError(f"mesh must have an axis named {DATA_AXIS!r}, got {mesh.axis_names}.")


def _place_along_data(tree: Any, mesh: Mesh, name: str, things: str) -> Any:
    check_mesh(mesh)
    size, num_devices = num_examples(tree, name), mesh.shape[DATA_AXIS]
    if size % num_devices:
        raise ValueError(
            f"{name} must hold a multiple of {num_devices} {things}, one share for each device of "
            f"the mesh, got {size}."
        )
    return _place(tree, NamedSharding(mesh, PartitionSpec(DATA_AXIS)))


def _place(tree: Any, sharding: NamedSharding) -> Any:
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, lambda i: leaf[i]), tree
    )
