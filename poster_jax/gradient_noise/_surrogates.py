"""Gaussian samples with a given covariance between rows."""

import jax
import jax.numpy as jnp

from poster_jax.core.linalg import eigh
from poster_jax.core.typing import Array, PRNGKey

__all__ = ["draw_correlated", "row_factor"]


def row_factor(rows: Array) -> Array:
    """(k, R), k = min(M, R): F with `F' F` the covariance of the centred rows (R, M), over M.

    Rows of mean square 1 at most, so that what rounding leaves of a zero eigenvalue is small beside
    each of them. (A QR factorisation would square nothing, and takes five times as long.)
    """
    num_rows, num_samples = rows.shape
    if num_rows >= num_samples:
        return rows.T / num_samples**0.5
    values, vectors = eigh(jnp.matmul(rows, rows.T, precision="highest") / num_samples)
    return (vectors * jnp.sqrt(jnp.maximum(values, 0))).T


def draw_correlated(key: PRNGKey, factor: Array, num_samples: int) -> Array:
    """(R, num_samples): columns drawn independently from N(0, F'F)."""
    normal = jax.random.normal(key, (factor.shape[0], num_samples), factor.dtype)
    return jnp.matmul(factor.T, normal, precision="highest")
