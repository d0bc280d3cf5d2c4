"""The layout of covariances: batch axes first, then each spatial axis twice, side by side.

A covariance of activations (n, h, w, channels) is `(n1, n2, h, h', w, w')`; where only equal
positions are kept it is `(n1, n2, h, w)`; where only equal examples are, `(n1, ...)`. Everything
that moves between these forms stands here.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

__all__ = [
    "canonical_index",
    "columns",
    "diagonal",
    "interleaved",
    "masked",
    "outer",
    "reversed_pairs",
    "rows",
    "separated",
    "sliced_shape",
]


def interleaved(x: Any, start: int = 0) -> Any:
    """(..., X, Y, X', Y') as (..., X, X', Y, Y') from the axis `start` on."""
    half = (x.ndim - start) // 2
    return jnp.moveaxis(x, range(start + half, x.ndim), range(start + 1, x.ndim, 2))


def separated(x: Any, start: int = 0) -> Any:
    """(..., X, X', Y, Y') as (..., X, Y, X', Y') from the axis `start` on."""
    half = (x.ndim - start) // 2
    return jnp.moveaxis(x, range(start + 1, x.ndim, 2), range(start + half, x.ndim))


def reversed_pairs(x: Any, start: int) -> Any:
    """(..., X, X', Y, Y') as (..., Y, Y', X, X') from the axis `start` on."""
    if x is None or x.ndim == 0:
        return x
    pairs = [(i, i + 1) for i in range(start, x.ndim, 2)]
    return jnp.transpose(x, (*range(start), *(axis for pair in pairs[::-1] for axis in pair)))


def diagonal(x: Any, start: int) -> Any:
    """(..., X, X, Y, Y) as (..., X, Y): the entries of equal positions, from `start` on."""
    num_pairs = (x.ndim - start) // 2
    for i in range(num_pairs):
        axis = start + i  # the pairs before this one are single axes by now
        x = jnp.moveaxis(jnp.diagonal(x, axis1=axis, axis2=axis + 1), -1, axis)
    return x


def rows(x: Any, start: int, end: int) -> Any:
    """(..., X, Y) as (..., X, 1, Y, 1): the first of each pair, for broadcasting."""
    return x.reshape(_with_ones(x.shape, start, end, first=True))


def columns(x: Any, start: int, end: int) -> Any:
    """(..., X, Y) as (..., 1, X, 1, Y): the second of each pair, for broadcasting."""
    return x.reshape(_with_ones(x.shape, start, end, first=False))


def outer(x: Any, y: Any, start: int, end: int, operation: Callable[[Any, Any], Any]) -> Any:
    """`operation` of every x with every y over the axes start..end, others elementwise."""
    return operation(rows(x, start, end), columns(x if y is None else y, start, end))


def masked(x: Any, mask: Any) -> Any:
    """`x` with zeros where `mask` says so; None passes."""
    return x if x is None or mask is None else jnp.where(mask, jnp.zeros((), x.dtype), x)


def canonical_index(index: Any, ndim: int) -> tuple[Any, ...]:
    """A numpy index as one entry an axis, ellipsis and missing trailing axes written out."""
    index = index if isinstance(index, tuple) else (index,)
    given = sum(entry is not Ellipsis for entry in index)
    full: list[Any] = []
    for entry in index:
        full += [slice(None)] * (ndim - given) if entry is Ellipsis else [entry]
    return tuple(full + [slice(None)] * (ndim - len(full)))


def sliced_shape(shape: Sequence[int], index: Any) -> tuple[int, ...]:
    """The shape of an array of `shape` after indexing; an axis of unknown size (-1) stays so.

    Raises:
      ValueError: an axis of unknown size is cut.
    """
    out: list[int] = []
    for axis, (entry, size) in enumerate(
        zip(canonical_index(index, len(shape)), shape, strict=True)
    ):
        if entry == slice(None):
            out.append(size)
        elif size is None or size < 0:
            raise ValueError(
                f"idx must leave axis {axis} whole, since its size is unknown ({size}) in the "
                f"input shape {tuple(shape)}, got {entry}."
            )
        else:
            out += np.empty((size,), bool)[entry].shape
    return tuple(out)


def _with_ones(shape: Sequence[int], start: int, end: int, *, first: bool) -> tuple[int, ...]:
    doubled = [pair for n in shape[start:end] for pair in ((n, 1) if first else (1, n))]
    return (*shape[:start], *doubled, *shape[end:])
