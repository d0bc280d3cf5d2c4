"""Polynomial nonlinearities: their duals are polynomials in k, v1 and v2.

Expanding sum_n c_n x^n in Hermite polynomials of x / sqrt(v) gives

    E[phi(u) phi(w)] = sum_l p_l(v1) p_l(v2) k^l,
    p_l(v) = sum_i c_{2i+l} (2i+l)! / (2^i i! sqrt(l!)) v^i.

Source: Daniely, Frostig & Singer 2016; Han et al. 2022 (arXiv 2209.04121), appendix.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from poster_jax.kernels.stax._elementwise import Dual, elementwise, smooth
from poster_jax.kernels.stax.layer import layer
from poster_jax.kernels.stax.masking import supports_masking

__all__ = ["Hermite", "Monomial", "Polynomial"]


@layer
@supports_masking(remask_kernel=False)
def Polynomial(coef: Sequence[float]) -> Any:  # noqa: N802
    """coef[0] + coef[1] x + coef[2] x^2 + ...

    Args:
      coef: coefficients, lowest first.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Example:
      >>> _, apply_fn, _ = Polynomial([1.0, 0.0, 2.0])
      >>> apply_fn((), jnp.array([3.0])).tolist()
      [19.0]
    """
    coefficients = np.asarray(coef)

    def fn(x):
        return jnp.polyval(jnp.asarray(coefficients[::-1]), x)

    return elementwise(fn, _dual(coefficients), f"Polynomial({coef})")


@layer
@supports_masking(remask_kernel=False)
def Monomial(degree: int) -> Any:  # noqa: N802
    """x^degree.

    Args:
      degree: 0 to 5.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Raises:
      NotImplementedError: another degree.

    Example:
      >>> _, apply_fn, _ = Monomial(3)
      >>> apply_fn((), jnp.array([2.0])).tolist()
      [8.0]
    """
    if degree not in range(6):
        raise NotImplementedError(f"degree must be an integer from 0 to 5, got {degree}.")
    dual = _dual(np.eye(degree + 1)[degree])
    return elementwise(lambda x: x**degree, dual, f"Monomial({degree})")


@layer
@supports_masking(remask_kernel=True)
def Hermite(degree: int) -> Any:  # noqa: N802
    """The normalised Hermite polynomial, for inputs of variance 1: covariance k^degree.

    Args:
      degree: at least 0.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`. The kernel is right only where the inputs have unit
      variance, which is not checked.

    Raises:
      NotImplementedError: a negative degree.

    Example:
      >>> _, apply_fn, _ = Hermite(2)
      >>> round(float(apply_fn((), jnp.array([0.0]))[0]), 3)
      -0.707
    """
    if degree < 0:
        raise NotImplementedError(f"degree must be at least 0, got {degree}.")
    power_series = np.polynomial.hermite_e.herme2poly([0] * degree + [1])[::-1]

    def fn(x):
        return jnp.polyval(jnp.asarray(power_series), x) / math.sqrt(math.factorial(degree))

    def cross(k, v1, v2, gap):
        slope = jnp.zeros_like(k) if degree == 0 else degree * k ** (degree - 1)
        return k**degree, slope

    def assuming_unit_variance(*args):
        warnings.warn(
            "Hermite assumes inputs of variance 1 (jnp.std(x, axis=channel_axis) == 1).",
            stacklevel=2,
        )
        return cross(*args)

    dual = smooth(assuming_unit_variance, lambda v: v**degree)
    return elementwise(fn, dual, f"Hermite({degree})")


def _dual(coef: np.ndarray) -> Dual:
    weights = [_hermite_weights(coef, order) for order in range(len(coef))]

    def term(order, v):
        return jnp.polyval(jnp.asarray(weights[order][::-1]).astype(v.dtype), v)

    def cross(k, v1, v2, gap):
        value = slope = jnp.zeros_like(k)
        for order in range(len(coef)):
            both = term(order, v1) * term(order, v2)
            value = value + both * k**order
            if order:
                slope = slope + order * both * k ** (order - 1)
        return value, slope

    def variance(v):
        return sum(
            (term(order, v) ** 2 * v**order for order in range(len(coef))), jnp.zeros_like(v)
        )

    return smooth(cross, variance)


def _hermite_weights(coef: np.ndarray, order: int) -> np.ndarray:
    """The coefficients of p_l(v), l = order, lowest first."""
    return np.array(
        [
            c * math.factorial(order + 2 * i)
            / (2**i * math.factorial(i) * math.sqrt(math.factorial(order)))
            for i, c in enumerate(coef[order::2])
        ]
    )  # fmt: skip
