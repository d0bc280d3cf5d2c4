"""Fewer factors for the same vertex: the largest part of sum_s D_s x D_s in few terms."""

import jax
import jax.numpy as jnp
import numpy as np

from poster_jax.core.checks import check_count
from poster_jax.core.linalg import eigh, qr
from poster_jax.core.precision import full_precision
from poster_jax.core.typing import Array, Float
from poster_jax.finite_width.nongaussian._pairs import num_inputs, pairs_of

__all__ = ["compress"]


@full_precision
def compress(factors: Float[Array, "terms pairs"], *, rank: int) -> tuple[Array, Array]:
    """The best `rank` factors, by a randomised singular value decomposition.

    The rows are drawn together by random signs, one power iteration sharpens them, and the small
    problem that is left is solved exactly: R N^2 numbers a term, never the N^4 of the vertex.

    Args:
      factors: (S, P), symmetric matrices over pairs a <= b.
      rank: how many to keep.

    Returns:
      `(factors, lost)`: (rank, P), or all S where these are not more, and the share of the trace of
      the vertex (pairs a < b counted twice) that is left out. What is left out is positive
      semi-definite; where all are kept the share is 0.

    Raises:
      ValueError: rank below 1.

    Source: Halko, Martinsson & Tropp 2011 (arXiv 0909.4061), algorithms 4.4 and 5.1.

    Example:
      >>> kept, lost = compress(jnp.eye(6)[:, :3], rank=3)
      >>> kept.shape, bool(lost < 1e-6)
      ((3, 3), True)
    """
    check_count("rank", rank)
    num, num_pairs = factors.shape
    if num <= rank:
        return factors, jnp.zeros((), factors.dtype)
    rows, columns, *_ = pairs_of(num_inputs(num_pairs))
    weight = jnp.asarray(np.where(rows == columns, 1, np.sqrt(2)), factors.dtype)
    weighted = factors * weight
    width = min(rank + 16, num, num_pairs)
    # One fixed key: the same factors give the same answer, under jit and out of it.
    signs = jax.random.rademacher(jax.random.key(0), (width, num), weighted.dtype)
    basis, _ = qr((signs @ weighted).T)
    basis, _ = qr(weighted.T @ (weighted @ basis))
    small = weighted @ basis
    values, vectors = eigh(small.T @ small)
    kept = min(rank, width)
    values, vectors = jnp.maximum(values[::-1][:kept], 0), vectors[:, ::-1][:, :kept]
    found = jnp.sqrt(values)[:, None] * (basis @ vectors).T / weight
    if kept < rank:
        found = jnp.concatenate([found, jnp.zeros((rank - kept, num_pairs), found.dtype)])
    total = jnp.sum(weighted**2)
    lost = jnp.maximum(1 - values.sum() / jnp.where(total > 0, total, 1), 0)
    return found, lost
