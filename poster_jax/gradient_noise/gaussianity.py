"""Is the noise Gaussian along many directions at once, and what would Gaussian noise have shown?

The R rows of projections share their M noise vectors. Where the noise lives in few directions the
rows are nearly one row, all reject together, and for Gaussian noise of rank 1 the rejected fraction
is 0.05 only on average: it is 0 or near 1, with a standard deviation of 0.22. So the verdict is
taken against surrogates: Gaussian rows with the very covariance that the rows have.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_count, check_fraction, check_key
from poster_jax.core.typing import Array, PRNGKey
from poster_jax.gradient_noise._surrogates import draw_correlated, row_factor
from poster_jax.gradient_noise.normality._samples import (
    Measured,
    check_samples,
    measure_samples,
)
from poster_jax.gradient_noise.normality.moments import kurtosis_of_centred, skewness_of_centred
from poster_jax.gradient_noise.normality.several import check_tests, departures, statistic_of

__all__ = [
    "CriticalBatchSize",
    "DirectionsTest",
    "Gaussianity",
    "critical_batch_size",
    "gaussianity",
]

_BAND = (0.025, 0.975)


class DirectionsTest(NamedTuple):
    """One test over all directions, beside what it gives for Gaussian noise of that covariance.

    Attributes:
      mean_statistic: over the directions, in the units of the test.
      mean_pvalue: over the directions; 0.5 for Gaussian noise. No p-value itself.
      rejected_fraction: of the directions, at the level asked for.
      rejected_low: what 2.5 % of the surrogates stay below.
      rejected_high: what 97.5 % of them do not exceed.
      inside_band: whether `rejected_low <= rejected_fraction <= rejected_high`: the verdict.
      surrogate_pvalue: the share of surrogates whose mean departure is as large, `(1 + count) /
        (1 + n)`: a true p-value of "the noise is Gaussian along these directions".
      surrogate_rejected: (num_surrogates,), their rejected fractions, from which the band is.
      surrogate_mean_pvalue: (num_surrogates,), their mean p-values.
    """

    mean_statistic: Any
    mean_pvalue: Any
    rejected_fraction: Any
    rejected_low: Any
    rejected_high: Any
    inside_band: Any
    surrogate_pvalue: Any
    surrogate_rejected: Any
    surrogate_mean_pvalue: Any


class Gaussianity(NamedTuple):
    """What projections say about the shape of the noise.

    Attributes:
      tests: a `DirectionsTest` for each name asked for.
      kurtosis: median excess kurtosis over the directions.
      skewness: median absolute skewness over the directions (its sign is that of the direction).
      num_degenerate: directions along which there is no noise, or a number that is not finite; they
        have no part in any mean, median or fraction, which are NaN if there is no other.
      num_directions: R.
    """

    tests: dict[str, DirectionsTest]
    kurtosis: Any
    skewness: Any
    num_degenerate: Any
    num_directions: Any


class CriticalBatchSize(NamedTuple):
    """From which batch size on a test should find the noise Gaussian.

    Attributes:
      batch_size: b*, a real number; at or below 0 where examples have no heavier tails than normal.
      kurtosis: kappa_1, the median excess kurtosis of single examples over the directions.
      detectable: the excess kurtosis that a test on that many samples begins to see.
      batch_size_by_skewness: the same from skewness, which falls only as one over the root of b.
      skewness: median absolute skewness of single examples over the directions.
      num_degenerate: directions without noise, which have no part in the medians.
    """

    batch_size: Any
    kurtosis: Any
    detectable: Any
    batch_size_by_skewness: Any
    skewness: Any
    num_degenerate: Any


def gaussianity(
    samples: Any,
    key: PRNGKey,
    *,
    tests: Sequence[str] = ("shapiro_wilk", "anderson_darling"),
    level: float = 0.05,
    num_surrogates: int = 99,
) -> Gaussianity:
    """Is the noise Gaussian along these directions? With the answer that Gaussian noise would get.

    Row r holds `s_rm = <w_r, u_m>` for M noise vectors at one theta. With S the rows centred, a
    surrogate has M columns drawn from N(0, S S' / M): Gaussian, with the same dependence between
    directions. All that the tests report is then compared with `num_surrogates` of those.

    Caution: the noise vectors must be independent draws at one theta. Disjoint batches of one epoch
    are not, and noise along a trajectory is not at one theta.

    Args:
      samples: (R, M), directions by noise vectors, of any mean and scale.
      key: PRNG key of the surrogates.
      tests: names, as in `normality_tests`.
      level: of a single test.
      num_surrogates: the smallest p-value is `1 / (1 + num_surrogates)`.

    Returns:
      Gaussianity.

    Raises:
      ValueError: samples that are no matrix, or of an M that a test does not take; an unknown test;
        level outside [0, 1]; fewer than 1 surrogate.
      TypeError: samples are no real numbers; key is no PRNG key.

    Source: arXiv 1910.09626 (the tests over random directions); Theiler et al. 1992, "Testing for
      nonlinearity in time series: the method of surrogate data", Physica D 58; the calibration by
      surrogates of equal cross-direction covariance is this library's.

    Example:
      >>> heavy = jax.random.t(jax.random.key(0), 3.0, (20, 200))
      >>> found = gaussianity(heavy, jax.random.key(1), num_surrogates=19)
      >>> sw = found.tests["shapiro_wilk"]
      >>> float(sw.rejected_fraction) > 0.8, bool(sw.inside_band), float(sw.surrogate_pvalue)
      (True, False, 0.05...)
    """
    samples = _check_matrix(samples)
    samples = check_tests(samples, -1, tests)
    check_key("key", key)
    check_fraction("level", level)
    num_surrogates = check_count("num_surrogates", num_surrogates)
    return _gaussianity(samples, key, level, tuple(tests), num_surrogates)


@partial(jax.jit, static_argnums=(3, 4))
def _gaussianity(
    samples: Array, key: PRNGKey, level: Any, tests: tuple[str, ...], num_surrogates: int
) -> Gaussianity:
    skewness, kurtosis = measure_samples((skewness_of_centred, kurtosis_of_centred), samples)
    alive = jnp.isfinite(kurtosis)
    # Scaled rows: the tests do not see the scale, and the factor keeps small rows as exact as large
    scaled = jnp.where(alive[:, None], _unit_rows(samples), 0)
    factor = row_factor(scaled)

    def surrogate(key: PRNGKey) -> dict[str, Any]:
        drawn = draw_correlated(key, factor, samples.shape[1])
        return _over_directions(departures(drawn, tests), alive, level)

    found = _over_directions(departures(samples, tests), alive, level)
    null = jax.lax.map(surrogate, jax.random.split(key, num_surrogates))
    return Gaussianity(
        {name: _compare(name, found[name], null[name], num_surrogates) for name in tests},
        kurtosis=jnp.nanmedian(kurtosis),
        skewness=jnp.nanmedian(jnp.abs(skewness)),
        num_degenerate=jnp.sum(~alive),
        num_directions=jnp.asarray(len(alive)),
    )


class _Over(NamedTuple):
    departure: Array
    pvalue: Array
    rejected: Array


def _over_directions(measured: dict[str, Measured], alive: Array, level: Any) -> dict[str, Any]:
    def mean(values: Array) -> Array:
        return jnp.mean(values, where=alive)

    return {
        name: _Over(
            mean(found.departure),
            mean(found.pvalue),
            mean((found.pvalue < level).astype(found.pvalue.dtype)),
        )
        for name, found in measured.items()
    }


def _compare(name: str, found: _Over, null: _Over, num_surrogates: int) -> DirectionsTest:
    low, high = jnp.quantile(null.rejected, jnp.asarray(_BAND, null.rejected.dtype))
    as_far = jnp.sum(null.departure >= found.departure)
    pvalue = (1 + as_far) / (1 + num_surrogates)
    return DirectionsTest(
        mean_statistic=statistic_of(name, found.departure),
        mean_pvalue=found.pvalue,
        rejected_fraction=found.rejected,
        rejected_low=low,
        rejected_high=high,
        inside_band=(low <= found.rejected) & (found.rejected <= high),
        surrogate_pvalue=jnp.where(jnp.isnan(found.departure), jnp.nan, pvalue),
        surrogate_rejected=null.rejected,
        surrogate_mean_pvalue=null.pvalue,
    )


def _unit_rows(samples: Array) -> Array:
    """Centred rows of mean square 1, through a range of 1 so that no square vanishes."""
    low, high = samples.min(axis=1, keepdims=True), samples.max(axis=1, keepdims=True)
    d = (samples - samples[:, :1]) / (high - low)
    d = d - d.mean(axis=1, keepdims=True)
    return d / jnp.sqrt(jnp.mean(d**2, axis=1, keepdims=True))


def critical_batch_size(projections: Any, *, num_samples: int) -> CriticalBatchSize:
    """From which batch size on should the noise look Gaussian to M samples?

    Averaging b examples divides the excess kurtosis by b, and a test on M numbers sees an excess
    kurtosis from about `2 sqrt(24 / M)` on; so `b* = kappa_1 / (2 sqrt(24 / M))`, with kappa_1 the
    median over directions of the excess kurtosis of single examples. One number that says when "256
    and above" holds. Skewness is divided by sqrt(b) alone and seen from `2 sqrt(6 / M)` on: the
    batch size that this asks for, `(gamma_1 / (2 sqrt(6 / M)))^2`, stands beside it, and is often
    the larger one.

    Args:
      projections: (R, N), `<w_r, g_i>` of single examples, as `per_example_projections` gives.
      num_samples: M, the noise vectors that the tests are to have.

    Returns:
      CriticalBatchSize.

    Raises:
      ValueError: projections that are no matrix or have fewer than 3 examples; M below 1.
      TypeError: projections are no real numbers; M is no integer.

    Source: this library, from the cumulants of a mean: k_r(mean of b) = k_r / b^(r-1).

    Example:
      >>> coin = jnp.array([[-1.0, 1.0] * 50])  # the lightest tails there are: any b will do
      >>> float(critical_batch_size(coin, num_samples=1000).kurtosis)
      -2.0
    """
    num_samples = check_count("num_samples", num_samples)
    projections = _check_matrix(projections, "projections")
    projections = check_samples(projections, -1, "critical_batch_size", 3, None)
    kurtosis, skewness = measure_samples((kurtosis_of_centred, skewness_of_centred), projections)
    kappa, gamma = jnp.nanmedian(kurtosis), jnp.nanmedian(jnp.abs(skewness))
    detectable = 2 * (24 / num_samples) ** 0.5
    return CriticalBatchSize(
        kappa / detectable,
        kappa,
        jnp.asarray(detectable, kappa.dtype),
        gamma**2 / (4 * 6 / num_samples),
        gamma,
        jnp.sum(~jnp.isfinite(kurtosis)),
    )


def _check_matrix(samples: Any, name: str = "samples") -> Any:
    if len(jnp.shape(samples)) != 2:
        raise ValueError(
            f"{name} must be a matrix with a row a direction, got the shape {jnp.shape(samples)}."
        )
    return samples
