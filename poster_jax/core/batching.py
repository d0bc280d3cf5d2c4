"""Exact sums and means over batches that do not fit in one piece, on one device or on many.

A function of a batch that is a mean over its examples (a loss, a gradient, a Hessian-vector
product) has the same value however the batch is cut: `mean = sum_c (n_c / N) mean_c`. Here the cut
is into microbatches of one `lax.scan`, the last short one included, and over the devices of a mesh,
the remainder included. Partial results are added with Kahan's compensation, so that the float32
error does not grow with the number of microbatches (Kahan 1965, CACM 8(1):40).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from poster_jax.core.checks import check_callable, check_count, num_examples
from poster_jax.core.devices import DATA_AXIS, on_mesh
from poster_jax.core.typing import Batch

__all__ = ["map_over_batch", "mean_over_batch", "sum_over_batch"]


def mean_over_batch(
    fn: Callable[[Batch], Any],
    batch: Batch,
    *,
    microbatch: int | None = None,
    mesh: Mesh | None = None,
) -> Any:
    """What `fn(batch)` is, computed a microbatch at a time and spread over the devices of a mesh.

    Args:
      fn: maps a batch to a pytree of floating point arrays, each a mean over the examples it sees.
        It may close over parameters and is differentiable through them.
      batch: pytree whose leaves share a leading axis of N examples.
      microbatch: examples in one step of the loop; None takes all at once. It need not divide N.
      mesh: a mesh with the axis "data" (see `core.devices.data_mesh`); None stays on one device.
        The number of devices need not divide N.

    Returns:
      The pytree of `fn`, equal to `fn(batch)` to rounding.

    Raises:
      ValueError: an empty or ragged batch, microbatch below 1, a mesh without the axis "data".
      TypeError: fn is no function, or returns integers (a mean of integers is no integer).

    Source: this library.

    Example:
      >>> x = jnp.arange(100.0)
      >>> round(float(mean_over_batch(jnp.mean, x, microbatch=7)), 3)
      49.5
    """
    size = _check(fn, batch, microbatch)
    if mesh is None:
        return _mean_on_device(fn, batch, size, microbatch)
    batch = on_mesh(batch, mesh)
    num_devices = mesh.shape[DATA_AXIS]
    even = size - size % num_devices
    if even == 0:
        return _mean_on_device(fn, batch, size, microbatch)

    def on_each_device(part: Batch) -> Any:
        mean = _mean_on_device(fn, part, even // num_devices, microbatch)
        return jax.lax.pmean(mean, DATA_AXIS)

    # check_vma=False: with it, a gradient inside `fn` by a parameter from outside would already be
    # summed over the devices, and the mean taken here would be too large by their number.
    spread = jax.shard_map(
        on_each_device,
        mesh=mesh,
        in_specs=PartitionSpec(DATA_AXIS),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    mean = spread(_slice(batch, 0, even))
    if even == size:
        return mean
    rest = _mean_on_device(fn, _slice(batch, even, size), size - even, microbatch)
    return _weighted_sum([(mean, even / size), (rest, 1 - even / size)])


def sum_over_batch(
    fn: Callable[[Batch], Any],
    batch: Batch,
    *,
    microbatch: int | None = None,
    mesh: Mesh | None = None,
) -> Any:
    """What `fn(batch)` is for a `fn` that sums over examples, a microbatch at a time.

    Args:
      fn: maps a batch to a pytree of arrays, each a sum over the examples it sees.
      batch: pytree whose leaves share a leading axis of N examples.
      microbatch: as in `mean_over_batch`.
      mesh: as in `mean_over_batch`.

    Returns:
      The pytree of `fn`, equal to `fn(batch)` to rounding, in floating point.

    Raises:
      ValueError, TypeError: as `mean_over_batch`.

    Source: this library.

    Example:
      >>> float(sum_over_batch(jnp.sum, jnp.ones(100), microbatch=7))
      100.0
    """
    size = _check(fn, batch, microbatch)

    def mean_fn(part: Batch) -> Any:
        total = fn(part)
        return jax.tree.map(lambda t: jnp.asarray(t) / num_examples(part), total)

    mean = mean_over_batch(mean_fn, batch, microbatch=microbatch, mesh=mesh)
    return jax.tree.map(lambda m: m * size, mean)


def map_over_batch(
    fn: Callable[[Batch], Any],
    batch: Batch,
    *,
    microbatch: int | None = None,
    mesh: Mesh | None = None,
) -> Any:
    """What `fn(batch)` is for a `fn` that keeps the example axis, a microbatch at a time.

    Args:
      fn: maps a batch of n examples to a pytree whose leaves have a leading axis n, example by
        example (a model in evaluation mode, per-example losses).
      batch: pytree whose leaves share a leading axis of N examples.
      microbatch: examples in one step of the loop; None takes all at once.
      mesh: as in `mean_over_batch`.

    Returns:
      The pytree of `fn` for the whole batch, leading axis N.

    Raises:
      ValueError: as `mean_over_batch`, and when `fn` drops the example axis.
      TypeError: fn is no function.

    Source: this library.

    Example:
      >>> map_over_batch(lambda x: x**2, jnp.arange(5.0), microbatch=2).tolist()
      [0.0, 1.0, 4.0, 9.0, 16.0]
    """
    size = _check(fn, batch, microbatch)
    for leaf in jax.tree.leaves(jax.eval_shape(fn, batch)):
        if leaf.shape[:1] != (size,):
            raise ValueError(
                f"fn must keep the example axis of length {size}, got an output {leaf.shape}."
            )
    if mesh is None:
        return _map_on_device(fn, batch, size, microbatch)
    batch = on_mesh(batch, mesh)
    share = size // mesh.shape[DATA_AXIS]
    even = share * mesh.shape[DATA_AXIS]
    if even == 0:
        return _map_on_device(fn, batch, size, microbatch)
    spread = jax.shard_map(
        lambda part: _map_on_device(fn, part, share, microbatch),
        mesh=mesh,
        in_specs=PartitionSpec(DATA_AXIS),
        out_specs=PartitionSpec(DATA_AXIS),
        check_vma=False,
    )
    out = spread(_slice(batch, 0, even))
    if even == size:
        return out
    rest = _map_on_device(fn, _slice(batch, even, size), size - even, microbatch)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), out, rest)


def _check(fn: Any, batch: Batch, microbatch: int | None) -> int:
    check_callable("fn", fn)
    if microbatch is not None:
        check_count("microbatch", microbatch)
    return num_examples(batch)


def _mean_on_device(
    fn: Callable[[Batch], Any], batch: Batch, size: int, microbatch: int | None
) -> Any:
    if microbatch is None or microbatch >= size:
        return fn(batch)
    chunks, rest = _chunks(batch, size, microbatch)
    num_chunks = size // microbatch
    zero = jax.tree.map(_zero, jax.eval_shape(fn, jax.tree.map(lambda a: a[0], chunks)))

    def add(carry: Any, chunk: Batch) -> tuple[Any, None]:
        total, lost = carry
        value = jax.tree.map(jnp.subtract, fn(chunk), lost)
        new = jax.tree.map(jnp.add, total, value)
        return (new, jax.tree.map(lambda n, t, v: (n - t) - v, new, total, value)), None

    (total, lost), _ = jax.lax.scan(add, (zero, zero), chunks)
    mean = jax.tree.map(lambda t, c: (t - c) / num_chunks, total, lost)
    if rest is None:
        return mean
    whole = num_chunks * microbatch / size
    return _weighted_sum([(mean, whole), (fn(rest), 1 - whole)])


def _map_on_device(
    fn: Callable[[Batch], Any], batch: Batch, size: int, microbatch: int | None
) -> Any:
    if microbatch is None or microbatch >= size:
        return fn(batch)
    chunks, rest = _chunks(batch, size, microbatch)
    out = jax.lax.map(fn, chunks)
    out = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), out)
    if rest is None:
        return out
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), out, fn(rest))


def _zero(shape: jax.ShapeDtypeStruct) -> jax.Array:
    if not jnp.issubdtype(shape.dtype, jnp.inexact):
        raise TypeError(f"fn must return floating point arrays (means), got {shape.dtype}.")
    return jnp.zeros(shape.shape, shape.dtype)


def _weighted_sum(parts: list[tuple[Any, float]]) -> Any:
    trees, weights = zip(*parts, strict=True)
    return jax.tree.map(lambda *xs: sum(w * x for w, x in zip(weights, xs, strict=True)), *trees)


def _chunks(batch: Batch, size: int, microbatch: int) -> tuple[Batch, Batch | None]:
    """Full microbatches stacked along a new leading axis, and the short last one or None."""
    whole = size - size % microbatch
    stacked = jax.tree.map(
        lambda a: jnp.asarray(a[:whole]).reshape(-1, microbatch, *a.shape[1:]), batch
    )
    return stacked, (_slice(batch, whole, size) if whole < size else None)


def _slice(batch: Batch, start: int, stop: int) -> Batch:
    return jax.tree.map(lambda a: a[start:stop], batch)
