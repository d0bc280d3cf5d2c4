"""Does a sample come from a normal distribution of unknown mean and variance?

One test a file, each over any number of samples at once. Where the samples are all equal the
statistic is NaN: nothing can be said about their shape, and whoever averages must count them.
"""

from poster_jax.gradient_noise.normality._samples import NormalityTest
from poster_jax.gradient_noise.normality.anderson_darling import (
    anderson_darling,
    anderson_darling_critical_values,
)
from poster_jax.gradient_noise.normality.epps_pulley import epps_pulley
from poster_jax.gradient_noise.normality.moments import (
    dagostino_k2,
    excess_kurtosis,
    jarque_bera,
    skewness,
)
from poster_jax.gradient_noise.normality.several import normality_tests
from poster_jax.gradient_noise.normality.shapiro_wilk import royston_coefficients, shapiro_wilk

__all__ = [
    "NormalityTest",
    "anderson_darling",
    "anderson_darling_critical_values",
    "dagostino_k2",
    "epps_pulley",
    "excess_kurtosis",
    "jarque_bera",
    "normality_tests",
    "royston_coefficients",
    "shapiro_wilk",
    "skewness",
]
