"""Unbiased, with a standard error that is right, exact where the theory says exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poster_jax.curvature import (
    frobenius_norm,
    hessian_operator,
    hutchpp_trace,
    matrix_operator,
    trace,
    xtrace,
)

ESTIMATORS = {"trace": trace, "hutchpp_trace": hutchpp_trace, "xtrace": xtrace}
PROBES = ["rademacher", "gaussian", "sphere"]
DECAYING = 1 / np.arange(1.0, 121) ** 2
INDEFINITE = np.random.default_rng(0).normal(size=120)


def _operator(tools, spectrum):
    return matrix_operator(jnp.asarray(tools.rotated(spectrum), jnp.float32))


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("spectrum", [DECAYING, INDEFINITE], ids=["decaying", "indefinite"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_unbiased_and_its_standard_error_is_right(name, spectrum, probe, tools):
    op = _operator(tools, spectrum)
    draw = jax.jit(jax.vmap(lambda k: ESTIMATORS[name](op, k, num_probes=18, probe=probe)[:2]))
    means, errors = map(np.asarray, draw(jax.random.split(jax.random.key(1), 600)))
    spread = means.std(ddof=1)
    assert abs(means.mean() - spectrum.sum()) < 4 * spread / np.sqrt(600)
    # Errors are drawn too; those of 6 or 18 samples scatter, their root mean square does not. The
    # leave-one-out estimates of XTrace share most of their basis: their error is known to be low.
    ratio = np.sqrt(np.mean(errors**2)) / spread
    assert (0.7 if name == "xtrace" else 0.85) < ratio < 1.15


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_estimate_scales_with_the_operator(name, scale, tools, key):
    plain = ESTIMATORS[name](_operator(tools, DECAYING), key, num_probes=12)
    scaled = ESTIMATORS[name](_operator(tools, scale * DECAYING), key, num_probes=12)
    np.testing.assert_allclose(scaled.mean, scale * plain.mean, rtol=1e-4)
    np.testing.assert_allclose(scaled.stderr, scale * plain.stderr, rtol=1e-2)


@pytest.mark.parametrize("name", ["hutchpp_trace", "xtrace"])
def test_low_rank_is_exact(name, tools, key):
    op = _operator(tools, np.array([3.0, 2, 1] + [0.0] * 97))
    estimate = ESTIMATORS[name](op, key, num_probes=15)
    np.testing.assert_allclose(estimate.mean, 6, rtol=1e-5)
    assert estimate.stderr < 1e-4


@pytest.mark.parametrize("name", ["hutchpp_trace", "xtrace"])
def test_enough_probes_give_the_exact_trace(name, problem, tools, key):
    op = hessian_operator(problem.loss_fn, problem.params, problem.batch)
    estimate = ESTIMATORS[name](op, key, num_probes=op.dim)
    exact = np.trace(tools.numpy_hessian(problem))
    np.testing.assert_allclose(estimate.mean, exact, rtol=1e-5)
    assert estimate.stderr == 0
    assert estimate.num_samples == 0


def test_signs_are_exact_on_a_diagonal_matrix(key):
    op = matrix_operator(jnp.diag(jnp.arange(100.0)))
    estimate = trace(op, key, num_probes=3)
    assert estimate.mean == 4950
    assert estimate.stderr == 0


def test_variances_are_those_of_the_theory(tools):
    """Signs: 2 (|H|^2 - |diag|^2); Gaussians: 2 |H|^2 (Avron, Toledo 2011, J. ACM 58(2))."""
    matrix = tools.rotated(INDEFINITE)
    op = matrix_operator(jnp.asarray(matrix, jnp.float32))
    total = np.sum(matrix**2)
    theory = {"rademacher": 2 * (total - np.sum(np.diag(matrix) ** 2)), "gaussian": 2 * total}
    for probe, variance in theory.items():
        estimate = trace(op, jax.random.key(2), num_probes=8000, probe=probe, block_size=500)
        # the standard deviation of a variance from n normal draws is sqrt(2 / n) of it
        np.testing.assert_allclose(estimate.stderr**2 * 8000, variance, rtol=5 * (2 / 8000) ** 0.5)


@settings(max_examples=12, deadline=None)
@given(num_probes=st.integers(2, 20), block_size=st.integers(1, 25))
def test_block_size_changes_nothing(num_probes, block_size):
    op = matrix_operator(jnp.asarray(np.diag(np.arange(30.0)) + 1, jnp.float32))
    key = jax.random.key(0)
    blocked = trace(op, key, num_probes=num_probes, block_size=block_size)
    plain = trace(op, key, num_probes=num_probes, block_size=num_probes)
    np.testing.assert_allclose(blocked.mean, plain.mean, rtol=1e-6)
    np.testing.assert_allclose(blocked.stderr, plain.stderr, rtol=1e-4)


def test_one_probe_has_no_standard_error(key):
    estimate = trace(matrix_operator(jnp.ones((3, 3))), key, num_probes=1)
    assert np.isnan(estimate.stderr)
    assert np.isfinite(estimate.mean)


def test_frobenius_norm_and_its_standard_error(tools):
    op = _operator(tools, INDEFINITE)
    draw = jax.jit(jax.vmap(lambda k: frobenius_norm(op, k, num_probes=30)[:2]))
    means, errors = map(np.asarray, draw(jax.random.split(jax.random.key(1), 400)))
    exact = np.linalg.norm(INDEFINITE)
    bias = means.var(ddof=1) / (2 * exact)
    assert abs(means.mean() + bias - exact) < 4 * means.std(ddof=1) / 20
    assert 0.85 < errors.mean() / means.std(ddof=1) < 1.15


@pytest.mark.bad_input
@pytest.mark.parametrize("estimator", [trace, hutchpp_trace, xtrace, frobenius_norm])
@pytest.mark.parametrize(
    ("change", "error", "names"),
    [
        ({"op": jnp.eye(10)}, TypeError, "op"),
        ({"key": 7}, TypeError, "key"),
        ({"num_probes": 0}, ValueError, "num_probes"),
        ({"num_probes": 2.5}, TypeError, "num_probes"),
        ({"probe": "rademacker"}, ValueError, "rademacher"),
        ({"block_size": 0}, ValueError, "block_size"),
    ],
)
def test_bad_input(estimator, change, error, names, key):
    given = {"op": matrix_operator(jnp.eye(10)), "key": key, "num_probes": 4} | change
    with pytest.raises(error, match=names):
        estimator(given.pop("op"), given.pop("key"), **given)
