"""The angle between two Gaussian outputs, without the cancellation that makes it noise.

With r = sqrt(v), delta = 1 - |k| / (r1 r2) and phi = arccos(|k| / (r1 r2)):

    phi                       = sqrt(2 delta)   P(delta),   P = arcsin(x)/x at x^2 = delta/2,
    q = sin phi - phi cos phi = sqrt(2 delta)^3 Q(delta).

P and Q are analytic for |delta| < 2, so one polynomial each serves the whole range 0 <= delta <= 1,
close pairs and distant ones alike; no arccos, no arctan2 and no branch is left.

Source: this library (derivation above; the polynomials interpolate at Chebyshev points).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poster_jax.kernels.stax._carried import relative_gap, safe_sqrt

__all__ = ["angle"]

# The error falls as 5.8^-degree, since the nearest singularity lies at delta = 2.
_DEGREE = {2: 6, 4: 10, 8: 21}


@jax.custom_jvp
def angle(k: Any, v1: Any, v2: Any, gap: Any) -> tuple[Any, Any]:
    """phi in [0, pi/2] and r1 r2 (sin phi - phi cos phi).

    Args:
      k: covariances.
      v1: variances of the first of each pair, broadcastable to `k`.
      v2: the same of the second.
      gap: sqrt(v1 v2) - |k|, or None.

    Returns:
      phi, which is pi/2 where a variance is zero, and the second quantity. Derivatives are those in
      k, v1 and v2 (the gap follows from these); where phi = 0 its own derivative is infinite and 0
      is taken.
    """
    r1, r2 = safe_sqrt(v1), safe_sqrt(v2)
    delta = relative_gap(k, r1, r2, gap)
    chord = jnp.sqrt(2 * delta)
    angle_coefficients, sine_coefficients = _polynomials(_DEGREE[delta.dtype.itemsize])
    y = 2 * delta - 1
    phi = chord * _horner(angle_coefficients, y)
    return phi, r1 * r2 * chord**3 * _horner(sine_coefficients, y)


@angle.defjvp
def _angle_jvp(primals, tangents):
    k, v1, v2, gap = primals
    dk, dv1, dv2, _ = tangents
    phi, q = angle(k, v1, v2, gap)
    sine = _sine(k, v1, v2, gap)
    absolute_dk = jnp.where(k < 0, -dk, dk)
    relative_dv = _relative(dv1, v1) + _relative(dv2, v2)
    positive = sine > 0
    cosine = jnp.abs(k) * relative_dv / 2 - absolute_dk
    dphi = jnp.where(positive, cosine / jnp.where(positive, sine, 1), 0)
    dq = sine * relative_dv / 2 - phi * absolute_dk
    return (phi, q), (jnp.broadcast_to(dphi, phi.shape), jnp.broadcast_to(dq, q.shape))


@jax.custom_jvp
def _sine(k: Any, v1: Any, v2: Any, gap: Any) -> Any:
    """sqrt(v1 v2 - k^2). Its own derivatives, in k, v1 and v2, give `angle` second ones."""
    r1, r2 = safe_sqrt(v1), safe_sqrt(v2)
    delta = relative_gap(k, r1, r2, gap)
    return r1 * r2 * safe_sqrt(delta * (2 - delta))


@_sine.defjvp
def _sine_jvp(primals, tangents):
    k, v1, v2, gap = primals
    dk, dv1, dv2, _ = tangents
    sine = _sine(k, v1, v2, gap)
    positive = sine > 0
    inverse = jnp.where(positive, 1 / jnp.where(positive, sine, 1), 0)
    product = safe_sqrt(v1) * safe_sqrt(v2)
    relative_dv = _relative(dv1, v1) + _relative(dv2, v2)
    tangent = product * (product * inverse) * relative_dv / 2 - k * inverse * dk
    return sine, jnp.broadcast_to(tangent, sine.shape)


def _relative(dv: Any, v: Any) -> Any:
    positive = v > 0
    return jnp.where(positive, dv / jnp.where(positive, v, 1), 0)


def _horner(coefficients: tuple[float, ...], y: Any) -> Any:
    out = coefficients[-1]  # a number: an array of it would be written in a layout of its own
    for c in coefficients[-2::-1]:
        out = out * y + c
    return out


@functools.cache
def _polynomials(degree: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Coefficients of P and Q in y = 2 delta - 1, lowest first."""

    def fit(values_at):
        series = np.polynomial.chebyshev.chebinterpolate(lambda y: values_at((1 + y) / 2), degree)
        return tuple(map(float, np.polynomial.chebyshev.cheb2poly(series)))

    def p(delta):
        x = np.sqrt(delta / 2)
        return np.arcsin(x) / x

    def q(delta):
        phi = 2 * np.arcsin(np.sqrt(delta / 2))
        direct = np.sin(phi) - phi * np.cos(phi)
        n = np.arange(1, 16)
        factorials = np.cumprod(np.arange(1, 32, dtype=float))
        terms = (-1.0) ** (n + 1) * 2 * n / factorials[2 * n]
        series = np.sum(terms * phi[:, None] ** (2 * n + 1), -1)
        return np.where(phi < 1, series, direct) / np.sqrt(2 * delta) ** 3

    return fit(p), fit(q)
