"""The verdict over many directions, calibrated (oracle 9, second half), and the batch size b*."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from poster_jax import gradient_noise as gn


def of_rank(key, rank, num_directions, num_samples):
    """Gaussian noise that lives in `rank` directions, seen along many."""
    a, b = jax.random.split(key)
    mixing = jax.random.normal(a, (num_directions, rank))
    return mixing @ jax.random.normal(b, (rank, num_samples))


def test_heavy_tails_are_outside_and_normal_rows_inside(key):
    normal = jax.random.normal(key, (40, 200))
    heavy = jax.random.t(key, 4.0, (40, 200))
    for samples, inside in ((normal, True), (heavy, False)):
        found = gn.gaussianity(samples, key, num_surrogates=39)
        for test in found.tests.values():
            assert bool(test.inside_band) == inside
            assert (float(test.surrogate_pvalue) > 0.05) == inside
            assert test.surrogate_rejected.shape == (39,)
        assert int(found.num_degenerate) == 0
        assert int(found.num_directions) == 40


@pytest.mark.slow
def test_verdicts_do_not_turn_with_the_parameters(key):
    """Oracle 9: noise in rotated coordinates, seen along the same directions."""
    a, b, c, d = jax.random.split(key, 4)
    gaussian = jax.random.normal(a, (30, 200)) * jnp.logspace(-2, 0, 30)[:, None]
    heavy = gaussian / jnp.sqrt(jax.random.chisquare(b, 3.0, shape=(200,)))  # a multivariate t
    rotation, _ = jnp.linalg.qr(jax.random.normal(c, (30, 30)))
    directions = jax.random.normal(d, (40, 30))
    for noise, inside in ((gaussian, True), (heavy, False)):
        for turned in (noise, rotation @ noise):
            found = gn.gaussianity(directions @ turned, key, num_surrogates=39)
            assert [bool(test.inside_band) for test in found.tests.values()] == [inside] * 2


@pytest.mark.slow
def test_what_is_averaged_are_the_single_tests(key):
    x = jax.random.t(key, 5.0, (20, 50))
    found = gn.gaussianity(x, key, level=0.1, num_surrogates=9)
    for name, single in gn.normality_tests(x).items():
        test = found.tests[name]
        np.testing.assert_allclose(test.mean_pvalue, single.pvalue.mean(), rtol=1e-5)
        np.testing.assert_allclose(test.mean_statistic, single.statistic.mean(), rtol=1e-5)
        np.testing.assert_allclose(test.rejected_fraction, (single.pvalue < 0.1).mean(), rtol=1e-6)
    np.testing.assert_allclose(found.kurtosis, np.median(gn.excess_kurtosis(x)), rtol=1e-5)
    np.testing.assert_allclose(found.skewness, np.median(abs(gn.skewness(x))), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 3])
def test_level_on_concentrated_noise(rank):
    """The calibrated test rejects 5 % of Gaussian problems; the fraction itself scatters widely."""
    problems = 200

    def one(key):
        a, b = jax.random.split(key)
        found = gn.gaussianity(
            of_rank(a, rank, 30, 60), b, tests=("shapiro_wilk",), num_surrogates=19
        )
        test = found.tests["shapiro_wilk"]
        return test.surrogate_pvalue, test.rejected_fraction, test.inside_band

    keys = jax.random.split(jax.random.key(1), problems)
    pvalue, rejected, inside = (np.asarray(v) for v in jax.jit(jax.vmap(one))(keys))
    # P(p <= 1/20) is 1/20 exactly, whatever the rank
    level = np.mean(pvalue < 0.051)
    assert abs(level - 0.05) < 3 * (0.05 * 0.95 / problems) ** 0.5
    assert abs(pvalue.mean() - 0.525) < 3 * (1 / 12 / problems) ** 0.5
    # independent directions would give 0.05 +- 0.04
    assert rejected.std() > {1: 0.12, 3: 0.045}[rank]
    assert inside.mean() > 0.85


@pytest.mark.slow
def test_surrogates_have_the_covariance_of_the_rows(x64, key):
    from poster_jax.gradient_noise._surrogates import draw_correlated, row_factor

    for rows in (5, 12):  # fewer and more than the 8 samples
        x = jax.random.normal(key, (rows, 8)) * jnp.linspace(0.1, 1, rows)[:, None]
        x = x - x.mean(axis=1, keepdims=True)
        factor = jax.jit(row_factor)(x)
        assert factor.shape == (min(rows, 8), rows)
        covariance = np.asarray(x @ x.T) / 8
        size = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
        np.testing.assert_allclose(
            np.asarray(factor.T @ factor) / size, covariance / size, atol=1e-9
        )
        drawn = jax.jit(draw_correlated, static_argnums=2)(key, factor, 40000)
        measured = np.asarray(drawn @ drawn.T) / 40000
        np.testing.assert_allclose(measured / size, covariance / size, atol=5 * 2**0.5 / 200)


def test_directions_without_noise_are_counted_and_have_no_part(key):
    x = jax.random.normal(key, (20, 50))
    # rows twice have the means of rows once, and the shape of the others: one program
    alone = gn.gaussianity(jnp.tile(x[10:], (2, 1)), key, num_surrogates=9)
    dead = x.at[:9].set(0.25).at[9, 3].set(jnp.nan)
    found = gn.gaussianity(dead, key, num_surrogates=9)
    assert int(found.num_degenerate) == 10
    for field in ("kurtosis", "skewness"):
        np.testing.assert_allclose(getattr(found, field), getattr(alone, field), rtol=1e-5)
    for name, test in found.tests.items():
        for field in ("mean_pvalue", "mean_statistic", "rejected_fraction"):
            np.testing.assert_allclose(
                getattr(test, field), getattr(alone.tests[name], field), rtol=1e-6
            )
        assert np.isfinite(test.surrogate_rejected).all()
    none = gn.gaussianity(jnp.zeros((20, 50)), key, num_surrogates=9)
    assert int(none.num_degenerate) == 20
    assert np.isnan(none.tests["shapiro_wilk"].mean_pvalue)
    assert np.isnan(none.tests["shapiro_wilk"].surrogate_pvalue)
    assert np.isnan(none.kurtosis)


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, 5000, 5001])
def test_the_ends_of_shapiro_and_wilks_range(key, size):
    x = jax.random.normal(key, (2, size))
    tests = ("anderson_darling",) if size == 5001 else ("shapiro_wilk", "anderson_darling")
    found = gn.gaussianity(x, key, tests=tests, num_surrogates=1)
    assert set(found.tests) == set(tests)
    for name, test in found.tests.items():
        np.testing.assert_allclose(test.mean_pvalue, getattr(gn, name)(x).pvalue.mean(), rtol=1e-4)
        assert 0 < float(test.surrogate_mean_pvalue[0]) < 1


def test_five_thousand_numbers_are_taken_and_one_more_by_anderson_and_darling(key):
    for size, tests in (
        (5000, ("shapiro_wilk", "anderson_darling")),
        (5001, ("anderson_darling",)),
    ):
        ask = lambda x, tests=tests: gn.gaussianity(x, key, tests=tests)  # noqa: E731
        found = jax.eval_shape(ask, jax.ShapeDtypeStruct((2, size), jnp.float32))
        assert set(found.tests) == set(tests)


def test_tiny_rows_are_judged_as_large_ones(key):
    x = jax.random.t(key, 5.0, (20, 50))
    scales = jnp.logspace(-25, 5, 20)[:, None]
    found, scaled = (gn.gaussianity(a, key, num_surrogates=9) for a in (x, x * scales))
    for name in found.tests:
        np.testing.assert_allclose(
            scaled.tests[name].surrogate_mean_pvalue,
            found.tests[name].surrogate_mean_pvalue,
            rtol=1e-3,
        )


def test_critical_batch_size_from_moments(x64, key):
    """Laplace numbers have an excess kurtosis of 3; the formula by hand."""
    x = jax.random.laplace(key, (51, 20000))
    found = gn.critical_batch_size(x, num_samples=1000)
    kappa = np.median(gn.excess_kurtosis(x))
    np.testing.assert_allclose(found.kurtosis, kappa, rtol=1e-12)
    np.testing.assert_allclose(kappa, 3, atol=0.2)
    np.testing.assert_allclose(found.batch_size, kappa / (2 * np.sqrt(24 / 1000)), rtol=1e-12)
    np.testing.assert_allclose(found.detectable, 0.31, atol=1e-3)
    exponential = jax.random.exponential(key, (51, 20000))  # of skewness 2
    skewed = gn.critical_batch_size(exponential, num_samples=1000)
    np.testing.assert_allclose(skewed.skewness, 2, atol=0.1)
    gamma = np.median(np.abs(scipy.stats.skew(exponential, axis=1)))
    # a mean of that many has the skewness that is seen from 1000 numbers: two standard errors
    np.testing.assert_allclose(
        gamma / np.sqrt(skewed.batch_size_by_skewness), 2 * np.sqrt(6 / 1000), rtol=1e-12
    )
    dead = gn.critical_batch_size(x.at[0].set(0), num_samples=1000)
    assert int(dead.num_degenerate) == 1
    np.testing.assert_allclose(dead.kurtosis, np.median(gn.excess_kurtosis(x[1:])), rtol=1e-12)


@pytest.mark.slow
def test_a_population_under_jit(key):
    x = jax.random.normal(key, (2, 20, 50))
    run = jax.jit(jax.vmap(lambda a: gn.gaussianity(a, key, num_surrogates=9)))
    together, one = run(x), gn.gaussianity(x[1], key, num_surrogates=9)
    for name in one.tests:
        np.testing.assert_allclose(
            together.tests[name].surrogate_mean_pvalue[1],
            one.tests[name].surrogate_mean_pvalue,
            rtol=2e-3,
        )
