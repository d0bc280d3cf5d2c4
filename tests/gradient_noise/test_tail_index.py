"""The tail index: stable samples, and what Gaussian noise that is not i.i.d. gives (oracle 5)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from poster_jax import gradient_noise as gn

K1 = K2 = 1000
SIZE = K1 * K2
LOG_NORMAL = -(np.euler_gamma + math.log(2)) / 2  # E log|Z|


@pytest.mark.parametrize("alpha", [1.0, 1.5, 1.8])
def test_stable_samples(key, alpha):
    x = gn.sample_stable(key, alpha, (SIZE,))
    assert abs(float(gn.stable_tail_index(x)) - alpha) < 0.03


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gaussian_samples(key, dtype):
    with jax.enable_x64(dtype == np.float64):
        x = jax.random.normal(key, (SIZE,), dtype)
        found = gn.stable_tail_index(x)
        assert found.dtype == dtype
        assert abs(float(found) - 2) < 0.06


def numpy_index(x, block, epsilon=0.0):
    """The definition, in float64."""
    blocks = np.asarray(x, np.float64).ravel()[: x.size // block * block].reshape(-1, block)
    summed = np.log(np.abs(blocks.sum(axis=1)) + epsilon).mean()
    return math.log(block) / (summed - np.log(np.abs(blocks) + epsilon).mean())


def test_the_definition_with_a_remainder(key):
    x = jax.random.t(key, 3.0, (1003,))
    np.testing.assert_allclose(gn.stable_tail_index(x), numpy_index(x, 31), rtol=1e-5)
    np.testing.assert_allclose(gn.stable_tail_index(x, block=7), numpy_index(x, 7), rtol=1e-5)
    noise = x[:1000].reshape(10, 100).at[:, 5].set(0)
    np.testing.assert_allclose(
        gn.pooled_tail_index(noise), numpy_index(noise, 31, 2.2e-16), rtol=1e-5
    )
    authors = gn.pooled_tail_index(noise, block=gn.divisor_block(1000))
    np.testing.assert_allclose(authors, numpy_index(noise, 25, 2.2e-16), rtol=1e-5)


@pytest.mark.parametrize(
    "spread", [2.0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1.0, 3.0))]
)
def test_unequal_variances(key, spread):
    a, b = jax.random.split(key)
    # one block holds the whole spread of variances, the next the same ones
    sd = jnp.exp(spread / 2 * jax.random.normal(a, (K1,)))
    x = jax.random.normal(b, (K2, K1)) * sd
    variance = np.asarray(sd, np.float64) ** 2
    gap = math.log(variance.mean()) - np.log(variance).mean()
    expected = 2 / (1 + gap / math.log(K1))
    assert abs(float(gn.pooled_tail_index(x, block=K1)) - expected) < 0.03
    # of infinitely many log-normal variances: 1.865, 1.551, 1.211
    drawn = jnp.exp(spread / 2 * jax.random.normal(a, (K2, K1))) * jax.random.normal(b, (K2, K1))
    closed = 2 / (1 + spread**2 / (2 * math.log(K1)))
    assert abs(float(gn.pooled_tail_index(drawn, block=K1)) - closed) < 0.03
    # equal within every block: Gaussian again
    assert abs(float(gn.pooled_tail_index((x / sd) * sd[:, None], block=K1)) - 2) < 0.06


@pytest.mark.parametrize("rho", [0.01, 0.1, 0.5, 1.0])
def test_equicorrelated_coordinates(key, rho):
    a, b = jax.random.split(key)
    common = jax.random.normal(a, (K2, 1))
    x = math.sqrt(rho) * common + math.sqrt(1 - rho) * jax.random.normal(b, (K2, K1))
    expected = 2 / (1 + math.log(1 + (K1 - 1) * rho) / math.log(K1))
    tolerance = 0.03 if rho < 1 else 1e-5  # fully correlated: 1 exactly
    assert abs(float(gn.pooled_tail_index(x, block=K1)) - expected) < tolerance


@pytest.mark.parametrize("dead", [0.05, 0.3])
def test_exact_zeros_through_the_epsilon(key, dead):
    a, b = jax.random.split(key)
    x = jax.random.normal(a, (K2, K1)) * (jax.random.uniform(b, (K2, K1)) >= dead)
    gap = 0.5 * math.log(K1 * (1 - dead)) + LOG_NORMAL
    gap -= (1 - dead) * LOG_NORMAL + dead * math.log(2.2e-16)
    assert abs(float(gn.pooled_tail_index(x, block=K1)) - math.log(K1) / gap) < 0.03


def test_coordinates_over_batches_are_gaussian_where_pooled_they_are_not(key):
    """The dispute in one matrix: unequal variances, every coordinate Gaussian."""
    a, b = jax.random.split(key)
    sd = jnp.exp(jax.random.normal(a, (400,))).at[:4].set(0)
    noise = jax.random.normal(b, (2500, 400)) * sd
    alpha = gn.coordinate_tail_index(noise)
    assert alpha.shape == (400,)
    assert int(jnp.isnan(alpha).sum()) == 4
    assert abs(float(jnp.nanmedian(alpha)) - 2) < 0.1
    np.testing.assert_allclose(alpha[7], numpy_index(noise[:, 7], 50), rtol=1e-4)
    pooled = float(gn.pooled_tail_index(noise))
    assert pooled < 1.8
    same = gn.gaussian_of_same_variances(noise, key)
    assert abs(float(gn.pooled_tail_index(same)) - pooled) < 0.03


@pytest.mark.slow
def test_surrogates_have_the_moments_that_they_promise(x64, key):
    noise = jax.random.t(key, 8.0, (2000, 3)) @ jnp.array([[1.0, 2, 0], [0, 1, 1], [0, 0, 1e-3]])
    covariance = np.cov(noise.T, bias=True)
    size = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    tolerance = 5 * 2**0.5 / math.sqrt(2000)
    full = gn.gaussian_of_same_covariance(noise, key)
    assert full.shape == noise.shape
    assert (np.abs(full.T @ full / 2000 - covariance) < tolerance * size).all()
    diagonal = gn.gaussian_of_same_variances(noise, key)
    expected = np.diag(np.diag(covariance))
    assert (np.abs(diagonal.T @ diagonal / 2000 - expected) < tolerance * size).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("alpha", [0.7, 1.0, 1.6, 2.0])
def test_the_sampler_has_the_stable_law(key, alpha, dtype):
    """Its characteristic function is exp(-|t|^alpha); at 1 it is Cauchy's law, at 2 normal."""
    with jax.enable_x64(dtype == np.float64):
        x = gn.sample_stable(key, alpha, (200000,), dtype)
        assert x.dtype == dtype
        x = np.asarray(x, np.float64)
    assert np.isfinite(x).all()
    for t in (0.3, 1.0, 2.0):
        assert abs(np.cos(t * x).mean() - math.exp(-(t**alpha))) < 4 / math.sqrt(2 * len(x))
    law = {1.0: stats.cauchy(), 2.0: stats.norm(scale=math.sqrt(2))}.get(alpha)
    if law is not None:
        assert stats.kstest(x, law.cdf).pvalue > 0.001


def test_hill_on_a_pareto_tail(x64, key):
    alpha, k = 1.5, 4000
    x = jax.random.pareto(key, alpha, (3, 40000)) * jnp.array([1.0, -1.0, 1e-20])[:, None]
    found = np.asarray(gn.hill_tail_index(x, k=k))
    assert (np.abs(found / alpha - 1) < 4 / math.sqrt(k)).all()
    top = np.sort(np.abs(np.asarray(x[1])))[::-1]
    np.testing.assert_allclose(found[1], 1 / np.mean(np.log(top[:k] / top[k])), rtol=1e-12)
    np.testing.assert_allclose(gn.hill_tail_index(x.T, k=k, axis=0), found, rtol=1e-12)


@pytest.mark.slow
def test_a_population_under_jit(key):
    x = gn.sample_stable(key, jnp.array([[1.2], [1.9]]), (2, 400))
    together = jax.jit(jax.vmap(gn.stable_tail_index))(x)
    for row, alpha in zip(x, together, strict=True):
        np.testing.assert_allclose(alpha, numpy_index(row, 20), rtol=1e-4)
