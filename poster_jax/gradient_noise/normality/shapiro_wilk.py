"""Shapiro-Wilk: how straight the normal quantile plot is."""

import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from scipy.special import ndtri

from poster_jax.core.checks import check_count
from poster_jax.core.typing import Array
from poster_jax.gradient_noise.normality._samples import (
    Measured,
    NormalityTest,
    check_samples,
    measure_sorted,
)

__all__ = ["SHAPIRO_SIZES", "royston_coefficients", "shapiro_wilk", "shapiro_wilk_of_sorted"]

SHAPIRO_SIZES = (3, 5000)  # where Royston fitted his approximations

# Polynomials in M^-1/2 that correct the last two coefficients, lowest power first.
_LAST = (0.0, 0.221157, -0.147981, -2.071190, 4.434685, -2.706056)
_LAST_BUT_ONE = (0.0, 0.042981, -0.293762, -1.752461, 5.682633, -3.582633)
# Mean and logarithm of the standard deviation of ln(1 - W): in ln M from 12 on, below it in M.
_LARGE_MEAN = (-1.5861, -0.31082, -0.083751, 0.0038915)
_LARGE_LOG_SD = (-0.4803, -0.082676, 0.0030302)
_SMALL_MEAN = (0.5440, -0.39978, 0.025054, -6.714e-4)
_SMALL_LOG_SD = (1.3822, -0.77857, 0.062767, -0.0020322)


def shapiro_wilk(samples: Any, *, axis: int = -1) -> NormalityTest:
    """Is each sample normal? The most powerful common answer for 3 to 5,000 numbers.

    `W = (a's)^2 / |s - mean|^2` of the sorted sample s. float32 is enough: where W is near 1 the
    p-value comes from `1 - W = |d - (a'd) a|^2 / |d|^2` with d = s - mean and a'a = 1, whose
    relative error at 1,000 numbers is 6e-7; that of the subtraction is 4e-4. Differs from scipy in
    that a sample of equal numbers gives NaN, not W = 1, and more than 5,000 numbers an error, not a
    warning, because the fit of the p-value ends there.

    Args:
      samples: real, any shape, float16 to float64.
      axis: along which one sample lies; M numbers.

    Returns:
      NormalityTest, of the shape of `samples` without `axis`.

    Raises:
      ValueError: fewer than 3 or more than 5,000 numbers; no sample; no such axis.
      TypeError: samples are no real numbers; axis is no integer.

    Source: Royston 1995, "Remark AS R94", Applied Statistics 44(4).

    Example:
      >>> found = shapiro_wilk(jnp.array([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 9.0]]))
      >>> [round(float(p), 2) for p in found.pvalue]
      [0.97, 0.0]
    """
    samples = check_samples(samples, axis, "shapiro_wilk", *SHAPIRO_SIZES)
    (measured,) = measure_sorted((shapiro_wilk_of_sorted,), samples)
    return NormalityTest(1 - measured.departure, measured.pvalue)


@functools.lru_cache(maxsize=32)
def _coefficients(num_samples: int) -> np.ndarray:
    size = num_samples
    if size == 3:
        return np.array([-1.0, 0.0, 1.0]) / math.sqrt(2)
    m = ndtri((np.arange(1, size + 1) - 0.375) / (size + 0.25))
    m = (m - m[::-1]) / 2  # antisymmetric to the last bit
    total, u = m @ m, size**-0.5
    ends = [m[-1] / math.sqrt(total) + _polynomial(_LAST, u)]
    if size > 5:
        ends.append(m[-2] / math.sqrt(total) + _polynomial(_LAST_BUT_ONE, u))
    k = len(ends)
    phi = (total - 2 * np.sum(m[-k:] ** 2)) / (1 - 2 * np.sum(np.square(ends)))
    a = m / math.sqrt(phi)
    a[-k:] = ends[::-1]
    a[:k] = -np.array(ends)
    a.flags.writeable = False
    return a


def royston_coefficients(num_samples: int) -> np.ndarray:
    """The coefficients a of W: antisymmetric, ascending, a'a = 1.

    Args:
      num_samples: M.

    Returns:
      (M,), numpy float64.

    Raises:
      ValueError: M below 3 or above 5,000.
      TypeError: M is no integer.

    Source: Royston 1995, "Remark AS R94", Applied Statistics 44(4).

    Example:
      >>> royston_coefficients(4).round(4).tolist()
      [-0.6873, -0.1663, 0.1663, 0.6873]
    """
    num_samples = check_count("num_samples", num_samples, minimum=SHAPIRO_SIZES[0])
    if num_samples > SHAPIRO_SIZES[1]:
        raise ValueError(f"num_samples must be at most {SHAPIRO_SIZES[1]}, got {num_samples}.")
    return _coefficients(num_samples)


def shapiro_wilk_of_sorted(d: Array) -> Measured:
    """1 - W and the p-value of sorted columns (M, columns) of mean zero."""
    a = jnp.asarray(_coefficients(len(d)), d.dtype)
    # A product, not a sum: it reads the columns once, with no array of their size written between.
    residual = d - a[:, None] * jnp.matmul(a, d, precision="highest")
    one_minus_w = jnp.sum(residual**2, axis=0) / jnp.sum(d**2, axis=0)
    return Measured(one_minus_w, _pvalue(one_minus_w, len(d)))


def _pvalue(q: Array, size: int) -> Array:
    if size == 3:
        # arcsin(sqrt(W)) from both legs of the triangle: exact at both ends
        angle = jnp.arctan2(jnp.sqrt(1 - q), jnp.sqrt(q))
        return jnp.clip(6 / math.pi * (angle - math.pi / 3), 0, 1)
    y = jnp.log(q)
    if size >= 12:
        x = math.log(size)
        mean, sd = _polynomial(_LARGE_MEAN, x), math.exp(_polynomial(_LARGE_LOG_SD, x))
        return ndtr((mean - y) / sd)
    gamma = -2.273 + 0.459 * size
    mean, sd = _polynomial(_SMALL_MEAN, size), math.exp(_polynomial(_SMALL_LOG_SD, size))
    beyond = y >= gamma
    y = -jnp.log(jnp.where(beyond, 1, gamma - y))
    return jnp.where(beyond, 0, ndtr((mean - y) / sd))


def _polynomial(coefficients: tuple[float, ...], x: float | int) -> float:
    return float(np.polynomial.polynomial.polyval(x, coefficients))
