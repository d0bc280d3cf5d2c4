"""Symmetric matrices over N inputs as vectors of their P = N (N + 1) / 2 different entries.

A vertex is symmetric in each of its two pairs of inputs: stored as (P, P) it holds a quarter of the
N^4 entries.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

__all__ = ["Pairs", "from_pairs", "num_inputs", "pairs_of", "quadruples_of", "to_pairs"]


class Pairs(NamedTuple):
    """The pairs (a, b) with a <= b, in the order of `numpy.triu_indices`.

    Attributes:
      rows: (P,) a.
      columns: (P,) b.
      neighbours: (3, P) places of the pairs (a, b), (a, a) and (b, b).
      diagonal: (N,) places of (a, a).
      inverse: (N, N) place of (a, b) or (b, a).
    """

    rows: np.ndarray
    columns: np.ndarray
    neighbours: np.ndarray
    diagonal: np.ndarray
    inverse: np.ndarray


@functools.lru_cache(maxsize=64)
def pairs_of(num: int) -> Pairs:
    """The pairs of `num` inputs."""
    # int32 in every precision: jax keeps a constant's type by its identity, so that one of int64,
    # first met where that is enabled, would come as int64 where it is not.
    rows, columns = (a.astype(np.int32) for a in np.triu_indices(num))
    inverse = np.zeros((num, num), np.int32)
    inverse[rows, columns] = inverse[columns, rows] = np.arange(len(rows))
    diagonal = np.diagonal(inverse)
    own = np.arange(len(rows), dtype=np.int32)
    neighbours = np.stack([own, diagonal[rows], diagonal[columns]])
    return Pairs(rows, columns, neighbours, diagonal, inverse)


@functools.lru_cache(maxsize=16)
def quadruples_of(num: int) -> tuple[np.ndarray, np.ndarray]:
    """Quadruples a <= b <= c <= d as (Q, 4), and where each pair of pairs stands among them."""
    rows, columns, *_ = pairs_of(num)
    first, second = np.triu_indices(len(rows))
    four = np.stack([rows[first], columns[first], rows[second], columns[second]], -1)
    four.sort(axis=-1)
    code = four @ num ** np.arange(3, -1, -1)
    kept, where, place = np.unique(code, return_index=True, return_inverse=True)
    del kept
    table = np.zeros((len(rows), len(rows)), np.int32)
    table[first, second] = table[second, first] = place.ravel()
    return four[where], table


def num_inputs(num_pairs: int) -> int:
    """N from P."""
    return int((np.sqrt(8 * num_pairs + 1) - 1) / 2 + 0.5)


def to_pairs(matrix: Any) -> Any:
    """(..., N, N), symmetric, to (..., P)."""
    rows, columns, *_ = pairs_of(matrix.shape[-1])
    return matrix[..., rows, columns]


def from_pairs(vector: Any) -> Any:
    """(..., P) to (..., N, N)."""
    return jnp.asarray(vector)[..., pairs_of(num_inputs(vector.shape[-1])).inverse]
