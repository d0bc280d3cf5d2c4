"""How the gap sqrt(v1 v2) - |k| moves through a smooth nonlinearity.

Let F(k, v1, v2) = E[phi(u) phi(w)], G its slope in k, R(v)^2 = F(v, v, v), r_i = sqrt(v_i), and g
the gap of k >= 0. Then

    R1 R2 - F(k) = [F(r1 r2) - F(r1 r2 - g)] + [R1 R2 - F(r1 r2)].

The first bracket is an integral of G, by the two points of Gauss. The second is that of fully
correlated u = r1 z and w = r2 z, so of the angle between the functions phi(r1 z), phi(r2 z) of z:

    1/2 (r1 - r2)^2 (E[z^2 phi'(r z)^2] - (dR/dr)^2),    E[z^2 phi'^2] = G + 2 v dG/dv  (Stein),

with G(v) = G(v, v, v), for r between r1 and r2. Both are sums of positive terms, where the
difference itself has lost its digits.

Source: this library.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.kernels.stax._carried import equal_outputs, safe_sqrt

__all__ = ["gap_of_smooth"]

# A difference keeps its digits while it is more than this part of what it is the difference of.
_CLOSE = 3e-2


def gap_of_smooth(
    cross: Callable[..., Any], variance: Any, k: Any, v1: Any, v2: Any, gap: Any, value: Any, *,
    symmetric: bool,
) -> Any:  # fmt: skip
    """The new gap.

    Args:
      cross: `(k, v1, v2, gap) -> (value, slope)`.
      variance: `v -> F(v, v, v)`.
      k: covariances.
      v1: variances, which broadcast against `k`.
      v2: the same of the other outputs.
      gap: of `k`.
      value: new covariances.
      symmetric: whether phi is odd or even: then opposite outputs are near like equal ones.
    """
    k, v1, v2, value = jax.lax.stop_gradient((k, v1, v2, value))
    eps = jnp.finfo(k.dtype).eps
    size = safe_sqrt(variance(v1)) * safe_sqrt(variance(v2))
    difference = jnp.maximum(size - jnp.abs(value), 0)
    alike = (k >= 0) | symmetric
    equal = alike & equal_outputs(k, v1, v2, gap)
    close = alike & ~equal & (difference < _CLOSE * size)

    def from_sums(_):
        near, far = (gap * (0.5 + side / math.sqrt(12)) for side in (-1, 1))
        slope1, slope2 = (
            jnp.abs(cross(jnp.abs(k) + gap - part, v1, v2, part)[1]) for part in (near, far)
        )
        excess1, excess2 = (_radial(cross, variance, v) for v in (v1, v2))
        slope, excess = (slope1 + slope2) / 2, (excess1 + excess2) / 2
        apart = (safe_sqrt(v1) - safe_sqrt(v2)) ** 2 / 2 * excess
        sums = gap * slope + apart
        # What each way may be wrong by; the first from how much slope and excess vary on the way.
        wrong = gap * slope * _ratio(slope1 - slope2, slope) ** 4 / 100
        wrong = wrong + apart * _ratio((excess1 - excess2) ** 2, excess**2)
        return jnp.where(close & (wrong < 4 * eps * size), sums, difference)

    found = jax.lax.cond(jnp.any(close), from_sums, lambda _: difference, None)
    return jax.lax.stop_gradient(jnp.where(equal, 0, found))


def _radial(cross: Any, variance: Any, v: Any) -> Any:
    """E[z^2 phi'(r z)^2] - (dR/dr)^2 >= 0."""
    slope, d_slope = jax.jvp(
        lambda v: cross(v, v, v, jnp.zeros_like(v))[1], (v,), (jnp.ones_like(v),)
    )
    square, d_square = jax.jvp(variance, (v,), (jnp.ones_like(v),))
    return jnp.maximum(slope + 2 * v * d_slope - _ratio(v * d_square**2, square), 0)


def _ratio(a: Any, b: Any) -> Any:
    return a / jnp.where(b > 0, b, 1)
