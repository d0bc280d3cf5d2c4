"""Samples that a statistic cannot answer for are refused in one sentence naming the argument."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax import gradient_noise as gn

pytestmark = pytest.mark.bad_input
KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(3, 20)).astype(np.float32)


@pytest.mark.parametrize("size", [0, 1, 2, 5001])
def test_shapiro_wilk_ends_where_its_fit_ends(size):
    with pytest.raises(ValueError, match=f"between 3 and 5000 .*along axis -1 .*, got {size}"):
        gn.shapiro_wilk(jnp.zeros(size))
    with pytest.raises(ValueError, match=r"num_samples must be at (least 3|most 5000)"):
        gn.royston_coefficients(size)


def test_the_other_tests_have_no_upper_end():
    for test in (gn.anderson_darling, gn.dagostino_k2, gn.jarque_bera, gn.epps_pulley):
        assert np.isfinite(test(np.linspace(-1, 1, 5001)).pvalue)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gn.anderson_darling(X[:, :2]), ValueError, "at least 3 numbers .*, got 2"),
        (
            lambda: gn.anderson_darling(X, critical_values="stephens"),
            ValueError,
            "critical_values must be one of .* Did you mean 'stephens1974'",
        ),
        (
            lambda: gn.anderson_darling(X[:, :3], critical_values="stephens1974"),
            ValueError,
            "at least 4 numbers .*, got 3",
        ),
        (lambda: gn.dagostino_k2(X[:, :7]), ValueError, "at least 8 numbers"),
        (lambda: gn.jarque_bera(X[:, :2]), ValueError, "at least 3 numbers"),
        (lambda: gn.epps_pulley(X[:, :2]), ValueError, "at least 3 numbers .* for epps_pulley"),
        (lambda: gn.shapiro_wilk(X, axis=2), ValueError, "axis must be an axis of samples"),
        (lambda: gn.shapiro_wilk(X, axis=None), TypeError, "axis must be an integer, got None"),
        (lambda: gn.shapiro_wilk(X[:0]), ValueError, "at least 1 sample, got the shape"),
        (lambda: gn.shapiro_wilk(X + 1j), TypeError, "samples must be real numbers, got complex"),
        (lambda: gn.shapiro_wilk(X > 0), TypeError, "samples must be real numbers, got bool"),
        (lambda: gn.shapiro_wilk(1.0), ValueError, "axis must be an axis of samples of shape"),
        (lambda: gn.normality_tests(X, tests=()), ValueError, "tests must be names of one or more"),
        (lambda: gn.normality_tests(X, tests="shapiro_wilk"), ValueError, "tests must be names"),
        (lambda: gn.normality_tests(X, tests=["shapiro"]), ValueError, "Did you mean 'shapiro_w"),
        (
            lambda: gn.anderson_darling_critical_values(9, table="stephens"),
            ValueError,
            "table must be one of .* Did you mean 'stephens1974'",
        ),
        (
            lambda: gn.anderson_darling_critical_values(3, table="stephens1974"),
            ValueError,
            "num_samples must be at least 4",
        ),
        (lambda: gn.gaussianity(X[0], KEY), ValueError, "samples must be a matrix with a row a d"),
        (lambda: gn.gaussianity(X, 0), TypeError, "key must be a PRNG key"),
        (lambda: gn.gaussianity(X, KEY, level=2), ValueError, "level must lie between 0 and 1"),
        (lambda: gn.gaussianity(X, KEY, num_surrogates=0), ValueError, "num_surrogates must be at"),
        (
            lambda: gn.gaussianity(np.zeros((2, 5001)), KEY),
            ValueError,
            "samples must hold between 3 and 5000 numbers along axis -1 for shapiro_wilk, got 5001",
        ),
        (
            lambda: gn.gaussianity(X[:, :2], KEY),
            ValueError,
            "samples must hold between 3 and 5000 numbers along axis -1 for shapiro_wilk, got 2",
        ),
        (lambda: gn.critical_batch_size(X, num_samples=0), ValueError, "num_samples must be at"),
        (lambda: gn.critical_batch_size(X[0], num_samples=9), ValueError, "projections must be a"),
        (lambda: gn.stable_tail_index(X[:, :3]), ValueError, "at least 4 numbers"),
        (
            lambda: gn.stable_tail_index(X, block=1),
            ValueError,
            "block must be at least 2, got 1. A",
        ),
        (lambda: gn.stable_tail_index(X, block=21), ValueError, "block must be at most .* 20, got"),
        (
            lambda: gn.stable_tail_index(X, epsilon=-1.0),
            ValueError,
            "epsilon must be finite and at",
        ),
        (lambda: gn.pooled_tail_index(X[0]), ValueError, "noise must be a matrix with a noise vec"),
        (lambda: gn.coordinate_tail_index(X), ValueError, "at least 4 numbers .*, got 3"),
        (lambda: gn.hill_tail_index(X, k=20), ValueError, "k must be below .* 20, got 20"),
        (lambda: gn.hill_tail_index(X, k=0), ValueError, "k must be at least 1"),
        (lambda: gn.sample_stable(KEY, 2.5, (3,)), ValueError, "alpha must be at most 2, got 2.5"),
        (lambda: gn.sample_stable(KEY, 0.0, (3,)), ValueError, "alpha must be finite and above 0"),
        (lambda: gn.sample_stable(0, 1.0, (3,)), TypeError, "key must be a PRNG key"),
        (lambda: gn.divisor_block(0), ValueError, "num_samples must be at least 1"),
        (lambda: gn.gaussian_of_same_covariance(X[0], KEY), ValueError, "noise must be a matrix"),
        (
            lambda: gn.gaussian_of_same_variances(np.ones((2, 2), int), KEY),
            TypeError,
            "noise must be of floating point, got int",
        ),
    ],
)
def test_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
