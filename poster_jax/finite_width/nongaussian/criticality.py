"""At which variances do signals neither grow nor die, so that depth / width alone is expanded in?

Of one input K_{l+1} = C_b + C_W E[phi^2]. Two slopes say what becomes of a small change: of the
length, chi_parallel = C_W d E[phi^2] / dK, and of the angle, chi_perp = C_W E[phi'^2]. Both are 1
at a fixed point K exactly where E[phi phi''] = 0 there, with C_W = 1 / E[phi'^2].
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from poster_jax.core.checks import check_count, check_positive
from poster_jax.core.precision import full_precision
from poster_jax.finite_width.nongaussian._dual import variance_slopes
from poster_jax.finite_width.nongaussian.activation import Activation, activation

__all__ = ["Criticality", "Susceptibilities", "critical_initialization", "susceptibilities"]

_RANGE = np.geomspace(1e-2, 1e2, 81)


class Criticality(NamedTuple):
    """Where a network is critical.

    Attributes:
      C_W: variance of the weights times their number of inputs; sigma_W is its root.
      C_b: variance of the biases.
      K: the fixed point: a number; 0 where lengths shrink to it like 1 / depth; NaN where every
        length stays ("scale-invariant").
      kind: "scale-invariant" (ReLU, linear), "zero" (tanh, sin, erf) or "nonzero" (GELU, SiLU).
    """

    C_W: float
    C_b: float
    K: float
    kind: str


class Susceptibilities(NamedTuple):
    """Slopes of the recursion of one input; both are 1 at criticality.

    Attributes:
      parallel: dK' / dK, of lengths.
      perpendicular: C_W E[phi'^2], of angles.
      K: C_b + C_W E[phi^2], the next kernel.
    """

    parallel: Any
    perpendicular: Any
    K: Any


@full_precision
def susceptibilities(
    phi: str | Callable[..., Any] | Activation, K: Any, *, C_W: Any, C_b: Any = 0.0,
    degree: int = 160,
) -> Susceptibilities:  # fmt: skip
    """How a layer stretches small changes of length and of angle.

    Args:
      phi: as in `activation`.
      K: variances of the preactivations, above 0, any shape.
      C_W: variance of the weights times their number of inputs.
      C_b: variance of the biases.
      degree: quadrature points.

    Returns:
      Susceptibilities, each shaped like K.

    Raises:
      ValueError: K or C_W not above 0, C_b negative, an unknown activation.

    Source: Poole et al. 2016 (arXiv 1606.05340); Roberts, Yaida & Hanin 2021 (arXiv 2106.10165),
      chapter 5.

    Example:
      >>> [round(float(chi), 6) for chi in susceptibilities("relu", jnp.ones(()), C_W=2.0)]
      [1.0, 1.0, 1.0]
    """
    check_positive("K", K)
    check_positive("C_W", C_W)
    check_positive("C_b", C_b, zero_allowed=True)
    check_count("degree", degree, minimum=8)
    K = jnp.asarray(K, float)
    value, slope, steepness = variance_slopes(activation(phi), K.reshape(-1), degree)
    parts = (C_W * slope, C_W * steepness, C_b + C_W * value)
    return Susceptibilities(*(part.reshape(K.shape) for part in parts))


@full_precision
def critical_initialization(phi: str | Callable[..., Any] | Activation) -> Criticality:
    """The variances at which signals neither grow nor die with depth.

    Args:
      phi: as in `activation`.

    Returns:
      Criticality, of plain numbers. Where there are several the one at K = 0 is taken if it is
      stable, else that of the smallest K.

    Raises:
      ValueError: the activation has no critical point (softplus, sigmoid, exp).

    Source: Roberts, Yaida & Hanin 2021 (arXiv 2106.10165), chapter 5: scale-invariant activations,
      the K* = 0 class and half-stable fixed points.

    Example:
      >>> critical_initialization("relu")[:2], critical_initialization("tanh").kind
      ((2.0, 0.0), 'zero')
    """
    chosen = activation(phi)
    with jax.enable_x64(True):
        mismatch = jax.jit(partial(_mismatch, chosen))
        values = np.asarray(mismatch(jnp.asarray(_RANGE)))
        if np.abs(values).max() < 1e-9:
            slope = float(_perpendicular(chosen, 1.0))
            return Criticality(round(1 / slope, 12), 0.0, float("nan"), "scale-invariant")
        at_zero = float(chosen.fn(jnp.zeros(())))
        slope = float(jax.jvp(chosen.fn, (jnp.zeros(()),), (jnp.ones(()),))[1])
        # Stable: E[phi phi''] < 0 nearby, so that lengths above 0 shrink towards it.
        if not chosen.kinked and abs(at_zero) < 1e-12 and abs(slope) > 1e-12 and values[0] < 0:
            return Criticality(1 / slope**2, 0.0, 0.0, "zero")
        for index in np.flatnonzero(values[:-1] * values[1:] < 0):
            found: Any = scipy.optimize.brentq(
                lambda K: float(mismatch(jnp.asarray([K]))[0]),
                *_RANGE[[index, index + 1]], xtol=1e-13, rtol=1e-13,
            )  # fmt: skip
            K = float(found)
            C_W = float(1 / _perpendicular(chosen, K))
            square, *_ = variance_slopes(chosen, jnp.asarray([K]), _DEGREE)
            C_b = K - C_W * float(square[0])
            if C_b >= 0:
                return Criticality(C_W, C_b, K, "nonzero")
    raise ValueError(
        f"phi must have a critical point, got {chosen.name!r}: no variances keep both "
        "susceptibilities at 1 for K up to 100."
    )


_DEGREE = 400


def _perpendicular(phi: Activation, K: float) -> Any:
    return variance_slopes(phi, jnp.asarray([K]), _DEGREE)[2][0]


def _mismatch(phi: Activation, K: Any) -> Any:
    """E[phi phi''] over E[phi'^2]: chi_parallel / chi_perp - 1."""
    _, slope, steepness = variance_slopes(phi, K, _DEGREE)
    return slope / steepness - 1
