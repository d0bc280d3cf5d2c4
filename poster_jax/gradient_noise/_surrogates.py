"""Gaussian samples with a given covariance between rows, without its eigenvalues."""

import jax
import jax.numpy as jnp

from poster_jax.core.linalg import qr
from poster_jax.core.typing import Array, PRNGKey

__all__ = ["draw_correlated", "row_factor"]


def row_factor(rows: Array) -> Array:
    """(k, R), k = min(M, R): F with `F' F` the covariance of the centred (R, M), divided by M.

    F is the triangle of a QR factorisation, so that nothing is squared: a rank of 1 stays 1.
    """
    _, factor = qr(rows.T / jnp.sqrt(rows.shape[1]).astype(rows.dtype))
    return factor


def draw_correlated(key: PRNGKey, factor: Array, num_samples: int) -> Array:
    """(R, num_samples): columns drawn independently from N(0, F'F)."""
    normal = jax.random.normal(key, (factor.shape[0], num_samples), factor.dtype)
    return jnp.matmul(factor.T, normal, precision="highest")
