"""A population as one program: many networks in step, in groups, over the devices of a mesh."""

from collections.abc import Callable, Sequence
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
    in_axes: Sequence[int | None] | None = None,
    group_size: int | None = None,
    mesh: Mesh | None = None,
) -> Any:
    """What `fn` makes of each member of a population, as one compiled program.

    `fn` is a function of one network: it builds parameters from a key or takes them, and calls
    `fit`, `fit_until` or anything else. Called outside `jit`, each call compiles anew; to call it
    twice, jit the whole: `jax.jit(partial(map_population, fn))`.

    Args:
      fn: `fn(*member) -> pytree of arrays`, pure.
      *members: pytrees whose leaves share a leading axis of P networks: keys, parameters, learning
        rates, labels, ...
      in_axes: one entry a member as in `jax.vmap`: 0, or None for what all networks share. `fn` may
        close over small shared arrays; large ones are better passed than compiled in.
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
    axes = _check_axes(in_axes, len(members))
    own = [member for member, axis in zip(members, axes, strict=True) if axis == 0]
    population = num_examples(own, "members")
    num_devices = 1
    if mesh is not None:
        check_mesh(mesh)
        num_devices = mesh.shape[DATA_AXIS]
    share = -(-population // num_devices)
    num_groups = -(-share // min(group_size or share, share))
    # Equal groups: fewer than one network a group and device is computed in vain.
    group = -(-share // num_groups)

    def one_group(*members: Any) -> Any:
        if group > 1:
            return jax.vmap(fn, in_axes=axes)(*members)
        # Alone, a network is compiled as it is: a `lax.switch` stays one, a convolution too.
        out = fn(*_of_each(lambda a: a[0], members, axes))
        return jax.tree.map(lambda a: jnp.asarray(a)[None], out)

    def run(*members: Any) -> Any:
        if num_groups == 1:
            return one_group(*members)
        fold = lambda a: a.reshape(num_groups, group, *a.shape[1:])  # noqa: E731
        folded = _of_each(fold, members, axes)
        out = jax.lax.map(
            lambda i: one_group(*_of_each(lambda a: a[i], folded, axes)), jnp.arange(num_groups)
        )
        return jax.tree.map(lambda a: a.reshape(num_groups * group, *a.shape[2:]), out)

    if mesh is not None:
        spread, everywhere = PartitionSpec(DATA_AXIS), PartitionSpec()
        specs = tuple(spread if axis == 0 else everywhere for axis in axes)
        run = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=spread, check_vma=False)

    # The last network stands in for those that fill up the last group.
    total = num_devices * num_groups * group
    rows = jnp.minimum(jnp.arange(total), population - 1)

    @jax.jit
    def whole(*members: Any) -> Any:
        if total == population:
            return run(*members)
        out = run(*_of_each(lambda a: a[rows], members, axes))
        return jax.tree.map(lambda a: a[:population], out)

    return whole(*jax.tree.map(jnp.asarray, members))


def _check_axes(in_axes: Sequence[int | None] | None, num_members: int) -> tuple[int | None, ...]:
    axes = (0,) * num_members if in_axes is None else tuple(in_axes)
    if len(axes) != num_members or any(axis not in (0, None) for axis in axes):
        raise ValueError(
            f"in_axes must hold 0 or None for each of the {num_members} members, got {axes}."
        )
    return axes


def _of_each(fn: Callable[[Any], Any], members: Any, axes: tuple[int | None, ...]) -> list[Any]:
    """`fn` of the leaves that networks have of their own; the shared ones as they are."""
    return [
        member if axis is None else jax.tree.map(fn, member)
        for member, axis in zip(members, axes, strict=True)
    ]
