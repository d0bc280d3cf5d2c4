"""Anderson-Darling: how far the sample's distribution function lies from the normal one."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from poster_jax.core.checks import check_choice, check_count
from poster_jax.core.typing import Array
from poster_jax.gradient_noise.normality._normal_tails import log_normal_tails
from poster_jax.gradient_noise.normality._samples import (
    Measured,
    NormalityTest,
    as_result,
    check_samples,
    measure_sorted,
)

__all__ = [
    "ANDERSON_SIZES",
    "STEPHENS_SIZES",
    "anderson_darling",
    "anderson_darling_critical_values",
    "anderson_darling_of_sorted",
    "stephens_1974_of_sorted",
]

ANDERSON_SIZES = (3, None)
STEPHENS_SIZES = (4, None)  # the factor of 1974 is negative for three numbers

_LEVELS = (0.15, 0.10, 0.05, 0.025, 0.01)
# Critical values in the limit of many numbers, and the factor 1 + b/M + c/M^2 that divides them.
_TABLES = {
    "dagostino": ((0.561, 0.631, 0.752, 0.873, 1.035), (0.75, 2.25)),
    "stephens1974": ((0.576, 0.656, 0.787, 0.918, 1.092), (4.0, -25.0)),
}
# The p-value by pieces of A*: upper end, polynomial, and whether it is the p-value's complement.
_PIECES = (
    (0.2, (-13.436, 101.14, -223.73), True),
    (0.34, (-8.318, 42.796, -59.938), True),
    (0.6, (0.9177, -4.279, -1.38), False),
    (13.0, (1.2937, -5.709, 0.0186), False),
)
_LOG_ZERO = -1000.0  # its exponential is 0 also in float64


def anderson_darling(
    samples: Any, *, axis: int = -1, critical_values: str = "dagostino"
) -> NormalityTest:
    """Is each sample normal? Weighs the tails, and takes samples of any size.

    With u_i = Phi((s_i - mean) / sd) in order, p_i = (i - 1/2) / M and h the entropy of a coin,

        A2 = -M - (1/M) sum (2i-1) [log u_i + log(1 - u_{M+1-i})]
           = 2 sum KL(p_i || u_i) + 2 sum h(p_i) - M,

    the mean and standard deviation (M - 1) taken from the sample. The second form is computed: its
    terms are as small as the result, where the first loses log10(M) digits; float32 keeps A2 to
    1e-5. The p-value is that of A* = A2 (1 + 0.75/M + 2.25/M^2).

    Args:
      samples: real, any shape, float16 to float64.
      axis: along which one sample lies; M numbers.
      critical_values: "dagostino", right; or "stephens1974", to reject as papers did that used
        scipy before 1.17. That table has five values, 15 % to 1 %; between and beyond them log p is
        linear, up to p = 1, so that p-values above 15 % say little.

    Returns:
      NormalityTest with the statistic A2 (not A*, as scipy), of the shape of `samples` without
      `axis`.

    Raises:
      ValueError: fewer than 3 numbers, or fewer than 4 by the table of 1974; no sample; no such
        axis or table.
      TypeError: samples are no real numbers; axis is no integer.

    Source: Anderson and Darling 1954; D'Agostino 1986, in "Goodness-of-fit techniques", table 4.9;
      Stephens 1974, JASA 69, table 1.

    Example:
      >>> found = anderson_darling(jnp.array([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 9.0]]))
      >>> [round(float(a), 2) for a in found.statistic]
      [0.16, 0.83]
    """
    check_choice("critical_values", critical_values, _TABLES)
    old = critical_values == "stephens1974"
    sizes = STEPHENS_SIZES if old else ANDERSON_SIZES
    samples = check_samples(samples, axis, "anderson_darling", *sizes)
    measure = stephens_1974_of_sorted if old else anderson_darling_of_sorted
    return as_result(measure_sorted((measure,), samples)[0])


def anderson_darling_critical_values(
    num_samples: int, *, table: str = "dagostino"
) -> tuple[np.ndarray, np.ndarray]:
    """What A2 must exceed at each level.

    Papers that used scipy before 1.17 rejected by `stephens1974`, whose values are too large: its
    5 % is really 4.1 % for many numbers.

    Args:
      num_samples: M.
      table: "dagostino" or "stephens1974".

    Returns:
      (levels, critical values of A2), numpy arrays of 5, from the level 15 % to 1 %.

    Raises:
      ValueError: no such table; M below 3, or below 4 where Stephens' factor is not positive.
      TypeError: M is no integer.

    Source: D'Agostino 1986, table 4.7; Stephens 1974, JASA 69, table 1 (scipy/scipy#23950).

    Example:
      >>> levels, values = anderson_darling_critical_values(1000)
      >>> float(levels[2]), round(float(values[2]), 3)
      (0.05, 0.751)
    """
    check_choice("table", table, _TABLES)
    minimum = (ANDERSON_SIZES if table == "dagostino" else STEPHENS_SIZES)[0]
    num_samples = check_count("num_samples", num_samples, minimum=minimum)
    return np.array(_LEVELS), np.array(_TABLES[table][0]) / _factor(table, num_samples)


def anderson_darling_of_sorted(d: Array) -> Measured:
    """A2 and the p-value of sorted columns (M, columns) of mean zero."""
    statistic = _statistic(d)
    return Measured(statistic, _pvalue(statistic * _factor("dagostino", len(d))))


def stephens_1974_of_sorted(d: Array) -> Measured:
    """The same by the table of 1974."""
    statistic = _statistic(d)
    return Measured(statistic, _pvalue_1974(statistic * _factor("stephens1974", len(d))))


def _factor(table: str, size: int) -> float:
    """What makes A2 of M numbers the A* of many."""
    _, (b, c) = _TABLES[table]
    return 1 + b / size + c / size**2


def _statistic(d: Array) -> Array:
    size = len(d)
    p = (np.arange(1, size + 1) - 0.5) / size
    entropy = -p * np.log(p) - (1 - p) * np.log1p(-p)
    p, h = (jnp.asarray(v, d.dtype)[:, None] for v in (p, entropy))
    z = d / jnp.sqrt(jnp.sum(d**2, axis=0) / (size - 1))
    lower, upper = log_normal_tails(jnp.abs(z))
    far = jnp.where(z < 0, p, 1 - p)  # the share of the coin's side that lies beyond z
    divergence = -jnp.sum(far * lower + (1 - far) * upper + h, axis=0)
    return 2 * divergence + (2 * math.fsum(entropy) - size)


def _pvalue(a: Array) -> Array:
    pvalue = jnp.zeros_like(a)
    for end, (c0, c1, c2), complement in reversed(_PIECES):
        value = jnp.exp(c0 + c1 * a + c2 * a**2)
        pvalue = jnp.where(a < end, 1 - value if complement else value, pvalue)
    return jnp.where(jnp.isnan(a), jnp.nan, pvalue)


def _pvalue_1974(a: Array) -> Array:
    values, log_levels = np.array(_TABLES["stephens1974"][0]), np.log(_LEVELS)
    slopes = np.diff(log_levels) / np.diff(values)
    # On from the first and the last value with the slope beside it, to p = 1 and to p = 0
    first = values[0] - log_levels[0] / slopes[0]
    last = values[-1] + (_LOG_ZERO - log_levels[-1]) / slopes[-1]
    known = np.concatenate([[first], values, [last]])
    logs = np.concatenate([[0.0], log_levels, [_LOG_ZERO]])
    return jnp.exp(jnp.interp(a, jnp.asarray(known, a.dtype), jnp.asarray(logs, a.dtype)))
