"""Epps-Pulley: how far the sample's characteristic function lies from the normal one."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poster_jax.core.typing import Array
from poster_jax.gradient_noise.normality._samples import (
    Measured,
    NormalityTest,
    as_result,
    check_samples,
    measure_samples,
)

__all__ = ["EPPS_PULLEY_SIZES", "epps_pulley", "epps_pulley_of_centred", "limit_eigenvalues"]

EPPS_PULLEY_SIZES = (3, None)

# exp(-a^2 / 2) is below the rounding of the dtype.
_REACH = {4: 6.0, 8: 8.6}
# The limit law on a grid of T: far beyond its 1e-9 quantile, finer than its density bends.
_LARGEST, _GRID, _SMALLEST_PVALUE = 8.0, 2**16, 1e-9


def epps_pulley(samples: Any, *, axis: int = -1) -> NormalityTest:
    """Is each sample normal? Sees every departure, heavy tails and skewness alike.

    With z the sample of mean 0 and variance 1 (over M) and f its characteristic function,

        T = M integral |f(t) - exp(-t^2/2)|^2 exp(-t^2/2) dt / sqrt(2 pi)
          = (1/M) sum_jk exp(-(z_j - z_k)^2/2) - sqrt(2) sum_j exp(-z_j^2/4) + M / sqrt(3).

    The first form is computed, by a sum over equidistant t that is exact to rounding: no two of M
    standardised numbers are further apart than sqrt(2 M), which bounds how fast f oscillates. It
    takes some sqrt(M) evaluations a number, where the second form takes M. The p-value is that of
    the limit of many numbers: of 20 normal numbers a test at 5 % rejects 4.5 %, of 10 3.9 %.

    Args:
      samples: real, any shape, float16 to float64.
      axis: along which one sample lies; M numbers.

    Returns:
      NormalityTest with the statistic T, of the shape of `samples` without `axis`.

    Raises:
      ValueError: fewer than 3 numbers; no sample; no such axis.
      TypeError: samples are no real numbers; axis is no integer.

    Source: Epps, Pulley 1983, "A test for normality based on the empirical characteristic
      function", Biometrika 70(3); Baringhaus, Henze 1988, Metrika 35, for the limit law.

    Example:
      >>> found = epps_pulley(jnp.array([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 9.0]]))
      >>> [round(float(t), 3) for t in found.statistic]
      [0.036, 0.342]
    """
    samples = check_samples(samples, axis, "epps_pulley", *EPPS_PULLEY_SIZES)
    return as_result(measure_samples((epps_pulley_of_centred,), samples)[0])


def epps_pulley_of_centred(d: Array) -> Measured:
    """T and the p-value of columns (M, columns) of mean zero."""
    size = len(d)
    z = d / jnp.sqrt(jnp.mean(d**2, axis=0))
    reach = _REACH[d.dtype.itemsize]
    # A sum with a step counts what the integral gives at x a second time, at x + 2 pi / step: that
    # is exp(-x^2/2) at x = z_j - z_k, exp(-x^2/4) at x = z_j, and exp(-x^2/6) at x = 0.
    wide = math.sqrt(2 * size) + reach
    wide = max(wide, math.sqrt(size) + math.sqrt(2) * reach, math.sqrt(3) * reach)
    step = 2 * math.pi / wide
    t = step * np.arange(1, math.ceil(reach / step) + 1)  # the integrand is even, and 0 at 0
    normal = np.exp(-(t**2) / 2)
    weights = size * 2 * step * normal / math.sqrt(2 * math.pi)

    def add(total: Array, node: Any) -> tuple[Array, None]:
        t, normal, weight = node
        even = jnp.mean(jnp.cos(t * z), axis=0) - normal
        odd = jnp.mean(jnp.sin(t * z), axis=0)
        return total + weight * (even**2 + odd**2), None

    nodes = tuple(jnp.asarray(v, d.dtype) for v in (t, normal, weights))
    statistic, _ = jax.lax.scan(add, jnp.zeros_like(z[0]), nodes)
    return Measured(statistic, _pvalue(statistic))


def _pvalue(statistic: Array) -> Array:
    known, logs, slope = _limit_law()
    known, logs = (jnp.asarray(v, statistic.dtype) for v in (known, logs))
    beyond = jnp.maximum(statistic - known[-1], 0)
    return jnp.exp(jnp.interp(statistic, known, logs) - slope * beyond)


@functools.cache
def limit_eigenvalues() -> np.ndarray:
    """The weights of the independent chi-squared terms that T becomes for many numbers, descending.

    They are the eigenvalues of the covariance of `sqrt(M) (f(t) - exp(-t^2/2))`, mean and variance
    estimated, under the weight of the integral.
    """
    t, w = np.polynomial.hermite_e.hermegauss(80)
    root, (s, t) = np.sqrt(w / w.sum()), np.meshgrid(t, t)
    kernel = np.exp(-((s - t) ** 2) / 2)
    kernel -= (1 + s * t + (s * t) ** 2 / 2) * np.exp(-(s**2 + t**2) / 2)
    values = np.linalg.eigvalsh(root[:, None] * kernel * root)[::-1]
    return values[values > 1e-13]


@functools.cache
def _limit_law() -> tuple[np.ndarray, np.ndarray, float]:
    """T, log P(limit > T) down to 1e-9, and how fast the logarithm falls from there on."""
    values = limit_eigenvalues()
    # The density has as many terms as there are eigenvalues and is smooth: its Fourier series over
    # [0, 8) ends within the grid, and no mass of 1e-15 is left beyond.
    u = 2 * np.pi * np.arange(_GRID // 2 + 1) / _LARGEST
    characteristic = np.exp(-0.5 * np.log1p(-2j * values[:, None] * u).sum(axis=0))
    density = np.fft.irfft(np.conj(characteristic), _GRID) * _GRID / _LARGEST
    # The upper integral by trapezoids, from the far end.
    spacing = _LARGEST / _GRID
    above = spacing * (np.cumsum(density[::-1])[::-1] - density / 2)
    last = int(np.argmax(above < _SMALLEST_PVALUE))
    kept = slice(0, last, 8)
    known = spacing * np.arange(_GRID)[kept]
    logs = np.log(np.minimum(above[kept], 1))
    return known, logs, 1 / (2 * values[0])
