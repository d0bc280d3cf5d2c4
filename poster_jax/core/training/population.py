"""A population as one program: many networks in step, in groups, over the devices of a mesh."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from poster_jax.core.checks import check_callable, check_count, num_examples
from poster_jax.core.devices import DATA_AXIS, check_mesh

__all__ = ["map_population"]


def map_population(
    fn: Callable[..., Any],
    *members: Any,
    group_size: int | None = None,
    mesh: Mesh | None = None,
) -> Any:
    """What `fn` makes of each member of a population, as one compiled program.

    `fn` is a function of one network: it builds parameters from a key or takes them, and calls
    `fit`, `fit_until` or anything else. What all networks share it closes over.

    Args:
      fn: `fn(*member) -> pytree of arrays`, pure.
      *members: pytrees whose leaves share a leading axis of P networks: keys, parameters, learning
        rates, labels, ...
      group_size: networks trained side by side (`vmap`); the groups follow one another. None takes
        all at once. On a CPU the working set of a group should stay in the cache.
      mesh: spreads the networks over the axis "data"; P need not be a multiple of its size.

    Returns:
      The pytree of `fn` with a leading axis P, equal to a Python loop over the members to rounding.

    Raises:
      ValueError: no members, ragged leading axes, group_size below 1, a mesh without the axis.
      TypeError: fn is no function.

    Source: this library.

    Example:
      >>> import optax
      >>> from poster_jax.core.training import fit
      >>> loss = lambda w, x: jnp.mean((w - x) ** 2) / 2
      >>> def train_one(key, rate):
      ...     return fit(loss, jnp.zeros(()), jnp.ones(8), key, optimizer=optax.sgd(rate),
      ...                num_steps=3, batch_size=4).params
      >>> map_population(train_one, jax.random.split(jax.random.key(0), 2), jnp.array([0.5, 1.0]))
      Array([0.875, 1.   ], dtype=float32)
    """
    check_callable("fn", fn)
    if group_size is not None:
        check_count("group_size", group_size)
    members = jax.tree.map(jnp.asarray, members)
    population = num_examples(members, "members")
    num_devices = 1
    if mesh is not None:
        check_mesh(mesh)
        num_devices = mesh.shape[DATA_AXIS]
    share = -(-population // num_devices)
    num_groups = -(-share // min(group_size or share, share))
    # Equal groups: at most one network a group and device is computed in vain.
    group = -(-share // num_groups)

    def run(part: Any) -> Any:
        if num_groups == 1:
            return jax.vmap(fn)(*part)
        groups = jax.tree.map(lambda a: a.reshape(num_groups, group, *a.shape[1:]), part)
        out = jax.lax.map(lambda g: jax.vmap(fn)(*g), groups)
        return jax.tree.map(lambda a: a.reshape(num_groups * group, *a.shape[2:]), out)

    if mesh is not None:
        spec = PartitionSpec(DATA_AXIS)
        run = jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)

    # The last network stands in for those that fill up the last group.
    rows = jnp.minimum(jnp.arange(num_devices * num_groups * group), population - 1)

    @jax.jit
    def whole(members: Any) -> Any:
        filled = members if rows.size == population else jax.tree.map(lambda a: a[rows], members)
        out = run(filled)
        return jax.tree.map(lambda a: a[:population], out)

    return whole(members)
