"""How far a measured number may be from the truth: bootstrap intervals and paired differences."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from poster_jax.core.checks import check_count, check_fraction

__all__ = [
    "Interval",
    "PairedDifference",
    "bootstrap_interval",
    "keep_finite",
    "paired_difference",
    "spread_interval",
]


class Interval(NamedTuple):
    """A number with an interval.

    Attributes:
      estimate: the statistic of the sample; NaN when a value of the sample is not finite.
      low: lower end; NaN when the sample cannot tell (one value, or one that is not finite).
      high: upper end.
      num_samples: size of the sample.
      num_nonfinite: values of it that are NaN or infinite.
      method: "BCa", "percentile" (where BCa is undefined), "quantiles" or "none".
    """

    estimate: float
    low: float
    high: float
    num_samples: int
    num_nonfinite: int
    method: str


class PairedDifference(NamedTuple):
    """Two measurements on the same networks: how far apart, and could it be chance?

    Attributes:
      interval: Interval of the mean of `a - b`.
      p_value: two-sided, by flipping the sign of every difference at random.
    """

    interval: Interval
    p_value: float


def bootstrap_interval(
    samples: Any,
    *,
    statistic: Callable[..., Any] = np.mean,
    confidence: float = 0.95,
    num_resamples: int = 5000,
    seed: int = 0,
) -> Interval:
    """Between which values the statistic lies when the sample is drawn again from itself.

    BCa (bias corrected and accelerated), and percentiles where that is undefined because the
    statistic barely varies. For smooth statistics (means, medians, ratios); the bootstrap is not
    sound for a maximum or minimum: use `spread_interval` there.

    Args:
      samples: (n,), one value a network or seed.
      statistic: `statistic(samples, axis=...)`, vectorised over the other axes.
      confidence: of the two-sided interval.
      num_resamples: resamples drawn.
      seed: of the resampling.

    Returns:
      Interval. Values that are not finite are counted and make it NaN.

    Raises:
      ValueError: no samples or more than one axis, confidence outside (0, 1), num_resamples < 1.

    Source: Efron 1987, "Better bootstrap confidence intervals"; `scipy.stats.bootstrap`.

    Example:
      >>> found = bootstrap_interval([1.0, 2.0, 3.0, 4.0])
      >>> found.estimate, found.low < 2.5 < found.high, found.method
      (2.5, True, 'BCa')
    """
    values = _column("samples", samples)
    check_options(confidence, num_resamples)
    num_nonfinite = int(np.sum(~np.isfinite(values)))
    if num_nonfinite:
        return Interval(np.nan, np.nan, np.nan, values.size, num_nonfinite, "none")
    low, high, method = bootstrap_ends(
        values, statistic, confidence=confidence, num_resamples=num_resamples, seed=seed
    )
    return Interval(float(statistic(values, axis=-1)), low, high, values.size, 0, method)


def spread_interval(samples: Any, *, confidence: float = 0.95) -> Interval:
    """Between which values the middle `confidence` of the sample lies; the estimate is its maximum.

    For claims of the form "at most so much in every network", where the largest value decides.

    Args:
      samples: (n,), one value a network.
      confidence: share of the networks within.

    Returns:
      Interval of method "quantiles".

    Raises:
      ValueError: no samples or more than one axis, confidence outside (0, 1).

    Source: `numpy.quantile`.

    Example:
      >>> spread_interval(range(101), confidence=0.5)[:3]
      (100.0, 25.0, 75.0)
    """
    values = _column("samples", samples)
    check_options(confidence, 1)
    num_nonfinite = int(np.sum(~np.isfinite(values)))
    if num_nonfinite:
        return Interval(np.nan, np.nan, np.nan, values.size, num_nonfinite, "none")
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(float(values.max()), float(low), float(high), values.size, 0, "quantiles")


def paired_difference(
    a: Any, b: Any, *, confidence: float = 0.95, num_resamples: int = 5000, seed: int = 0
) -> PairedDifference:
    """By how much `a` exceeds `b` on average, network by network.

    Args:
      a: (n,), one measurement a network.
      b: (n,), another measurement on the same networks.
      confidence: of the interval.
      num_resamples: resamples of the bootstrap and of the permutation test.
      seed: of both.

    Returns:
      PairedDifference. The p-value is exact when all 2^n flips can be tried.

    Raises:
      ValueError: columns of different lengths, or as `bootstrap_interval`.

    Source: `scipy.stats.bootstrap`, `scipy.stats.permutation_test` (paired samples).

    Example:
      >>> found = paired_difference([2.0, 3.0, 5.0, 4.0], [1.0, 1.0, 3.0, 3.0])
      >>> found.interval.estimate, found.p_value
      (1.5, 0.125)
    """
    a, b = _column("a", a), _column("b", b)
    if a.size != b.size:
        raise ValueError(f"a and b must have one value each a network, got {a.size} and {b.size}.")
    interval = bootstrap_interval(
        a - b, confidence=confidence, num_resamples=num_resamples, seed=seed
    )
    if interval.num_nonfinite or a.size < 2:
        return PairedDifference(interval, float("nan"))
    test = stats.permutation_test(
        (a, b),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=num_resamples,
        rng=np.random.default_rng(seed),
    )
    return PairedDifference(interval, float(test.pvalue))


def keep_finite(*columns: Any) -> tuple[tuple[np.ndarray, ...], int]:
    """The rows in which every column is finite, and how many rows went.

    Args:
      *columns: arrays (n,), one value a network.

    Returns:
      `(columns, num_dropped)`; report the second.

    Raises:
      ValueError: columns of different lengths, or none.

    Source: this library.

    Example:
      >>> (x, y), dropped = keep_finite([1.0, float("nan"), 3.0], [4.0, 5.0, 6.0])
      >>> x.tolist(), y.tolist(), dropped
      ([1.0, 3.0], [4.0, 6.0], 1)
    """
    arrays = [_column(f"columns[{index}]", column) for index, column in enumerate(columns)]
    if not arrays or len({array.size for array in arrays}) > 1:
        raise ValueError(
            f"columns must have the same length, got {[array.size for array in arrays]}."
        )
    finite = np.all(np.isfinite(arrays), axis=0)
    return tuple(array[finite] for array in arrays), int(np.sum(~finite))


def bootstrap_ends(
    values: np.ndarray,
    statistic: Callable[..., Any],
    *,
    confidence: float,
    num_resamples: int,
    seed: int,
) -> tuple[float, float, str]:
    """Ends of the interval and the method: BCa, or percentiles where BCa is undefined."""
    if len(values) < 2:
        return float("nan"), float("nan"), "none"
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # A degenerate distribution is told by NaN ends, and answered below.
        warnings.simplefilter("ignore")
        found = stats.bootstrap(
            (values,),
            statistic,
            n_resamples=num_resamples,
            batch=1024,
            vectorized=True,
            confidence_level=confidence,
            method="BCa",
            rng=np.random.default_rng(seed),
        )
    ends = found.confidence_interval
    if np.all(np.isfinite(ends)):
        return float(ends.low), float(ends.high), "BCa"
    tail = (1 - confidence) / 2
    low, high = np.quantile(found.bootstrap_distribution, [tail, 1 - tail])
    return float(low), float(high), "percentile"


def check_options(confidence: float, num_resamples: int) -> None:
    """ValueError unless both make sense."""
    check_fraction("confidence", confidence)
    if confidence in (0, 1):
        raise ValueError(f"confidence must lie strictly between 0 and 1, got {confidence}.")
    check_count("num_resamples", num_resamples)


def _column(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(
            f"{name} must have shape (n,), one value a network, at least one, got {array.shape}."
        )
    return array
