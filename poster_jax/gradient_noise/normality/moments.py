"""Skewness and kurtosis, and the two tests of normality that are made of them."""

import math
from typing import Any

import jax.numpy as jnp

from poster_jax.core.typing import Array
from poster_jax.gradient_noise.normality._samples import (
    Measured,
    NormalityTest,
    as_result,
    check_samples,
    measure_samples,
)

__all__ = [
    "DAGOSTINO_SIZES",
    "JARQUE_BERA_SIZES",
    "dagostino_k2",
    "dagostino_k2_of_centred",
    "excess_kurtosis",
    "jarque_bera",
    "jarque_bera_of_centred",
    "kurtosis_of_centred",
    "skewness",
    "skewness_of_centred",
]

DAGOSTINO_SIZES = (8, None)  # the transformed skewness has no variance below
JARQUE_BERA_SIZES = (3, None)


def skewness(samples: Any, *, axis: int = -1) -> Any:
    """The third standardised moment, `m3 / m2^(3/2)`; 0 for normal samples, sd `sqrt(6 / M)`.

    Args:
      samples: real, any shape.
      axis: along which one sample lies.

    Returns:
      The shape of `samples` without `axis`; NaN for equal numbers.

    Raises:
      ValueError: fewer than 3 numbers; no sample; no such axis.
      TypeError: samples are no real numbers.

    Source: Joanes and Gill 1998, "Comparing measures of sample skewness and kurtosis": g1.

    Example:
      >>> round(float(skewness(jnp.array([0.0, 0.0, 0.0, 1.0]))), 4)
      1.1547
    """
    return measure_samples(
        (skewness_of_centred,), check_samples(samples, axis, "skewness", 3, None)
    )[0]


def excess_kurtosis(samples: Any, *, axis: int = -1) -> Any:
    """The fourth standardised moment less 3; 0 for normal samples, sd `sqrt(24 / M)`.

    Args:
      samples: real, any shape.
      axis: along which one sample lies.

    Returns:
      The shape of `samples` without `axis`; NaN for equal numbers.

    Raises:
      ValueError: fewer than 3 numbers; no sample; no such axis.
      TypeError: samples are no real numbers.

    Source: Joanes and Gill 1998, "Comparing measures of sample skewness and kurtosis": g2.

    Example:
      >>> float(excess_kurtosis(jnp.array([-1.0, 1.0, -1.0, 1.0])))
      -2.0
    """
    samples = check_samples(samples, axis, "excess_kurtosis", 3, None)
    return measure_samples((kurtosis_of_centred,), samples)[0]


def dagostino_k2(samples: Any, *, axis: int = -1) -> NormalityTest:
    """D'Agostino and Pearson: are skewness and kurtosis together those of a normal sample?

    `K2 = z_skewness^2 + z_kurtosis^2`, both transformed to normal scores; chi-squared with two
    degrees of freedom.

    Args:
      samples: real, any shape.
      axis: along which one sample lies.

    Returns:
      NormalityTest, of the shape of `samples` without `axis`.

    Raises:
      ValueError: fewer than 8 numbers; no sample; no such axis.
      TypeError: samples are no real numbers.

    Source: D'Agostino, Belanger and D'Agostino 1990, The American Statistician 44(4); Anscombe and
      Glynn 1983 for the kurtosis.

    Example:
      >>> bool(dagostino_k2(jnp.arange(50.0) ** 4).pvalue < 0.01)
      True
    """
    samples = check_samples(samples, axis, "dagostino_k2", *DAGOSTINO_SIZES)
    return as_result(measure_samples((dagostino_k2_of_centred,), samples)[0])


def jarque_bera(samples: Any, *, axis: int = -1) -> NormalityTest:
    """Jarque and Bera: `M / 6 (skewness^2 + kurtosis^2 / 4)`, chi-squared with two degrees.

    For thousands of numbers; with fewer the p-value is far too large or small: take `dagostino_k2`.

    Args:
      samples: real, any shape.
      axis: along which one sample lies.

    Returns:
      NormalityTest, of the shape of `samples` without `axis`.

    Raises:
      ValueError: fewer than 3 numbers; no sample; no such axis.
      TypeError: samples are no real numbers.

    Source: Jarque and Bera 1980, Economics Letters 6(3).

    Example:
      >>> round(float(jarque_bera(jnp.array([-1.0, 1.0, -1.0, 1.0])).statistic), 4)
      0.6667
    """
    samples = check_samples(samples, axis, "jarque_bera", *JARQUE_BERA_SIZES)
    return as_result(measure_samples((jarque_bera_of_centred,), samples)[0])


def skewness_of_centred(d: Array) -> Array:
    """Of columns (M, columns) of mean zero."""
    return jnp.mean(d**3, axis=0) / jnp.mean(d**2, axis=0) ** 1.5


def kurtosis_of_centred(d: Array) -> Array:
    """Excess kurtosis of columns (M, columns) of mean zero."""
    return jnp.mean(d**4, axis=0) / jnp.mean(d**2, axis=0) ** 2 - 3


def jarque_bera_of_centred(d: Array) -> Measured:
    """Of columns (M, columns) of mean zero."""
    total = skewness_of_centred(d) ** 2 + kurtosis_of_centred(d) ** 2 / 4
    return _chi_squared(len(d) / 6 * total)


def dagostino_k2_of_centred(d: Array) -> Measured:
    """Of columns (M, columns) of mean zero."""
    n = len(d)
    return _chi_squared(
        _skewness_score(skewness_of_centred(d), n) ** 2
        + _kurtosis_score(kurtosis_of_centred(d), n) ** 2
    )


def _chi_squared(statistic: Array) -> Measured:
    return Measured(statistic, jnp.exp(-statistic / 2))


def _skewness_score(g1: Array, n: int) -> Array:
    y = g1 * math.sqrt((n + 1) * (n + 3) / (6 * (n - 2)))
    beta2 = 3 * (n**2 + 27 * n - 70) * (n + 1) * (n + 3)
    beta2 /= (n - 2) * (n + 5) * (n + 7) * (n + 9)
    w2 = math.sqrt(2 * (beta2 - 1)) - 1
    delta, alpha = 1 / math.sqrt(math.log(w2) / 2), math.sqrt(2 / (w2 - 1))
    return delta * jnp.arcsinh(y / alpha)


def _kurtosis_score(g2: Array, n: int) -> Array:
    mean = -6 / (n + 1)  # of the excess
    variance = 24 * n * (n - 2) * (n - 3) / ((n + 1) ** 2 * (n + 3) * (n + 5))
    x = (g2 - mean) / math.sqrt(variance)
    root = 6 * (n**2 - 5 * n + 2) / ((n + 7) * (n + 9))
    root *= math.sqrt(6 * (n + 3) * (n + 5) / (n * (n - 2) * (n - 3)))
    a = 6 + 8 / root * (2 / root + math.sqrt(1 + 4 / root**2))
    cubed = (1 - 2 / a) / (1 + x * math.sqrt(2 / (a - 4)))
    return (1 - 2 / (9 * a) - jnp.cbrt(cubed)) / math.sqrt(2 / (9 * a))
