"""`Aggregate`: sums over the neighbours in a graph whose nodes are positions.

For adjacency P of each input, k becomes P1^T k P2, and so does t.

Source: Du et al. 2019, "Graph neural tangent kernel" (arXiv 1905.13192).
"""

import enum
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.kernels.stax.layer import layer
from poster_jax.kernels.stax.masking import supports_masking
from poster_jax.kernels.stax.requirements import Bool, Diagonal, requires

__all__ = ["Aggregate", "AggregateImplementation"]


class AggregateImplementation(enum.Enum):
    """How `pattern` is given: DENSE as an adjacency matrix, SPARSE as a list of edges."""

    DENSE = "DENSE"
    SPARSE = "SPARSE"


def _itself(pattern: Any) -> Any:
    return pattern


@layer
@supports_masking(remask_kernel=True)
def Aggregate(  # noqa: N802
    aggregate_axis: Any = None,
    batch_axis: int = 0,
    channel_axis: int = -1,
    to_dense: Callable[[Any], Any] | None = _itself,
    implementation: Any = "DENSE",
) -> Any:
    """Replaces every node by the weighted sum of the nodes that point to it.

    `apply_fn(params, x, pattern=p)` and `kernel_fn(x1, x2, pattern=(p1, p2))` take the graphs: for
    DENSE an array `(batch, X..., X...)` over the K aggregated axes, whose entry [n, i, j] is the
    weight of the edge from i to j; for SPARSE integers `(batch, edges, K, 2)` (or `(batch, edges,
    2)` for one axis) of tails and heads, a negative head marking an edge that does not exist. None:
    the identity.

    Args:
      aggregate_axis: the axes of the nodes; None: all but batch and channels.
      batch_axis: the examples' axis.
      channel_axis: the channels' axis.
      to_dense: makes a pattern dense, at every call.
      implementation: "DENSE" or "SPARSE"; the second costs edges times nodes instead of nodes
        cubed.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Raises:
      NotImplementedError: (`kernel_fn`) a pattern for one batch only.
      ValueError: a pattern of the wrong shape.

    Example:
      >>> _, apply_fn, _ = Aggregate()
      >>> swap = jnp.array([[[0.0, 1.0], [1.0, 0.0]]])
      >>> apply_fn((), jnp.array([[[1.0], [2.0]]]), pattern=swap)[0, :, 0].tolist()
      [2.0, 1.0]
    """
    sparse = AggregateImplementation(implementation) is AggregateImplementation.SPARSE

    def axes_of(ndim):
        taken = (batch_axis % ndim, channel_axis % ndim)
        if aggregate_axis is None:
            return tuple(i for i in range(ndim) if i not in taken)
        axes = (aggregate_axis,) if isinstance(aggregate_axis, int) else aggregate_axis
        return tuple(sorted(i % ndim for i in axes))

    def aggregation(pattern, shape):
        """`(x, n_axis, node_axes) -> x`, summing over the edges of `pattern`."""
        sizes = tuple(shape[i] for i in axes_of(len(shape)))
        if sparse:
            return _along_edges(_edges(pattern, shape[batch_axis], len(sizes)), sizes)
        return _by_matrix(pattern if to_dense is None else to_dense(pattern), sizes)

    def init_fn(rng, input_shape):
        return input_shape, ()

    def apply_fn(params, inputs, *, pattern=None, **kwargs):
        if pattern is None:
            return inputs
        aggregate = aggregation(pattern, inputs.shape)
        return aggregate(inputs, batch_axis % inputs.ndim, axes_of(inputs.ndim))

    @requires(
        batch_axis=batch_axis,
        channel_axis=channel_axis,
        diagonal_spatial=Diagonal(input=Bool.NO, output=Bool.NO),
    )
    def kernel_fn(k, *, pattern=None, **kwargs):
        pattern1, pattern2 = (None, None) if pattern is None else pattern
        if pattern1 is None and pattern2 is None:
            return k
        if pattern1 is None or pattern2 is None:
            raise NotImplementedError(
                "pattern must be given for both batches or for none, got one."
            )
        first, second = aggregation(pattern1, k.shape1), aggregation(pattern2, k.shape2)
        ndim = len(k.shape1)
        spatial = [i for i in range(ndim) if i not in (k.batch_axis, k.channel_axis)]
        places = [spatial.index(i) for i in axes_of(ndim)]

        def both(x, batch_ndim, left, right):
            if x is None or x.ndim == 0:
                return x
            rows = tuple(batch_ndim + 2 * p for p in places)
            x = left(x, 0, rows)
            return right(x, batch_ndim - 1, tuple(row + 1 for row in rows))

        return k.replace(
            nngp=both(k.nngp, 2, first, second),
            ntk=both(k.ntk, 2, first, second),
            cov1=both(k.cov1, k.cov_ndim, first, first),
            cov2=both(k.cov2, k.cov_ndim, second, second),
        )

    return init_fn, apply_fn, kernel_fn


def _by_matrix(pattern: Any, sizes: tuple[int, ...]) -> Any:
    if pattern.shape[1:] != sizes * 2:
        raise ValueError(
            f"pattern must have the shape (batch, {', '.join(map(str, sizes * 2))}) for these "
            f"inputs, got {pattern.shape}."
        )
    nodes = math.prod(sizes)

    def aggregate(x, batch, axes):
        matrix = pattern.reshape(-1, nodes, nodes).astype(x.dtype)
        return _on_nodes(lambda flat: jnp.einsum("nij,ni...->nj...", matrix, flat), x, batch, axes)

    return aggregate


def _along_edges(edges: tuple[Any, Any], sizes: tuple[int, ...]) -> Any:
    tails, heads = (_flat_nodes(ends, sizes) for ends in edges)
    nodes = math.prod(sizes)

    def one(flat, tail, head):
        # A negative head lies outside of all segments.
        return jax.ops.segment_sum(flat[tail], head, num_segments=nodes)

    def aggregate(x, batch, axes):
        return _on_nodes(lambda flat: jax.vmap(one)(flat, tails, heads), x, batch, axes)

    return aggregate


def _on_nodes(fn: Any, x: Any, batch: int, axes: tuple[int, ...]) -> Any:
    """`fn` on (batch, nodes, rest)."""
    front = (batch, *axes)
    moved = jnp.moveaxis(x, front, range(len(front)))
    flat = moved.reshape(moved.shape[0], -1, *moved.shape[len(front) :])
    return jnp.moveaxis(fn(flat).reshape(moved.shape), range(len(front)), front)


def _edges(pattern: Any, batch_size: int, num_axes: int) -> tuple[Any, Any]:
    if pattern.shape[-1] != 2:
        raise ValueError(f"pattern must end in an axis of 2 (tail, head), got {pattern.shape}.")
    tails, heads = pattern[..., 0], pattern[..., 1]
    if num_axes == 1 and tails.ndim == 2:
        tails, heads = tails[..., None], heads[..., None]
    if tails.ndim != 3 or tails.shape[2] != num_axes or tails.shape[0] != batch_size:
        raise ValueError(
            f"pattern must have the shape ({batch_size}, edges, {num_axes}, 2) for these inputs, "
            f"got {pattern.shape}."
        )
    return tails, heads


def _flat_nodes(ends: Any, sizes: tuple[int, ...]) -> Any:
    """(batch, edges, K) coordinates as one number a node; -1 for an edge that does not exist."""
    flat = jnp.zeros(ends.shape[:2], ends.dtype)
    for i, size in enumerate(sizes):
        flat = flat * size + ends[..., i] % size
    return jnp.where(jnp.all(ends >= 0, -1), flat, -1)
