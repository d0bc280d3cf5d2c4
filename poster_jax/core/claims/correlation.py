"""Does one measured number go with another, over a population of networks?

The correlation, its bootstrap interval, what chance alone gives (every pairing of the two columns
is as likely as another), and how strong a relation would have to be for so many networks to show
it.

A resampled population is the old one with multiplicities c_i, and both correlations are ratios of
forms in c: with S_ij = sign(x_i - x_j), Kendall's tau-b is (c S_x*S_y c) / sqrt((c |S_x| c)
(c |S_y| c)). So all resamples are one matrix product.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from poster_jax.core.claims.intervals import bootstrap_ends, check_options

__all__ = ["Correlation", "kendall_correlation", "pearson_correlation"]


class Correlation(NamedTuple):
    """A correlation with what is needed to believe it.

    Attributes:
      estimate: the coefficient; NaN when a column is constant or holds a value that is not finite.
      low: lower end of the bootstrap interval.
      high: upper end.
      p_value: two-sided, from the permutation null.
      chance: what 97.5 % of random pairings stay below; an estimate above it is not chance.
      detectable: the smallest true correlation that exceeds `chance` in four of five populations of
        this size (power 80 %), taking the spread of the null for that of the estimate.
      num_samples: networks.
      num_nonfinite: networks with a value that is NaN or infinite.
      method: of the interval, as in `Interval`.
    """

    estimate: float
    low: float
    high: float
    p_value: float
    chance: float
    detectable: float
    num_samples: int
    num_nonfinite: int
    method: str


def pearson_correlation(
    x: Any,
    y: Any,
    *,
    groups: Any = None,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Correlation:
    """How close to a straight line: Pearson's coefficient.

    Args:
      x: (n,), one value a network.
      y: (n,), another.
      groups: (n,), labels of networks that belong together (one setting, several seeds): the
        bootstrap then draws whole groups, as their members are no independent witnesses.
      confidence: of the interval.
      num_resamples: resamples of the bootstrap, and pairings of the null.
      seed: of both.

    Returns:
      Correlation.

    Raises:
      ValueError: fewer than 3 networks, columns of different lengths, confidence outside (0, 1).

    Source: `scipy.stats.bootstrap` (BCa), `scipy.stats.permutation_test` (pairings).

    Example:
      >>> found = pearson_correlation([1, 2, 3, 4, 5], [2, 4, 6, 8, 10.5])
      >>> round(found.estimate, 2), found.p_value < 0.05
      (1.0, True)
    """
    return _correlate(x, y, _PearsonForm, groups, confidence, num_resamples, seed)


def kendall_correlation(
    x: Any,
    y: Any,
    *,
    groups: Any = None,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Correlation:
    """How well one order predicts the other: Kendall's tau-b, whatever the scales.

    Args:
      x: as in `pearson_correlation`.
      y: as in `pearson_correlation`.
      groups: as in `pearson_correlation`.
      confidence: as in `pearson_correlation`.
      num_resamples: as in `pearson_correlation`.
      seed: as in `pearson_correlation`.

    Returns:
      Correlation.

    Raises:
      ValueError: as in `pearson_correlation`.

    Source: Kendall 1945 (tau-b, with ties); `scipy.stats.bootstrap`, `permutation_test`.

    Example:
      >>> kendall_correlation([1, 2, 3, 4], [1, 2, 4, 3]).estimate  # 5 pairs agree, 1 does not
      0.666...
    """
    return _correlate(x, y, _KendallForm, groups, confidence, num_resamples, seed)


class _PearsonForm:
    """Pearson's coefficient of a population with multiplicities, and of a pairing."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x, self.y = ((v - v.mean()) / (np.abs(v - v.mean()).max() or 1) for v in (x, y))
        self.moments = np.stack([self.x, self.y, self.x * self.y, self.x**2, self.y**2], axis=1)

    def weighted(self, counts: np.ndarray) -> np.ndarray:
        means = counts @ self.moments / counts.sum(axis=-1, keepdims=True)
        x, y, xy, xx, yy = np.moveaxis(means, -1, 0)
        return _ratio(xy - x * y, xx - x**2, yy - y**2)

    def paired(self, order: np.ndarray) -> np.ndarray:
        return _ratio(self.x[order] @ self.y, np.sum(self.x**2), np.sum(self.y**2))


class _KendallForm:
    """Kendall's tau-b, likewise."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        # float32: a matrix product of integers, exact as long as their sums stay below 2^24.
        self.x, self.y = (np.sign(v[:, None] - v).astype(np.float32) for v in (x, y))
        self.forms = (self.x * self.y, np.abs(self.x), np.abs(self.y))

    def weighted(self, counts: np.ndarray) -> np.ndarray:
        small = counts.astype(np.float32)
        return _ratio(*(np.sum((small @ form) * counts, axis=-1) for form in self.forms))

    def paired(self, order: np.ndarray) -> np.ndarray:
        rows = order.reshape(-1, order.shape[-1])
        agree = np.array([np.vdot(self.x[np.ix_(row, row)], self.y) for row in rows])
        norms = (np.sum(form) for form in self.forms[1:])
        return _ratio(agree.reshape(order.shape[:-1]), *norms)


def _correlate(
    x: Any,
    y: Any,
    form_of: Callable[..., Any],
    groups: Any,
    confidence: float,
    num_resamples: int,
    seed: int,
) -> Correlation:
    x, y = (np.asarray(v, dtype=np.float64) for v in (x, y))
    if x.ndim != 1 or x.shape != y.shape or x.size < 3:
        raise ValueError(
            "x and y must have one value each a network, the same number and at least 3, got "
            f"shapes {x.shape} and {y.shape}."
        )
    check_options(confidence, num_resamples)
    n = x.size
    num_nonfinite = int(np.sum(~(np.isfinite(x) & np.isfinite(y))))
    nan = float("nan")
    if num_nonfinite or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation(nan, nan, nan, nan, nan, nan, n, num_nonfinite, "none")
    form, members = form_of(x, y), _members(groups, n)

    def resampled(rows: np.ndarray, axis: int = -1) -> np.ndarray:
        return form.weighted(_counts(np.moveaxis(rows, axis, -1), len(members)) @ members)

    low, high, method = bootstrap_ends(
        np.arange(len(members)),
        resampled,
        confidence=confidence,
        num_resamples=num_resamples,
        seed=seed,
    )
    null = stats.permutation_test(
        (np.arange(n),),
        lambda order, axis=-1: form.paired(np.moveaxis(order, axis, -1)),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=num_resamples,
        batch=256,
        rng=np.random.default_rng(seed),
    )
    low_fifth, centre, bound = np.quantile(null.null_distribution, [0.2, 0.5, 0.975])
    estimate = float(form.weighted(np.ones(n)))
    detectable = min(float(bound + centre - low_fifth), 1.0)
    return Correlation(
        estimate, low, high, float(null.pvalue), float(bound), detectable, n, 0, method
    )


def _members(groups: Any, n: int) -> np.ndarray:
    """(groups, n): 1 where the network belongs to the group."""
    labels = np.arange(n) if groups is None else np.asarray(groups)
    if labels.shape != (n,):
        raise ValueError(f"groups must have one label a network, {n}, got shape {labels.shape}.")
    return (np.unique(labels)[:, None] == labels).astype(np.float64)


def _counts(rows: np.ndarray, size: int) -> np.ndarray:
    """How often each index occurs along the last axis."""
    flat = rows.reshape(-1, rows.shape[-1]).astype(np.int64)
    offsets = np.arange(len(flat))[:, None] * size
    counts = np.bincount((flat + offsets).ravel(), minlength=len(flat) * size)
    return counts.reshape(*rows.shape[:-1], size).astype(np.float64)


def _ratio(numerator: Any, x: Any, y: Any) -> np.ndarray:
    """numerator / sqrt(x y), NaN where a resample is constant."""
    with np.errstate(all="ignore"):
        return np.where((x > 0) & (y > 0), numerator / np.sqrt(x * y), np.nan)
