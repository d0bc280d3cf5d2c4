"""Intervals that cover what they should, nulls that are null, and no number lost in silence."""

import numpy as np
import pytest
from scipy import stats

from poster_jax.core.claims import (
    bootstrap_interval,
    keep_finite,
    kendall_correlation,
    paired_difference,
    pearson_correlation,
    spread_interval,
)

CORRELATIONS = [(pearson_correlation, stats.pearsonr), (kendall_correlation, stats.kendalltau)]


def _related(n, slope, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    return x, slope * x + rng.normal(size=n)


@pytest.mark.parametrize(("ours", "scipys"), CORRELATIONS)
@pytest.mark.parametrize("rounded", [False, True], ids=["distinct", "with ties"])
def test_the_coefficient_is_scipys(ours, scipys, rounded):
    x, y = _related(57, 1.0, 0)
    if rounded:
        x, y = np.round(x), np.round(y)
    assert ours(x, y).estimate == pytest.approx(scipys(x, y).statistic, abs=1e-12)


@pytest.mark.parametrize(("ours", "scipys"), CORRELATIONS)
def test_the_interval_is_that_of_scipys_bootstrap_on_the_pairs(ours, scipys):
    """The same resamples through the plain statistic: forms in multiplicities change nothing."""
    x, y = _related(25, 1.0, 1)
    plain = stats.bootstrap(
        (np.arange(25),),
        lambda rows: scipys(x[rows], y[rows]).statistic,
        n_resamples=300,
        batch=1024,
        vectorized=False,
        method="BCa",
        rng=np.random.default_rng(7),
    ).confidence_interval
    found = ours(x, y, num_resamples=300, seed=7)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=1e-6)


@pytest.mark.parametrize(("ours", "scipys"), CORRELATIONS)
def test_the_interval_covers_the_truth_as_often_as_it_says(ours, scipys):
    rho = 1 / np.sqrt(2)
    truth = {pearson_correlation: rho, kendall_correlation: 2 / np.pi * np.arcsin(rho)}[ours]
    found = [ours(*_related(60, 1.0, seed), num_resamples=400) for seed in range(100)]
    covered = sum(c.low <= truth <= c.high for c in found)
    # 95 expected; 86 or fewer of 100 has a chance of 4e-4.
    assert 87 <= covered <= 100


@pytest.mark.parametrize(("ours", "scipys"), CORRELATIONS)
def test_unrelated_columns_are_called_chance(ours, scipys):
    p = np.array([ours(*_related(40, 0.0, seed), num_resamples=300).p_value for seed in range(60)])
    # Uniform under the null (Kolmogorov-Smirnov at one in a thousand).
    assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_chance_and_power_follow_the_known_null_of_tau():
    n = 100
    found = kendall_correlation(*_related(n, 0.0, 3), num_resamples=4000)
    sd = np.sqrt(2 * (2 * n + 5) / (9 * n * (n - 1)))
    # Quantiles of 4,000 draws are known to a few per cent.
    assert found.chance == pytest.approx(1.96 * sd, rel=0.1)
    assert found.detectable == pytest.approx((1.96 + 0.84) * sd, rel=0.1)


def test_copies_of_a_network_are_no_new_witnesses():
    """Each network five times: drawn by groups, the interval is that of the networks."""
    x, y = _related(30, 0.7, 5)
    five = [np.repeat(v, 5) for v in (x, y, np.arange(30))]
    once = kendall_correlation(x, y)
    copies = kendall_correlation(five[0], five[1])
    grouped = kendall_correlation(five[0], five[1], groups=five[2])
    assert copies.high - copies.low < 0.7 * (once.high - once.low)
    assert grouped.high - grouped.low == pytest.approx(once.high - once.low, rel=0.15)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_counted_and_never_averaged_away(bad):
    x, y = _related(20, 1.0, 0)
    x[3] = bad
    for found in (
        kendall_correlation(x, y),
        pearson_correlation(x, y),
        bootstrap_interval(x),
        spread_interval(x),
        paired_difference(x, y).interval,
    ):
        assert found.num_nonfinite == 1
        assert np.isnan(found.estimate)
        assert np.isnan(found.low)
    (kept, _), dropped = keep_finite(x, y)
    assert dropped == 1
    assert kept.size == 19


def test_a_constant_column_has_no_correlation():
    found = kendall_correlation(np.ones(10), np.arange(10))
    assert np.isnan(found.estimate)
    assert found.num_nonfinite == 0


def test_the_interval_of_a_mean_is_near_students():
    samples = np.random.default_rng(0).normal(2.0, 1.0, size=200)
    found = bootstrap_interval(samples)
    student = stats.t.interval(0.95, 199, samples.mean(), stats.sem(samples))
    assert (found.low, found.high) == pytest.approx(student, abs=0.02)
    assert found.method == "BCa"


def test_a_sample_that_does_not_vary_has_a_point_for_an_interval():
    found = bootstrap_interval(np.full(8, 3.0))
    assert found[:3] == (3.0, 3.0, 3.0)
    assert found.method == "percentile"


def test_one_value_says_nothing_of_its_spread():
    found = bootstrap_interval([3.0])
    assert found.estimate == 3.0
    assert np.isnan(found.low)


def test_a_paired_difference_sees_what_the_spread_between_networks_hides():
    rng = np.random.default_rng(0)
    networks = 10 * rng.normal(size=30)
    found = paired_difference(networks + 0.5 + 0.1 * rng.normal(size=30), networks)
    assert 0.4 < found.interval.low < 0.5 < found.interval.high < 0.6
    assert found.p_value < 0.001
    none = paired_difference(networks, networks[::-1])
    assert none.p_value > 0.05


def test_the_same_seed_gives_the_same_numbers():
    x, y = _related(30, 1.0, 0)
    assert kendall_correlation(x, y, seed=4) == kendall_correlation(x, y, seed=4)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: bootstrap_interval([]), "samples"),
        (lambda: bootstrap_interval([[1.0]]), "samples"),
        (lambda: bootstrap_interval([1.0, 2.0], confidence=1.0), "confidence"),
        (lambda: bootstrap_interval([1.0, 2.0], num_resamples=0), "num_resamples"),
        (lambda: paired_difference([1.0, 2.0], [1.0]), "a and b"),
        (lambda: keep_finite([1.0], [1.0, 2.0]), "columns"),
        (lambda: kendall_correlation([1.0, 2.0], [1.0, 2.0]), "at least 3"),
        (lambda: pearson_correlation([1.0] * 4, [1.0] * 3), "x and y"),
        (lambda: pearson_correlation(range(4), range(4), groups=[1]), "groups"),
    ],
)
@pytest.mark.bad_input
def test_nonsense_is_refused_by_name(call, word):
    with pytest.raises(ValueError, match=word):
        call()
