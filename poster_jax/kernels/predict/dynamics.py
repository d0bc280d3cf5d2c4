"""Gradient flow on the mean squared error, one eigenvalue at a time.

The loss `1/(2N) ||f - y||^2` over N outputs moves the residual along an eigenvector of eigenvalue l
as exp(-l t / N). All functions take times (times, 1) and a `Spectrum` and return (times, n).
"""

import jax.numpy as jnp

from poster_jax.core.typing import Array
from poster_jax.kernels.predict.factor import Spectrum

__all__ = ["decay", "relaxation", "transfer"]


def decay(spectrum: Spectrum, t: Array, size: int) -> Array:
    """exp(-l t / N): what is left of a residual; 1 for ever where the eigenvalue is zero."""
    return 1 + relaxation(spectrum, t, size)


def relaxation(spectrum: Spectrum, t: Array, size: int) -> Array:
    """exp(-l t / N) - 1: how far a residual has gone; 0 where the eigenvalue is zero."""
    positive = spectrum.values > 0
    safe = jnp.where(positive, spectrum.values, 1)  # 0 * inf would be NaN at infinite time
    return jnp.where(positive, jnp.expm1(-safe * t / size), 0)


def transfer(spectrum: Spectrum, t: Array, size: int) -> Array:
    """(exp(-l t / N) - 1) / l: what a residual hands on to test points, times the kernel.

    A zero eigenvalue has the limit -t / N. What rounding left of the kernel along it would grow
    with t, so the limit fades once `threshold t / N` nears 1, where the true value is unknown.
    """
    positive = spectrum.values > 0
    safe = jnp.where(positive, spectrum.values, 1)
    finite = jnp.where(jnp.isfinite(t), t, 0)
    limit = -finite / size * jnp.exp(-spectrum.threshold * finite / size)
    return jnp.where(positive, jnp.expm1(-safe * t / size) / safe, limit)
