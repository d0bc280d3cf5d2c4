"""The power of the width with which a correlator falls, with an interval and a verdict."""

from typing import Any, NamedTuple

import numpy as np

from poster_jax.core.checks import check_count, check_fraction, check_positive
from poster_jax.finite_width.feynman._statistics import Statistic, block_sums, power_sums
from poster_jax.finite_width.feynman.measure import Measurement

__all__ = ["VERDICTS", "Exponent", "fit_exponent"]

VERDICTS = ("tight", "loose", "undecided", "violated", "zero")
"""What `Exponent.verdict` may be."""

_BLOCKS = 200
_TOLERANCE = 0.1  # of an exponent: what orders of 1/n beyond the fit may move it by


class Exponent(NamedTuple):
    """The s of C = a n^s (1 + b / n + ...).

    Attributes:
      value: s with the next order in the fit; without it where only three widths are left; NaN
        where fewer are.
      interval: (low, high), bootstrap over networks.
      bound: what the conjecture allows.
      verdict: where the interval's upper end is at most bound + 0.1, "loose" when it lies below the
        bound and "tight" when not; "violated", the interval lies above bound + 0.1; "undecided", it
        is too wide, or C is known at fewer than three widths, or changes sign; "zero", C is 0 in
        every network.
      plain: slope of log |C| on log n without the next order. How far s moves between the two says
        how far the widths are from their limit.
      plain_interval: its (low, high).
      correction: b, or NaN.
      amplitude: a, with the sign of C.
      misfit: chi-square of the fit over its degrees of freedom; NaN where there are none. Far above
        1, the fit does not describe the data, and the interval is too narrow.
      used: (widths,) bool, those of the fit: |C| of at least `min_significance` standard errors,
        and of one sign.
    """

    value: float
    interval: tuple[float, float]
    bound: float
    verdict: str
    plain: float
    plain_interval: tuple[float, float]
    correction: float
    amplitude: float
    misfit: float
    used: Any


def fit_exponent(
    measurement: Measurement,
    *,
    bound: float | int | None = None,
    min_significance: float | int = 3.0,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Exponent:
    r"""How a measured correlator falls with width, and whether that is within the bound.

    Weighted least squares for $\log|C| = \log|a| + s \log n + \log(1 + b / n)$, with the weights of
    the standard errors, and the same without $b$. A slope from noise is no slope: widths where C is
    below `min_significance` standard errors are left out.

    Args:
      measurement: of `measure`, at three widths or more.
      bound: None takes the correlator's.
      min_significance: in standard errors.
      confidence: of the interval.
      num_resamples: of the bootstrap, over 200 groups of networks at each width.
      seed: of the bootstrap.

    Returns:
      Exponent.

    Raises:
      ValueError: fewer than three different widths, no bound for a measurement without a
        correlator, options out of range.
      TypeError: another kind of argument.

    Source: Dyer and Gur-Ari 2019 (arXiv 1909.11304), table 1 (plain slopes); the next order, the
      interval and the verdict: this library.

    Example:
      >>> from poster_jax.finite_width.feynman import measurement_from_samples
      >>> rng = np.random.default_rng(0)
      >>> n = (8, 16, 32, 64)
      >>> samples = [2 / k * (1 + 3 / k) * (1 + 0.1 * rng.normal(size=500)) for k in n]
      >>> found = fit_exponent(measurement_from_samples(samples, widths=n), bound=-1)
      >>> found.interval[0] < -1 < found.interval[1], found.plain_interval[1] < -1
      (True, True)
    """
    bound = _check(measurement, bound, min_significance, confidence, num_resamples)
    widths = np.asarray(measurement.widths, np.float64)
    mean, stderr = np.asarray(measurement.mean), np.asarray(measurement.stderr)
    nan = float("nan")
    empty = Exponent(
        nan,
        (nan, nan),
        bound,
        "undecided",
        nan,
        (nan, nan),
        nan,
        nan,
        nan,
        np.zeros(len(mean), bool),
    )
    if all(not np.any(s.prod(axis=1)) for s in measurement.samples):
        return empty._replace(verdict="zero")
    # The same rounding error in every network is no signal.
    size = np.array([np.abs(s.prod(axis=1)).mean() for s in measurement.samples])
    stderr = np.maximum(stderr, 1e-12 * size)
    used = np.abs(mean) >= min_significance * stderr
    signs = np.sign(mean[used])
    if len(np.unique(widths[used])) < 3 or np.unique(signs).size > 1:
        return empty._replace(used=used)
    statistic, sums = _blocks(measurement, used)
    rng = np.random.default_rng(seed)
    values = np.stack([_resampled(statistic, s, num_resamples, rng) for s in sums], axis=1)
    with np.errstate(divide="ignore"):
        logs = np.log(np.abs(np.concatenate([mean[used][None], values])))
    weights = np.abs(mean[used]) / stderr[used]
    n = widths[used]
    plain = _fits(_design(n), logs, weights)
    full, residual = plain, logs[0] - _design(n) @ plain[0]
    if len(np.unique(n)) > 3:
        full, residual = _next_order_fits(n, logs, weights)
    freedom = len(n) - full.shape[1]
    low, high = _interval(full[1:, 1], confidence)
    return Exponent(
        float(full[0, 1]),
        (low, high),
        bound,
        _verdict(low, high, bound),
        float(plain[0, 1]),
        _interval(plain[1:, 1], confidence),
        float(full[0, 2]) if full.shape[1] == 3 else nan,
        float(signs[0] * np.exp(full[0, 0])),
        float(np.sum((residual * weights) ** 2) / freedom) if freedom else nan,
        used,
    )


def _check(
    measurement: Any, bound: Any, significance: float, confidence: float, resamples: int
) -> float:
    if not isinstance(measurement, Measurement):
        raise TypeError(
            f"measurement must be a Measurement of measure(...), got {type(measurement).__name__}."
        )
    different = np.unique(measurement.widths).size
    if different < 3:
        raise ValueError(
            f"measurement must be at three different widths or more to fit an exponent, got "
            f"{different}."
        )
    if bound is None:
        if measurement.correlator is None:
            raise ValueError("bound must be given for a measurement that has no correlator.")
        bound = float(measurement.correlator.exponent_bound())
    check_positive("min_significance", significance)
    check_fraction("confidence", confidence)
    check_count("num_resamples", resamples, minimum=100)
    return float(bound)


def _blocks(measurement: Measurement, used: Any) -> tuple[Statistic, list[np.ndarray]]:
    connected = measurement.correlator is not None and measurement.correlator.connected
    statistic = Statistic(measurement.samples[0].shape[1], connected=connected)
    chosen = (s for s, use in zip(measurement.samples, used, strict=True) if use)
    return statistic, [block_sums(power_sums(statistic, s), _BLOCKS) for s in chosen]


def _resampled(
    statistic: Statistic, sums: np.ndarray, num_resamples: int, rng: np.random.Generator
) -> np.ndarray:
    count = len(sums)
    drawn = rng.integers(0, count, size=(num_resamples, count))
    flat = (drawn + count * np.arange(num_resamples)[:, None]).ravel()
    times = np.bincount(flat, minlength=num_resamples * count).reshape(num_resamples, count)
    return statistic(times @ sums)


def _design(n: np.ndarray) -> np.ndarray:
    return np.stack([np.ones_like(n), np.log(n)], axis=1)


def _fits(design: np.ndarray, logs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(..., coefficients) of weighted least squares, of all rows of `logs` at once."""
    return logs @ (np.linalg.pinv(design * weights[:, None]) * weights).T


def _next_order_fits(
    n: np.ndarray, logs: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """With log(1 + b / n): Gauss-Newton on the first row, one more step from there for the others.

    Also the residual of the first.
    """
    b, lowest = 0.0, -0.9 * n.min()
    for _ in range(50):
        slope = 1 / (n + b)  # of log(1 + b / n) in b
        design = np.concatenate([_design(n), slope[:, None]], axis=1)
        offset = np.log1p(b / n) - b * slope
        fits = _fits(design, logs - offset, weights)
        b = max(float(fits[0, 2]), lowest)
    return fits, logs[0] - _design(n) @ fits[0, :2] - np.log1p(b / n)


def _interval(slopes: np.ndarray, confidence: float) -> tuple[float, float]:
    slopes = slopes[np.isfinite(slopes)]
    low, high = np.quantile(slopes, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _verdict(low: float, high: float, bound: float) -> str:
    if low > bound + _TOLERANCE:
        return "violated"
    if high > bound + _TOLERANCE:
        return "undecided"
    # A constant that is exact, such as the NTK of a linear network, has an interval of no width.
    return "loose" if high < bound - 1e-6 else "tight"
